"""What every host does with tasks, wherever it is: the machine at hand, and later one behind an agent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.host import made_up
from tests.contract.host.made_up import STORAGE, Answer, Fail, Stall, Work, begun, go_on
from vmkeep.config import load_settings
from vmkeep.errors import Interrupted, NoSpace, VmBusy
from vmkeep.host import local
from vmkeep.host.local import LocalHost
from vmkeep.host.protocol import Host, TaskState
from vmkeep.host.tasks.locks import HoldVm, LetVmGo, WhoHoldsVm


@pytest.fixture(params=["local"])
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    rooms = local._desk
    monkeypatch.setattr(local, "_desk", lambda noun: made_up.carry_out if noun == "made_up" else rooms(noun))
    begun.clear()
    go_on.clear()
    repository: Callable[[], Any] = lambda: None  # noqa: E731
    yield LocalHost(load_settings(home=str(tmp_path), environ={}), repository)
    go_on.set()


def _ended(host: Host, operation: str) -> TaskState:
    state = host.poll(operation, 10)
    assert state.ended
    return state


def _seen(host: Host, operation: str, what: Callable[[TaskState], bool]) -> TaskState:
    """Poll until a state of an operation that goes on is as it should be."""
    deadline = time.monotonic() + 10
    while not what(state := host.poll(operation)):
        assert not state.ended
        assert time.monotonic() < deadline
    return state


def test_short_task_is_answered_at_once(host: Host) -> None:
    assert host.ask(Answer("yes")) == "yes"


def test_short_task_that_fails_raises_its_error(host: Host) -> None:
    with pytest.raises(NoSpace, match="/full"):
        host.ask(Fail("/full"))


def test_task_that_was_begun_ends_with_its_answer(host: Host) -> None:
    host.start("one", Answer("yes"))
    assert _ended(host, "one").result == "yes"


def test_answer_that_was_lost_is_there_when_it_is_asked_for_again(host: Host) -> None:
    host.start("one", Answer("yes"))
    assert [_ended(host, "one").result for _ in range(3)] == ["yes"] * 3
    host.start("one", Answer("yes"))  # that it had begun was lost as well
    assert _ended(host, "one").result == "yes"


def test_task_that_runs_is_begun_only_once(host: Host) -> None:
    host.start("one", Work())
    host.start("one", Work())
    _seen(host, "one", lambda state: state.progress is not None)
    go_on.set()
    assert _ended(host, "one").result == "done"
    assert begun == [Work()]


def test_error_of_a_task_is_told_and_not_raised(host: Host) -> None:
    host.start("one", Fail("/full"))
    state = _ended(host, "one")
    assert state.result is None
    assert isinstance(state.error, NoSpace)
    assert state.error.path == "/full"


def test_progress_is_told_while_a_task_runs(host: Host) -> None:
    host.start("one", Work())
    state = _seen(host, "one", lambda state: state.progress is not None)
    assert state.progress is not None
    assert (state.progress.stage, state.progress.done_bytes, state.progress.total_bytes) == ("working", 1, 2)


def test_cancelled_task_ends_with_the_reason(host: Host) -> None:
    host.start("one", Work())
    host.cancel("one", Interrupted("Ctrl-C"))
    state = _ended(host, "one")
    assert isinstance(state.error, Interrupted)


def test_what_undoes_a_cancelled_task_is_not_cancelled(host: Host) -> None:
    host.start("one", Work())
    host.cancel("one", Interrupted("Ctrl-C"))
    _ended(host, "one")
    go_on.set()
    host.start("one", Work())
    assert _ended(host, "one").result == "done"


def test_task_that_stalls_tells_what_it_waits_for(host: Host) -> None:
    host.start("one", Stall())
    state = _seen(host, "one", lambda state: state.unanswered is not None)
    assert state.unanswered is not None
    assert state.unanswered.path == STORAGE
    go_on.set()
    assert _ended(host, "one").unanswered is None


def test_of_two_operations_only_the_one_that_stalls_waits(host: Host) -> None:
    host.start("one", Stall())
    _seen(host, "one", lambda state: state.unanswered is not None)
    host.start("two", Work())
    other = _seen(host, "two", lambda state: state.progress is not None)
    assert other.unanswered is None
    host.cancel("two", Interrupted("Ctrl-C"))
    assert isinstance(_ended(host, "two").error, Interrupted)
    assert not host.poll("one").ended
    go_on.set()
    assert _ended(host, "one").error is None


def test_vm_is_held_by_an_operation_until_it_lets_go(host: Host) -> None:
    host.ask(HoldVm("one", "uuid", "guest", "a repair"))
    assert "a repair" in (host.ask(WhoHoldsVm("uuid")) or "")
    with pytest.raises(VmBusy, match="a repair"):
        host.ask(HoldVm("two", "uuid", "guest", "another", wait=False))
    host.ask(LetVmGo("two"))  # it holds nothing
    assert host.ask(WhoHoldsVm("uuid")) is not None
    host.ask(LetVmGo("one"))
    assert host.ask(WhoHoldsVm("uuid")) is None
    host.ask(HoldVm("two", "uuid", "guest", "another", wait=False))
    host.ask(LetVmGo("two"))
