"""The bed of the crash tests: a host, vmkeep in killable processes, and what must be true after each death."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import libvirt

from tests.crash.walk import NO_DEATH, SHARES, Death, deaths
from tests.rig import Host, KiB, MiB, Vm, VmState, assert_images_equal
from tests.rig.forking import Driver
from tests.system.offline import bitmaps, write_offline, zero_offline
from tests.system.truth import PERMALL, checkpoints, guardians, has_backup_job

DRIVER = Path(__file__).with_name("driver.py")
SAFE_SECONDS = 3.0
KILLED = -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a process of vmkeep ended. ``result`` is empty when it was killed."""

    status: int
    result: dict[str, Any]

    @property
    def acts(self) -> list[Any]:
        assert self.status == 0, self.result.get("error", self.status)
        acts = self.result["acts"]
        assert isinstance(acts, list)
        return acts

    @property
    def recovered(self) -> list[str]:
        recovered = self.result["recovered"]
        assert isinstance(recovered, list)
        return recovered

    @property
    def error(self) -> dict[str, Any]:
        assert self.status == 1, f"it should fail: {self.status}, {self.result}"
        error = self.result["error"]
        assert isinstance(error, dict)
        return error


@dataclass(frozen=True, slots=True)
class Printed:
    """How a command line ended, and what it printed."""

    status: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        assert self.status == 0, f"{self.status}: {self.err}"
        document = json.loads(self.out)
        assert isinstance(document, dict)
        return document


EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Trap:
    """What happens at a place of vmkeep's code; see driver.py."""

    when: str
    place: str
    action: str = "kill"
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Here:
    """This machine itself, for commands that need no libvirt; ``dir`` is like that of a host."""

    dir: Path

    def popen(self, command: Sequence[str | Path], *, stdin: int, stderr: int | None) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, text=True)

    def run(self, command: Sequence[str | Path], *, check: bool) -> object:
        return subprocess.run(command, check=check)


