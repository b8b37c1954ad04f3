"""A rescue with a guest agent that its guest controls: it ends, all else is undone, and the thaw is not forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from vmkeep.errors import AgentUnavailable, VmBusy
from vmkeep.host.guard import rescue as safety
from vmkeep.host.guard import snapshot_rescue
from vmkeep.host.guard.rescue import JobRecord, Stage, carry_out, let_guest_go_on, rescue, rescue_abandoned
from vmkeep.host.records.snapshot import SnapshotRecord
from vmkeep.host.vm import thawing
from vmkeep.hypervisor import Hypervisor, RunState
from vmkeep.hypervisor.domain import DomainState

_UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
_SOCKET = "/nowhere/vmkeep.sock"


@dataclass(slots=True)
class Clock:
    """Time that passes while somebody sleeps, or waits for an agent."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass(slots=True)
class FakeDomain:
    """A VM with a backup job of ours, and an agent that answers a thaw as ``answer`` does."""

    clock: Clock
    answer: Callable[[int], int]
    name: str = "linux"
    run: RunState = RunState.PAUSED
    socket: str | None = _SOCKET
    checkpoints: set[str] = field(default_factory=lambda: {"vmkeep-1"})
    thaws: list[float] = field(default_factory=list)

    def state(self) -> DomainState:
        return DomainState(self.run, io_error=False)

    def resume(self) -> None:
        self.run = RunState.RUNNING

    def thaw(self, answer_seconds: int = 60) -> int:
        assert self.run is RunState.RUNNING, "a guest that stands still cannot thaw"
        self.thaws.append(answer_seconds)
        return self.answer(answer_seconds)

    def backup_socket(self) -> str | None:
        return self.socket

    def abort_backup(self) -> None:
        self.socket = None

    def checkpoint_names(self) -> set[str]:
        return self.checkpoints

    def delete_checkpoint(self, name: str) -> None:
        self.checkpoints.remove(name)

    def has_job(self) -> bool:
        return self.socket is not None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (safety, snapshot_rescue, thawing):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(safety, "_has_begun", lambda _record: True)
    return clock


def refuses(_seconds: int) -> int:
    error = AgentUnavailable("the guest agent of the VM could not thaw the guest's file systems: no", vm="linux")
    error.refused = True
    raise error


def silent(clock: Clock) -> Callable[[int], int]:
    def answer(seconds: int) -> int:
        clock.sleep(seconds)
        raise AgentUnavailable("the guest agent of the VM could not thaw: it does not answer", vm="linux")

    return answer


def held(clock: Clock) -> Callable[[int], int]:
    def answer(_seconds: int) -> int:
        clock.sleep(30)
        raise VmBusy("another job holds the VM", vm="linux")

    return answer


def at_libvirt(domain: FakeDomain) -> Any:
    secrets = SimpleNamespace(forget=lambda _uuid: False)
    return SimpleNamespace(find_uuid=lambda _uuid: domain, secrets=secrets)


def record(**changes: Any) -> JobRecord:
    plain = JobRecord(
        operation="0" * 32,
        uri="qemu:///system",
        vm="linux",
        uuid=_UUID,
        checkpoint="vmkeep-1",
        socket=_SOCKET,
        was_running=True,
        scratch=(),
        quiesced=True,
    )
    return replace(plain, **changes)


def snapshot_record(tmp_path: Path) -> JobRecord:
    keepsake = SnapshotRecord(
        operation="0" * 32,
        uri="qemu:///system",
        vm="linux",
        vm_uuid=_UUID,
        name="s",
        begun=0,
        kind="disks",
        was_running=True,
        stopped=False,
        sources=(),
        overlays=(),
        checkpoints=(),
        memory_file="",
        quiesced=True,
        left_out=(),
        warnings=(),
        reused=False,
    )
    keepsake.save(tmp_path)
    return record(keepsake=str(tmp_path / ("0" * 32)))


def test_agent_that_says_for_ever_that_it_thawed_is_believed_after_a_while(clock: Clock) -> None:
    domain = FakeDomain(clock, lambda _seconds: 1)
    rescue(record(), at_libvirt(domain))
    assert clock.now < 1000 + 15
    assert (domain.run, domain.socket, domain.checkpoints) == (RunState.RUNNING, None, set())


def test_agent_that_says_for_ever_that_it_thawed_holds_up_no_snapshot(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot_rescue, "DomainSnapshots", lambda _domain: SimpleNamespace(names=lambda: ["s"]))
    domain = FakeDomain(clock, lambda _seconds: 1)
    rescue(snapshot_record(tmp_path), at_libvirt(domain))
    assert clock.now < 1000 + 15
    assert domain.run is RunState.RUNNING


