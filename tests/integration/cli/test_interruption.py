"""Signals are handed to the operation that runs, and are raised when none does."""

from __future__ import annotations

import os
import signal

import pytest

from vmkeep.cli.interruption import Interruption
from vmkeep.errors import Interrupted, Terminated


def test_signal_without_operation_is_raised() -> None:
    with Interruption(lambda _: None).installed():
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)


def test_signal_asks_the_running_operation_to_stop_and_is_said_once() -> None:
    asked: list[Interrupted] = []
    said: list[str] = []
    interruption = Interruption(said.append)
    with interruption.installed(), interruption.handed_to(asked.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert [type(reason) for reason in asked] == [Terminated, Terminated]
    assert len(said) == 1
    with pytest.raises(Terminated):
        interruption.check()


def test_signal_is_raised_when_an_import_is_over() -> None:
    """Raised within, others took it for the failure of what they tried to import (seen)."""
    reached = False
    interruption = Interruption(lambda _: None)
    with interruption.installed():
        with pytest.raises(Terminated), interruption.postponed():  # noqa: PT012  it goes on after the signal
            os.kill(os.getpid(), signal.SIGTERM)
            reached = True
        with pytest.raises(Interrupted):  # and from here on at once
            os.kill(os.getpid(), signal.SIGINT)
    assert reached


class _Gone:
    """Python swallows what is raised while an object is taken away, or in a callback of one, as imports have."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_signal_that_python_swallowed_lets_no_operation_begin(capsys: pytest.CaptureFixture[str]) -> None:
    interruption = Interruption(lambda _: None)
    with interruption.installed():
        gone = [_Gone()]
        gone.clear()
        with pytest.raises(Interrupted), interruption.handed_to(lambda _: None):
            pass
    assert capsys.readouterr().err == ""


def test_handlers_of_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption(lambda _: None).installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
