"""However a task ends that did not do its work, its flow hears an error of ours."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

import pytest

from vmkeep.config import load_settings
from vmkeep.errors import GivenUp, Stalled
from vmkeep.host import local
from vmkeep.host.local import LocalHost
from vmkeep.host.protocol import TaskState
from vmkeep.host.tasks.restores import PublishItems
from vmkeep.host.tasks.task import Task

TASK: Task[tuple[str, ...]] = PublishItems((), force=False)


def _end(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> TaskState:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(local, "_carry_out", fail)
    host = LocalHost(load_settings(home="/nowhere", environ={}))
    host.start("operation", TASK)
    return host.poll("operation", 10)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/vmkeep/x"), "no-space"),
        (OSError(errno.EIO, "Input/output error"), "store-error"),
        (OSError(errno.EMFILE, "Too many open files"), "host-exhausted"),
        (MemoryError(), "host-exhausted"),
        (GivenUp(Stalled("it hangs")), "stalled"),
        (SystemExit(3), "internal-error"),
        (KeyboardInterrupt(), "internal-error"),
        (KeyError("vda"), "internal-error"),
    ],
)
def test_task_that_did_not_do_its_work_has_an_error(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: str
) -> None:
    state = _end(monkeypatch, raised)
    assert state.ended
    assert state.error is not None
    assert state.error.code == code


def test_task_for_which_no_thread_can_be_had_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse: Callable[[threading.Thread], None] = lambda _thread: (_ for _ in ()).throw(  # noqa: E731
        RuntimeError("can't start new thread")
    )
    monkeypatch.setattr(threading.Thread, "start", refuse)
    host = LocalHost(load_settings(home="/nowhere", environ={}))
    host.start("operation", TASK)
    state = host.poll("operation")
    assert state.ended
    assert state.error is not None
    assert state.error.code == "host-exhausted"