@pytest.mark.parametrize(("agent", "limit_seconds"), [("refuses", 15), ("silent", 90), ("held", 130)])
def test_job_and_checkpoint_go_whatever_the_agent_says(clock: Clock, agent: str, limit_seconds: float) -> None:
    """Seen before: the scratch of a job that was never ended grew with all that the guest wrote."""
    answer = {"refuses": refuses, "silent": silent(clock), "held": held(clock)}[agent]
    domain = FakeDomain(clock, answer)
    with pytest.raises(AgentUnavailable) as told:
        rescue(record(), at_libvirt(domain))
    assert (domain.run, domain.socket, domain.checkpoints) == (RunState.RUNNING, None, set())
    assert len(domain.thaws) > 1
    assert clock.now < 1000 + limit_seconds
    assert "virsh domfsthaw linux" in told.value.hint


def test_agent_that_comes_back_thaws(clock: Clock) -> None:
    begun = clock.now
    domain = FakeDomain(clock, lambda seconds: silent(clock)(seconds) if clock.now < begun + 40 else 0)
    rescue(record(), at_libvirt(domain))
    assert domain.socket is None


def test_guest_of_a_late_vmkeep_is_thawed_too(clock: Clock) -> None:
    """vmkeep was stopped right before its freeze, went on when its time was over, froze, and was killed."""
    frozen = [1]
    domain = FakeDomain(clock, lambda _seconds: frozen.pop() if frozen else 0, run=RunState.RUNNING)
    rescue(record(stage=Stage.LATE), at_libvirt(domain))
    assert frozen == []


@pytest.mark.parametrize("stage", [Stage.PREPARING, Stage.COPY, Stage.KEEP])
def test_guest_that_is_frozen_by_others_is_left_so(clock: Clock, stage: Stage) -> None:
    domain = FakeDomain(clock, lambda _seconds: 1, run=RunState.RUNNING)
    rescue(record(stage=stage), at_libvirt(domain))
    assert domain.thaws == []


def test_guest_that_went_on_is_told_as_late_also_when_its_agent_does_not_thaw(clock: Clock) -> None:
    """Else vmkeep could take for one instant what it read before and after."""
    domain = FakeDomain(clock, refuses)
    assert let_guest_go_on(record(), at_libvirt(domain))
    assert domain.run is RunState.RUNNING


def test_thaw_that_failed_is_tried_again_by_the_next_command_once_and_told(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = FakeDomain(clock, silent(clock), run=RunState.RUNNING)
    monkeypatch.setattr(Hypervisor, "connect", lambda _uri: at_libvirt(domain))
    monkeypatch.setattr(safety, "stand_on", lambda hypervisor: hypervisor)
    kept = record().save(tmp_path)
    first = rescue_abandoned(tmp_path)
    assert json.loads(kept.read_text())["stage"] == "frozen"
    asked, begun = len(domain.thaws), clock.now
    again = rescue_abandoned(tmp_path)
    assert len(domain.thaws) == asked + 1
    assert clock.now - begun <= 5
    for told in (*first, *again):
        assert "virsh domfsthaw linux" in told
    domain.answer = lambda _seconds: 1
    assert rescue_abandoned(tmp_path) == ("the guest of VM 'linux' is thawed",)
    assert not kept.exists()


@pytest.mark.parametrize("gone", ["off", "undefined"])
def test_vm_that_ended_needs_no_thaw(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str) -> None:
    domain = FakeDomain(clock, refuses, run=RunState.OFF, socket=None, checkpoints=set())
    libvirt = at_libvirt(domain)
    if gone == "undefined":
        libvirt.find_uuid = lambda _uuid: None
    monkeypatch.setattr(Hypervisor, "connect", lambda _uri: libvirt)
    monkeypatch.setattr(safety, "stand_on", lambda hypervisor: hypervisor)
    kept = record(stage=Stage.FROZEN).save(tmp_path)
    rescue_abandoned(tmp_path)
    assert (domain.thaws, kept.exists()) == ([], False)


def test_record_of_a_guest_that_may_be_frozen_stays_and_says_so(tmp_path: Path) -> None:
    path = record().save(tmp_path)
    with pytest.raises(AgentUnavailable):
        carry_out(path, record(), lambda: cast("None", refuses(0)))
    assert json.loads(path.read_text())["stage"] == "frozen"
