"""Calls to a libvirt that does not answer: the main thread is never held by one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import libvirt
import pytest

from vmkeep.cli.interruption import Interruption
from vmkeep.errors import GivenUp, HypervisorHangs, Interrupted
from vmkeep.hypervisor import Hypervisor, answers
from vmkeep.hypervisor.answers import impatient, silence


class Daemon:
    """A connection whose calls come back when they may. ``lives``: it answers what it is asked beside one."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.lives = False
        self.asked = threading.Event()

    def getHostname(self) -> str:  # noqa: N802  libvirt's name
        self.asked.set()
        self.may_answer.wait(30)
        return "alpha"

    def getLibVersion(self) -> int:  # noqa: N802  libvirt's name
        if not self.lives:
            self.may_answer.wait(30)
        return 9_000_000

    def getCapabilities(self) -> str:  # noqa: N802  libvirt's name
        return "<capabilities><host><uuid>u</uuid></host></capabilities>"

    def close(self) -> int:
        return 0


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    yield daemon
    daemon.may_answer.set()


@pytest.fixture
def hypervisor(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Hypervisor:
    monkeypatch.setattr(answers, "_DEAF_SECONDS", 0.1)
    monkeypatch.setattr(answers, "_ASK_AFTER_SECONDS", 0.05)
    connection, line = answers.connected(lambda _uri: cast("Any", daemon), "fake:///")
    return Hypervisor(connection, "fake:///", line)


def test_answer_comes_through(daemon: Daemon, hypervisor: Hypervisor) -> None:
    daemon.may_answer.set()
    assert hypervisor.identity() == ("u", "alpha")
    assert silence() is None


def test_ctrl_c_leaves_a_daemon_that_hangs_and_nothing_waits_for_it_again(
    daemon: Daemon, hypervisor: Hypervisor
) -> None:
    interruption = Interruption(lambda _: None)
    with interruption.installed():
        _signal_when(daemon.asked)
        with pytest.raises(GivenUp) as given:
            hypervisor.identity()
    assert isinstance(given.value.error, Interrupted)
    with pytest.raises(GivenUp):  # what clears up on the way out
        hypervisor.versions()
    hypervisor.close()


def test_ctrl_c_is_raised_when_the_call_of_a_daemon_that_lives_has_come_back(
    daemon: Daemon, hypervisor: Hypervisor
) -> None:
    daemon.lives = True
    came_back: list[float] = []

    def answer_later() -> None:
        daemon.asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        came_back.append(time.monotonic())
        daemon.may_answer.set()

    interruption = Interruption(lambda _: None)
    with interruption.installed():
        threading.Thread(target=answer_later).start()
        with pytest.raises(Interrupted):
            hypervisor.identity()
    assert came_back


def test_impatient_caller_is_let_go_and_the_line_is_good_again_later(daemon: Daemon, hypervisor: Hypervisor) -> None:
    with impatient(0.2):
        for _ in range(3):
            with pytest.raises(HypervisorHangs):
                hypervisor.identity()
        assert threading.active_count() < 10
        daemon.may_answer.set()
        while silence() is not None:
            time.sleep(0.01)
        assert hypervisor.identity() == ("u", "alpha")


def test_call_of_another_thread_is_seen_while_it_is_under_way(daemon: Daemon, hypervisor: Hypervisor) -> None:
    thread = threading.Thread(target=hypervisor.identity)
    thread.start()
    deadline = time.monotonic() + 5
    while (seen := silence()) is None or not seen.deaf:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert seen.doing == "tell the host's identity"
    daemon.may_answer.set()
    thread.join()
    assert silence() is None


def test_errors_of_libvirt_come_through() -> None:
    def refuse(_uri: str) -> Any:
        raise libvirt.libvirtError("no")

    with pytest.raises(libvirt.libvirtError):
        answers.connected(refuse, "fake:///")


def _signal_when(asked: threading.Event) -> None:
    def send() -> None:
        asked.wait(5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send).start()
