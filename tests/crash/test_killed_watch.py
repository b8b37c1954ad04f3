"""`vmkeep watch` and the gate's hook are killed at their effects: no version is lost, and no start is blocked."""

from __future__ import annotations

import hashlib
import json
import signal
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.crash.bed import KILLED, Zygote, wait_until
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep

pytestmark = [pytest.mark.system, pytest.mark.crash]

_MOST = 6
_ROOT = Path(__file__).parents[2]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class _Bed:
    host: Host
    vm: Vm
    vmkeep: Vmkeep
    zygote: Zygote

    def hashes(self) -> list[str]:
        """The contents of the versions of the TPM state, the newest first."""
        versions = self.vmkeep.json("state", "versions", self.vm.name, "--kind", "tpm")["versions"]
        return [str(each["sha256"]) for each in versions]

    def standing(self) -> str:
        states: list[dict[str, Any]] = self.vmkeep.json("state", "list", self.vm.name)["states"]
        return next(str(state["standing"]) for state in states if state["kind"] == "tpm")

    def watch(self, death: Death = NO_DEATH) -> int:
        """Let a watch run until it dies, or tells that it kept the TPM's state and is ended; return its status."""
        wanted = _sha256(self.vm.tpm_state())
        self.zygote.start_command("--json", "watch", death=death, env=self.vmkeep.environment)
        wait_until(
            lambda: wanted in self.zygote.output() or not self.zygote.runs(), "the watch neither dies nor keeps it", 30
        )
        if self.zygote.runs():
            self.zygote.signal(signal.SIGTERM)
        return self.zygote.printed().status


@pytest.fixture(scope="module")
def bed() -> Iterator[_Bed]:
    """A VM that is off, of which a point was taken, on a host with a gate."""
    need_effects()
    with Host("crash", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", MiB)])
        vm.start(paused=True)
        vm.destroy()
        vmkeep = Vmkeep(host)
        vmkeep.backup("guest")
        vmkeep.json("hook", "install")
        zygote = Zygote(host, vmkeep.home)
        yield _Bed(host, vm, vmkeep, zygote)
        zygote.close()


def test_watch_killed_at_any_effect_loses_no_version_and_the_next_one_catches_up(bed: _Bed) -> None:
    bed.vm.change_tpm()
    assert bed.watch() == 0
    effects = bed.zygote.effects
    killed = 0
    for death in deaths(effects, _MOST, daily=True):
        before = bed.hashes()
        bed.vm.change_tpm()
        now = _sha256(bed.vm.tpm_state())
        status = bed.watch(death)
        killed += status == KILLED
        assert status in (KILLED, 0), death
        after = bed.hashes()
        assert after in (before, [now, *before]), death
        bed.vm.start(paused=True)  # the gate lets it, whether it heard of the version or not
        bed.vm.destroy()
        if after == before:
            assert bed.watch() == 0, "the next watch catches up"
        assert bed.hashes() == [now, *before], death
        assert bed.standing() == "current"
    assert killed > _MOST / 2
    assert bed.vmkeep.json("verify", "--all")["ok"]
    doctor = json.loads(bed.vmkeep.run("--json", "doctor").stdout)["doctor"]
    assert not {finding["code"] for finding in doctor["findings"]} & {"catalogue-unusable", "state-not-captured"}


# -- the hook ----------------------------------------------------------------------------------------------------

_ASK = textwrap.dedent("""
    import runpy, sys
    from pathlib import Path
    from tests.crash.effects import Death, run_watched
    hook, effects, death, *words = sys.argv[1:]

    def ask():
        sys.argv = [hook, "allow", *words]
        try:
            runpy.run_path(hook, run_name="__main__")
        except SystemExit as ended:
            sys.stdout.flush()
            return ended.code

    run_watched(
        ask,
        Path(effects),
        Death(int(death) or None),
        lambda status: print(status, flush=True),
    )
""")


@dataclass(slots=True)
class _Gate:
    """The hook of the bed, asked as libvirt asks it, with its effects counted."""

    bed: _Bed
    effects: Path

    def ask(self, operation: str = "prepare", death: int = 0) -> int:
        """Return how the hook ended. It is killed at its effect of that number."""
        host, vm = self.bed.host, self.bed.vm
        hook = self.bed.vmkeep.home / "gate" / "hook.py"
        words: list[str | Path] = [hook, self.effects, str(death), vm.name, operation, "begin", "-"]
        done = host.run(
            [sys.executable, "-c", _ASK, *words], input=vm.domain.XMLDesc(), env={"PYTHONPATH": str(_ROOT)}, check=True
        )
        return int(done.stdout.split()[-1])

    def count(self) -> int:
        return len(json.loads(self.effects.read_text()))


@pytest.fixture
def gate(bed: _Bed) -> _Gate:
    bed.vmkeep.json("state", "capture", "guest")
    return _Gate(bed, bed.host.dir / "work" / "hook.effects")


def test_hook_killed_at_any_effect_lets_the_next_start_pass(gate: _Gate) -> None:
    assert gate.ask() == 0
    number = gate.count()
    assert number > 0
    for death in range(1, number + 1):
        assert gate.ask(death=death) in (KILLED, 0), death
        assert gate.ask() == 0, death
    gate.bed.vm.start(paused=True)
    gate.bed.vm.destroy()


def test_hook_killed_at_any_effect_lets_no_older_state_start_but_for_a_leave_that_it_did_not_take(gate: _Gate) -> None:
    bed = gate.bed
    permall = bed.vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    old = permall.read_bytes()
    bed.vm.change_tpm()
    newest = permall.read_bytes()
    bed.vmkeep.json("state", "capture", "guest")
    permall.write_bytes(old)
    try:
        assert gate.ask() == 1
        for death in range(1, gate.count() + 1):
            assert gate.ask(death=death) in (KILLED, 1), death
            assert gate.ask() == 1, death
        bed.vmkeep.json("hook", "pass", "guest", "--yes")
        assert gate.ask() == 0
        for death in range(1, gate.count() + 1):
            bed.vmkeep.json("hook", "pass", "guest", "--yes")
            assert gate.ask(death=death) in (KILLED, 0), death
            gate.ask()  # it may have taken the leave before it died
            assert gate.ask() == 1, "a leave is for one start"
    finally:
        permall.write_bytes(newest)
    assert gate.ask() == 0


def test_hook_killed_while_a_vm_arrives_keeps_neither_it_nor_a_later_start_away(gate: _Gate) -> None:
    assert gate.ask("migrate") == 0
    for death in range(1, gate.count() + 1):
        assert gate.ask("migrate", death=death) in (KILLED, 0), death
        assert gate.ask("migrate") == 0, "libvirt is told to migrate it again"
        assert gate.ask() == 0
        assert gate.ask() == 0


def test_start_whose_hook_is_killed_fails_and_the_next_one_does_not(bed: _Bed) -> None:
    hook = bed.host.path("/etc/libvirt/hooks/qemu.d/vmkeep")
    text = hook.read_text()
    hook.write_text("#!/bin/sh\nkill -9 $$\n")
    try:
        with pytest.raises(libvirt.libvirtError, match="signal 9"):
            bed.vm.start(paused=True)
    finally:
        hook.write_text(text)
    bed.vm.start(paused=True)
    bed.vm.destroy()
