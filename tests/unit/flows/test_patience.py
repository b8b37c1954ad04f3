"""How long a command waits for the repository's storage: told after a while, given up in the end, soon when asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from vmkeep.errors import GivenUp, Interrupted, NoSpace, Stalled
from vmkeep.flows import patience
from vmkeep.flows.patience import Patience, patiently
from vmkeep.host.tasks.survey import Progress
from vmkeep.repository import Unanswered, unanswered
from vmkeep.repository.answers import under_way


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


class Wait:
    """A wait that is looked at twice a second."""

    def __init__(self, clock: Clock, limit_seconds: float) -> None:
        self.clock = clock
        self.notes: list[str | None] = []
        self.freed = 0
        self.patience = Patience(limit_seconds, watch=self._watch, let_go=self._free)

    def _watch(self, report: Progress) -> None:
        self.notes.append(report.note)

    def _free(self) -> None:
        self.freed += 1

    def look(self, seconds: float, *, number: int = 1) -> None:
        for _ in range(round(seconds * 2)):
            self.clock.now += 0.5
            self.patience.look(Unanswered(number, "/mnt/packs/ab", 0.0))


def test_call_that_does_not_come_back_is_told_once_and_given_up_at_the_limit(clock: Clock) -> None:
    wait = Wait(clock, 60)
    wait.look(9)
    assert wait.notes == []
    wait.look(50)
    assert len(wait.notes) == 1
    assert "/mnt/packs/ab" in str(wait.notes[0])
    assert wait.freed == 0
    with pytest.raises(GivenUp) as given:
        wait.look(2)
    assert isinstance(given.value.error, Stalled)
    assert given.value.error.path == "/mnt/packs/ab"
    assert wait.freed == 1


def test_calls_that_come_back_are_no_stall_however_many_there_are(clock: Clock) -> None:
    wait = Wait(clock, 10)
    for number in range(1, 20):
        wait.look(8, number=number)
    assert wait.notes == []


def test_cancelled_operation_frees_the_guest_at_once_and_gives_up_soon(clock: Clock) -> None:
    wait = Wait(clock, 900)
    wait.look(5)
    wait.patience.cancel(Interrupted("Interrupted by Ctrl-C"))
    wait.look(1)
    assert wait.freed == 1
    with pytest.raises(GivenUp) as given:
        wait.look(5)
    assert isinstance(given.value.error, Interrupted)
    assert "/mnt/packs/ab" in given.value.error.__notes__[0]
    assert wait.freed == 1


def test_process_that_was_stopped_has_not_waited(clock: Clock) -> None:
    wait = Wait(clock, 60)
    wait.look(1)
    clock.now += 3600
    wait.look(1)
    assert wait.notes == []


def test_what_a_call_to_the_repository_returns_or_raises_comes_through() -> None:
    assert patiently(lambda: 7, 10, watch=_unwatched) == 7
    with pytest.raises(NoSpace):
        patiently(_full, 10, watch=_unwatched)


def test_call_that_hangs_is_left_behind() -> None:
    back = threading.Event()

    def hang() -> None:
        with under_way("/mnt/points/1"):
            back.wait(30)

    try:
        with pytest.raises(GivenUp) as given:
            patiently(hang, 0.3, watch=_unwatched)
        assert given.value.error.path == "/mnt/points/1"
    finally:
        back.set()
    deadline = time.monotonic() + 5
    while unanswered() is not None:  # what was left behind comes back after all
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_oldest_call_under_way_is_told() -> None:
    assert unanswered() is None
    with under_way("/a"), under_way("/b"):
        waiting = unanswered()
        assert waiting is not None
        assert waiting.path == "/a"
    assert unanswered() is None


def _unwatched(_progress: Progress) -> None:
    return


def _full() -> Callable[[], None]:
    raise NoSpace("full")
