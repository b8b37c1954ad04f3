"""A VM that runs, its points, and an installation whose repository is apart from its home."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash.bed import Bed, Printed, Zygote
from tests.environment.injector import Injector
from tests.environment.preloaded import Preloaded
from tests.environment.walk import Walk
from tests.rig import Disk, Host, MiB, VmState
from tests.system.truth import has_backup_job


@dataclass(slots=True)
class Stage:
    """A VM with two points, an installation whose repository is apart from its home, and a walk of its commands."""

    bed: Bed
    walk: Walk
    outputs: int = 0

    @property
    def host(self) -> Host:
        return self.bed.host

    @property
    def home(self) -> Path:
        return self.bed.home

    @property
    def repository(self) -> Path:
        return self.host.dir / "work" / "store"

    @property
    def point(self) -> str:
        return list(self.bed.truths)[-1]

    def inside(self, path: Path) -> Path:
        """Return where to see from outside what is at a path inside the host, with what is mounted there."""
        return Path(f"/proc/{self.host.init_pid}/root{path}")

    def turn(self, state: VmState) -> None:
        """Let the VM run, or be off."""
        vm = self.bed.vm
        if state is VmState.OFF and vm.state() is not VmState.OFF:
            vm.destroy()
        if state is VmState.RUNNING and vm.state() is not VmState.RUNNING:
            if vm.state() is VmState.OFF:
                self.bed.start_when_free()
            vm.resume()
            vm.settle()

    def next_output(self) -> Path:
        self.outputs += 1
        return self.host.dir / "work" / f"out-{self.outputs}"

    @property
    def output(self) -> Path:
        return self.host.dir / "work" / f"out-{self.outputs}"

    def assert_guest_is_free(self) -> None:
        """Fail unless the guest runs, and nobody holds a job of it, within three seconds."""
        vm, deadline = self.bed.vm, time.monotonic() + 3
        while True:
            trouble = []
            if vm.state() is not VmState.RUNNING:
                trouble.append(f"the VM is {vm.state().value}")
            elif has_backup_job(vm):
                trouble.append("a backup job")
            trouble += [f"guardian {pid}" for pid in self.bed.guardians()]
            if not trouble:
                return
            assert time.monotonic() < deadline, trouble
            time.sleep(0.03)


@contextmanager
def made_stage(injector: Injector) -> Iterator[Stage]:
    """Start a host and its VM, and take two points."""
    with Host("faulty", idle_firmware=True) as host:
        zygote = Zygote(Preloaded(host, injector), host.dir / "home")  # type: ignore[arg-type] # as a host
        store = host.dir / "work" / "store"
        store.mkdir()
        # A file system of its own, which can be taken away.
        host.run(["mount", "-t", "tmpfs", "-o", "size=256m,mode=0700", "tmpfs", store], check=True)
        assert zygote.command("init", "--repository", store / "repository").status == 0
        vm = host.define("guest", disks=[Disk("vda", 6 * MiB), Disk("vdb", 2 * MiB + 512)])
        vm.start()
        vm.settle()

        def run(words: Sequence[str | Path], env: Mapping[str, str]) -> Printed:
            return zygote.command("--json", *words, env=env)

        yield Stage(Bed.make(host, vm, zygote), Walk(injector, run))
        zygote.close()
