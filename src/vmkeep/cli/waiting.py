"""A VM that another operation holds is waited for, as long as `--wait` says."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from vmkeep.errors import InvalidRequest, VmBusy
from vmkeep.host.tasks.survey import Progress
from vmkeep.spans import SPAN_FORMS, span_seconds, span_text

if TYPE_CHECKING:
    from vmkeep.cli.session import Session
    from vmkeep.flows.engine import Engine

R = TypeVar("R")
_LOOK_SECONDS = 0.5
# What libvirt refuses leaves a failed operation in the log each time.
_BUSY_SECONDS = (5.0, 15.0, 60.0)


def wait_seconds(text: str | None) -> int:
    """Return how long is waited; 0 without the option. Raises InvalidRequest for what is no length of time."""
    seconds = 0 if text is None else span_seconds(text)
    if seconds is None:
        raise InvalidRequest(f"{text!r} is no length of time", hint=f"Write it as {SPAN_FORMS}.")
    return seconds


def when_free(
    running: Session,
    engine: Engine,
    vm: str,
    seconds: float,
    call: Callable[[Callable[[Progress], None]], R],
) -> R:
    """Call ``call`` with what watches progress, when no operation holds the VM, or the time is over.

    A VM is held by an operation of this installation, or by a job of libvirt's that refuses ``call``: then it is called
    again. Raises VmBusy when it is held to the end of the time, and what a signal raises meanwhile.
    """
    until = time.monotonic() + seconds
    told: set[str] = set()
    tries = 0
    with running.console.progress() as watch:
        while True:
            held_by = engine.holder_of(vm) if time.monotonic() < until else None
            pause = _LOOK_SECONDS
            if held_by is None:
                try:
                    return call(watch)
                except VmBusy as busy:
                    if time.monotonic() >= until:
                        raise
                    held_by = busy.message
                    pause = _BUSY_SECONDS[min(tries, len(_BUSY_SECONDS) - 1)] if engine.holder_of(vm) is None else pause
                    tries += 1
            if held_by not in told:
                told.add(held_by)
                running.console.remark(f"{vm}: waiting, for {span_text(seconds)} at most, for what holds it: {held_by}")
            watch(Progress(f"waiting for {held_by}"))
            _sleep(running, min(pause, max(0.0, until - time.monotonic())))


def _sleep(running: Session, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        running.interruption.check()
        time.sleep(min(left, _LOOK_SECONDS))
    running.interruption.check()
