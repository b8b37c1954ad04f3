"""How long libvirt is waited for: told after a while, given up at the limit, soon after Ctrl-C, never when it works."""

from __future__ import annotations

import pytest

from vmkeep.errors import GivenUp, HypervisorHangs, Interrupted
from vmkeep.hypervisor import patience
from vmkeep.hypervisor.patience import LibvirtPatience, Silence


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Wait:
    """A wait that is looked at ten times a second."""

    def __init__(self, clock: Clock, limit_seconds: float = 900) -> None:
        self.clock = clock
        self.said: list[str] = []
        self.patience = LibvirtPatience(limit_seconds, tell=self.said.append)

    def look(self, seconds: float, *, number: int = 1, deaf: bool = True, lasting: bool = False) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.now += 0.1
            self.patience.look(Silence(number, "suspend the VM 'guest'", 0.0, deaf, lasting))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    return clock


def test_daemon_that_answers_nothing_is_told_after_ten_seconds_and_given_up_at_the_limit(clock: Clock) -> None:
    wait = Wait(clock, 60)
    wait.look(9)
    assert wait.said == []
    wait.look(50)
    assert wait.said == ["libvirt has answered nothing for 10 s, asked to suspend the VM 'guest'; waiting"]
    with pytest.raises(GivenUp) as given:
        wait.look(2)
    assert isinstance(given.value.error, HypervisorHangs)


def test_call_that_takes_long_of_a_daemon_that_lives_is_told_as_that(clock: Clock) -> None:
    wait = Wait(clock)
    wait.look(11, deaf=False)
    assert wait.said == [
        "libvirt has been at it for 10 s, asked to suspend the VM 'guest'; it answers other questions; waiting"
    ]


def test_call_that_may_take_long_is_waited_for_as_long_as_the_daemon_lives(clock: Clock) -> None:
    wait = Wait(clock, 60)
    wait.patience.cancel(Interrupted("Interrupted by Ctrl-C"))
    wait.look(3600, deaf=False, lasting=True)
    assert wait.said == []
    with pytest.raises(GivenUp):
        wait.look(1, lasting=True)

    wait = Wait(clock, 60)
    wait.look(3600, deaf=False, lasting=True)
    wait.look(50, lasting=True)  # from here on it waits for libvirtd
    assert len(wait.said) == 1
    with pytest.raises(GivenUp):
        wait.look(10, lasting=True)


def test_ctrl_c_ends_the_wait_for_a_deaf_daemon_at_once_and_for_another_after_some_seconds(clock: Clock) -> None:
    wait = Wait(clock)
    wait.look(1)
    wait.patience.cancel(Interrupted("Interrupted by Ctrl-C"))
    with pytest.raises(GivenUp) as given:
        wait.look(0.1)
    assert isinstance(given.value.error, Interrupted)
    assert "answered nothing" in given.value.error.__notes__[0]
    assert "put right" in given.value.error.hint

    wait = Wait(clock)
    wait.look(1, deaf=False)
    wait.patience.cancel(Interrupted("Interrupted by Ctrl-C"))
    wait.look(4.8, deaf=False)
    with pytest.raises(GivenUp):
        wait.look(0.4, deaf=False)


def test_calls_that_come_back_and_a_process_that_was_stopped_are_no_wait(clock: Clock) -> None:
    wait = Wait(clock, 12)
    for number in range(1, 20):
        wait.look(8, number=number)
    wait.look(1, number=30)
    clock.now += 3600
    wait.look(1, number=30)
    assert wait.said == []
