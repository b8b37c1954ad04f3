"""The end of a backup job that a vmkeep which stands still is in the way of."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from vmkeep.host.guard import handshakes
from vmkeep.host.guard.handshakes import abort_job, allow_connections


class Owner:
    def __init__(self) -> None:
        self.killed = threading.Event()

    def kill_owner(self) -> None:
        self.killed.set()


class Job:
    """A VM whose job ends when nobody is in its way; to ask for its end does not come back before."""

    name = "guest"

    def __init__(self, in_the_way: Owner | None) -> None:
        self._in_the_way = in_the_way
        self.ended = False

    def abort_backup(self) -> None:
        assert self._in_the_way is None or self._in_the_way.killed.wait(10)
        self.ended = True

    def backup_socket(self) -> str | None:
        return None if self.ended else "/socket"


@pytest.mark.parametrize("stands_in_the_way", [True, False])
def test_owner_is_killed_when_the_job_does_not_end_because_of_it(
    monkeypatch: pytest.MonkeyPatch, stands_in_the_way: bool
) -> None:
    monkeypatch.setattr(handshakes, "_ANSWER_SECONDS", 0.01 if stands_in_the_way else 60.0)
    monkeypatch.setattr(handshakes, "answers_handshakes", lambda _socket, _seconds: True)
    owner = Owner()
    job = Job(owner if stands_in_the_way else None)
    abort_job(cast("Any", job), "/socket", "", owner)
    assert job.ended
    assert owner.killed.is_set() is stands_in_the_way


def test_server_is_asked_by_the_first_who_ends_the_job_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its handshake would be in the way of the end that was asked for already."""
    asked: list[str] = []

    def answers(socket: str, _seconds: float) -> bool:
        asked.append(socket)
        return True

    monkeypatch.setattr(handshakes, "answers_handshakes", answers)
    allow_connections(tmp_path)
    for _ in range(3):
        job = Job(None)
        abort_job(cast("Any", job), "/socket", str(tmp_path))
        assert job.ended
    assert asked == ["/socket"]