class Zygote:
    """A process inside the host that has imported vmkeep and forks for each run."""

    def __init__(self, host: Host | Here, home: Path) -> None:
        self._host = host
        self._home = home
        self._number = 0
        self._process: subprocess.Popen[str] | Driver
        if isinstance(host, Host):
            self._process = host.forks.driver(DRIVER)
        else:
            self._process = host.popen([sys.executable, DRIVER], stdin=subprocess.PIPE, stderr=None)
        self._result_file = Path()
        self._pid_file = Path()
        assert self._answer() == {"ready": True}

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.go.touch()  # for a run that still holds, because its test failed
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)

    def start(self, *acts: Sequence[Any], traps: Sequence[Trap] = ()) -> None:
        """Begin a run; ``finish`` waits for its end."""
        self._begin({"acts": acts}, traps=traps)

    def walk(self, *acts: Sequence[Any], death: Death = NO_DEATH) -> Outcome:
        """Run acts with all their effects counted, and let the run die at one of them; see ``effects``."""
        self._begin({"acts": acts}, death=death)
        return self.finish()

    def command(self, *words: str | Path, death: Death | None = None, env: Mapping[str, str] | None = None) -> Printed:
        """Run a command line; with ``death`` its effects are counted."""
        self._begin({"command": [str(word) for word in words]}, death=death, env=env or {})
        return self.printed()

    def make_point(self, home: Path, *, death: Death = NO_DEATH) -> int:
        """Make a point without a VM in a home, with its effects counted; return how that ended."""
        self._begin({"make_point": str(home)}, death=death)
        return self.finish().status

    def start_command(
        self,
        *words: str | Path,
        traps: Sequence[Trap] = (),
        death: Death | None = None,
        env: Mapping[str, str] = EMPTY,
    ) -> None:
        """Begin a command line; ``printed`` waits for its end."""
        self._begin({"command": [str(word) for word in words]}, traps=traps, death=death, env=env)

    def output(self) -> str:
        """Return what a command that was begun has printed until now."""
        path = Path(f"{self._result_file}.out")
        return path.read_text() if path.exists() else ""

    def runs(self) -> bool:
        """Return whether what was begun is still there."""
        number = self._pid_file.read_text() if self._pid_file.exists() else ""
        if not number:
            return True  # it begins
        found = self._host.run(["kill", "-0", number], check=False)
        return getattr(found, "returncode", 1) == 0

    def printed(self) -> Printed:
        status = int(self._answer()["status"])
        texts = [Path(f"{self._result_file}.{stream}") for stream in ("out", "err")]
        return Printed(status, *(text.read_text() if text.exists() else "" for text in texts))

    @property
    def effects(self) -> list[str]:
        """Return what the last run did whose effects were counted, in order."""
        effects = json.loads(self._result_file.with_suffix(".effects").read_text())
        assert isinstance(effects, list)
        return effects

    def _begin(
        self,
        asked: dict[str, Any],
        *,
        traps: Sequence[Trap] = (),
        death: Death | None = None,
        env: Mapping[str, str] = EMPTY,
    ) -> None:
        self._number += 1
        work = self._host.dir / "work"
        self._result_file = work / f"run-{self._number}.json"
        self._pid_file = work / f"run-{self._number}.pid"
        for file in (self._result_file, self._pid_file, self.reached, self.go):
            file.unlink(missing_ok=True)  # of another one's run of this number, on the same host
        told = [
            {
                "when": trap.when,
                "place": trap.place,
                "action": trap.action,
                "delay_ms": trap.delay_ms,
                "reached": str(self.reached),
                "go": str(self.go),
            }
            for trap in traps
        ]
        request = {
            **asked,
            "traps": told,
            "env": {"VMKEEP_HOME": str(self._home), **env},
            "result_file": str(self._result_file),
            "pid_file": str(self._pid_file),
        }
        if death is not None:
            request |= {
                "effect": death.effect,
                "delay_ms": death.delay_ms,
                "effects_file": str(self._result_file.with_suffix(".effects")),
            }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Outcome:
        status = int(self._answer()["status"])
        result = json.loads(self._result_file.read_text()) if self._result_file.exists() else {}
        return Outcome(status, result)

    def run(self, *acts: Sequence[Any], traps: Sequence[Trap] = ()) -> Outcome:
        self.start(*acts, traps=traps)
        return self.finish()

    @property
    def reached(self) -> Path:
        """Made by a run that holds."""
        return self._host.dir / "work" / f"run-{self._number}.reached"

    @property
    def go(self) -> Path:
        """Lets a run that holds go on."""
        return self._host.dir / "work" / f"run-{self._number}.go"

    def wait_reached(self) -> None:
        wait_until(self.reached.exists, "the run did not come to the place", 20)

    def kill(self) -> None:
        """SIGKILL the run that holds, as the driver does to itself elsewhere."""
        self._host.run(["kill", "-KILL", self._pid_file.read_text()], check=True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the run."""
        self._host.run(["kill", f"-{number.name.removeprefix('SIG')}", self._pid_file.read_text()], check=True)

    def stop(self) -> None:
        """Let the run that holds stand still, as Ctrl-Z, a debugger or a frozen control group would."""
        self._host.run(["kill", "-STOP", self._pid_file.read_text()], check=True)

    def go_on(self) -> None:
        """End what ``stop`` began."""
        self._host.run(["kill", "-CONT", self._pid_file.read_text()], check=True)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the driver ended"
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


@dataclass(slots=True)
class Content:
    """What the VM holds, kept beside it: two disks written only by the tests, and its state files."""

    disks: dict[str, bytearray]
    tpm: bytes = b""
    nvram: bytes = b""

    def copy(self) -> Content:
        return Content({target: bytearray(image) for target, image in self.disks.items()}, self.tpm, self.nvram)


@dataclass(slots=True)
class Bed:
    """One settled VM with two small disks, its points with what each must hold, and runs of vmkeep."""

    host: Host
    vm: Vm
    zygote: Zygote
    home: Path
    content: Content
    truths: dict[str, Content] = field(default_factory=dict)
    sound: bool = True  # set again by what proves that all is in order
    effects: list[str] = field(default_factory=list)  # of an undisturbed point
    _seed: int = 0

    @classmethod
    def make(cls, host: Host, vm: Vm, zygote: Zygote | None = None) -> Bed:
        home = host.dir / "home"
        sizes = {disk.target: vm.domain.blockInfo(disk.target)[0] for disk in vm.disks()}
        content = Content({target: bytearray(size) for target, size in sizes.items()})
        bed = cls(host, vm, zygote or Zygote(host, home), home, content)
        for _ in range(2):
            bed.change()
            bed.take_point()
        return bed

    def start_when_free(self) -> None:
        """Start the VM as soon as the qemu-nbd of a killed run has let go of its images."""
        deadline = time.monotonic() + 10
        while True:
            try:
                self.vm.start(paused=True)
                return
            except libvirt.libvirtError as error:
                if '"write" lock' not in str(error) or time.monotonic() > deadline:
                    raise

    def change(self) -> None:
        """Let something new be written to both disks and to the UEFI variables, by the guest or while it is off."""
        self._seed += 1
        seed = self._seed
        for target, image in self.content.disks.items():
            start = (seed * 7 * 64 * KiB + 4 * KiB) % (len(image) - MiB)
            fill = seed % 255 + 1
            if self.vm.state() is VmState.OFF:
                write_offline(self.vm, target, bytes([fill]) * (160 * KiB), start=start)
                zero_offline(self.vm, target, start=start + 64 * KiB, length=4 * KiB)
            else:
                self.vm.write(target, start=start, length=160 * KiB, pattern=fill)
                self.vm.write_zeroes(target, start=start + 64 * KiB, length=4 * KiB)
            image[start : start + 160 * KiB] = bytes([fill]) * (160 * KiB)
            image[start + 64 * KiB : start + 68 * KiB] = bytes(4 * KiB)
        self.vm.change_nvram()
        self.content.nvram = self.vm.nvram()
        self.content.tpm = self.vm.tpm_state()

    def take_point(self) -> dict[str, Any]:
        """Take a point that must succeed, and remember what it must hold."""
        point = self.zygote.run(["backup", self.vm.name]).acts[0]["point"]
        self.truths[point["id"]] = self.content.copy()
        assert isinstance(point, dict)
        return point

    # -- what must hold ----------------------------------------------------------------------------------------

    def assert_safe(
        self,
        before: Sequence[str],
        *,
        state: VmState = VmState.RUNNING,
        killed_at: float,
        new_allowed: bool = False,
        old_gone_allowed: bool = False,
        record_allowed: bool = False,
    ) -> None:
        """Fail unless, within three seconds of the death, nothing of the killed point is left at the guest.

        ``new_allowed``: its checkpoint may be there (and nothing else of it), because the point was stored.
        """
        remaining = ["not looked yet"]
        while remaining:
            late = time.monotonic() - killed_at > SAFE_SECONDS
            remaining = self._unsafe(before, state, new_allowed, old_gone_allowed, record_allowed)
            assert not (late and remaining), f"{SAFE_SECONDS} s after the kill: {remaining}"
            time.sleep(0.03)

    def _unsafe(
        self, before: Sequence[str], state: VmState, new_allowed: bool, old_gone_allowed: bool, record_allowed: bool
    ) -> list[str]:
        found = []
        if self.vm.state() is not state:
            reason = self.vm.domain.state()[1]
            log = self.host.path(f"/var/log/libvirt/qemu/{self.vm.name}.log")
            said = log.read_text(errors="replace")[-600:] if log.exists() else ""
            found.append(f"the VM is {self.vm.state().value} (libvirt's reason {reason}); QEMU's log ends: {said}")
        if self.vm.state() is not VmState.OFF and has_backup_job(self.vm):
            found.append("a backup job")
        now = set(checkpoints(self.vm))
        extra, gone = now - set(before), set(before) - now
        if len(extra) > (1 if new_allowed else 0):
            found.append(f"checkpoints {sorted(extra)}")
        if gone and not old_gone_allowed:
            found.append(f"checkpoints are gone: {sorted(gone)}")
        found += [str(path) for path in (self.host.dir / "disks").rglob("*") if "scratch" in path.name]
        run = self.host.path("/run/vmkeep")
        found += [str(path) for path in run.iterdir()] if run.exists() else []
        found += [f"guardian process {pid}" for pid in self.guardians()]
        if self.vm.state() is VmState.OFF and not new_allowed:
            try:
                found += [f"bitmap {name}" for name in self.bitmaps() - set(before)]
            except subprocess.CalledProcessError:
                found.append("an image whose bitmaps are being changed")  # qemu-img looks without a lock
        guards = self.home / "guards"
        if guards.exists() and not record_allowed:
            found += [str(path) for path in guards.iterdir()]
        return found

    def bitmaps(self) -> set[str]:
        """Return the names of the bitmaps in the images of a VM that is off."""
        return {name for target in self.content.disks for name in bitmaps(self.vm.disk_path(target))}

    def guardians(self) -> list[int]:
        """Return the guardians of this host that live, as seen from outside."""
        return guardians(self.home)

    def kill_guardians(self) -> None:
        for pid in self.guardians():
            os.kill(pid, signal.SIGKILL)

    def walk_points(self, share: int) -> None:
        """Kill points at a share of their effects, and prove each time that guest, points and base are whole."""
        if not self.effects:
            self.change()
            point = self.zygote.walk(["backup", self.vm.name]).acts[0]["point"]
            self.truths[point["id"]] = self.content.copy()
            self.effects = self.zygote.effects
        state = self.vm.state()
        for death in deaths(self.effects, 4, daily=True)[share::SHARES]:
            self.sound = False
            self.change()
            before, killed, stored = checkpoints(self.vm), self.content.copy(), self._stored()
            outcome = self.zygote.walk(["backup", self.vm.name], death=death)
            killed_at = time.monotonic()
            try:
                if outcome.status != KILLED:  # it had fewer effects this time
                    self.truths[outcome.acts[0]["point"]["id"]] = killed
                kept = self._stored() != stored
                self.assert_safe(
                    before,
                    state=state,
                    killed_at=killed_at,
                    new_allowed=kept,
                    old_gone_allowed=kept,
                    # The sockets' directory is made when the guardian watches.
                    record_allowed=not any("/run/vmkeep/" in effect for effect in self.zygote.effects),
                )
                self.next_backup_and_prove_all(killed=killed)
            except AssertionError as error:
                error.add_note(f"killed at {death}: {self.effects[death.effect - 1 if death.effect else 0]}")
                raise
        self.sound = True

    def _stored(self) -> set[str]:
        return {path.name for path in (self.home / "repository" / "points").iterdir() if "#" not in path.name}

    def next_backup_and_prove_all(self, *, killed: Content, incremental: bool = True) -> list[str]:
        """Take the next point by the same command, restore every point byte for byte; return what was recovered.

        ``killed`` is what a point that was complete when its process died must hold. Afterwards two points stay.
        """
        self.change()
        output = self.host.dir / "work" / "proof"
        output.mkdir()
        outcome = self.zygote.run(["backup", self.vm.name], ["restore_all", str(output)], ["look"])
        taken, _, (unfinished, points, stored) = outcome.acts
        point = taken["point"]
        self.truths[point["id"]] = self.content.copy()
        assert taken["warnings"] == []
        if incremental:
            assert point["kind"] == "incremental", point
        assert unfinished == []
        assert points == stored
        unknown = set(points) - set(self.truths)
        assert len(unknown) <= 1
        for known in unknown:
            self.truths[known] = killed
        assert set(points) == set(self.truths), "a point is missing"
        for known, truth in self.truths.items():
            assert_files_hold(output / known, truth)
            remove_tree(output / known)
        output.rmdir()
        self.assert_nothing_stale(point["checkpoint"])
        self._forget_oldest(points_by_age=[*self.truths])
        self.sound = True
        return outcome.recovered

    def assert_nothing_stale(self, checkpoint: str) -> None:
        assert checkpoints(self.vm) == [checkpoint]
        assert not has_backup_job(self.vm)
        left = [path for path in (self.host.dir / "disks").iterdir() if path.name.startswith(".")]
        assert left == []
        if self.vm.state() is VmState.OFF:
            assert self.bitmaps() == {checkpoint}
        for name in ("owners", "guards", "locks"):
            assert [path.name for path in (self.home / name).iterdir()] == [], name
        with closing(sqlite3.connect(self.home / "flows.sqlite")) as flows:
            query = "SELECT workflow_uuid, status FROM workflow_status WHERE status IN ('PENDING', 'ENQUEUED')"
            assert flows.execute(query).fetchall() == []

    def _forget_oldest(self, points_by_age: list[str]) -> None:
        surplus = points_by_age[:-2]
        self.zygote.run(*(["delete", point] for point in surplus))
        for point in surplus:
            del self.truths[point]


def assert_files_hold(directory: Path, truth: Content, image_format: str = "raw") -> None:
    assert image_format == "raw"
    for target, image in truth.disks.items():
        assert_images_equal((directory / f"{target}.raw").read_bytes(), bytes(image), target)
    assert (directory / "nvram.fd").read_bytes() == truth.nvram
    assert (directory / PERMALL).read_bytes() == truth.tpm
    assert_no_leavings(directory)


def assert_no_leavings(directory: Path) -> None:
    """Fail when a restore left one of its own names."""
    endings = (".partial", ".published", ".replaced")
    assert [path.name for path in directory.rglob("*") if path.name.endswith(endings)] == []


def remove_tree(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    directory.rmdir()


def wait_until(condition: Callable[[], bool], complaint: str, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(0.01)
