"""Calls to libvirt that may not come back, and the one place that every call goes through.

libvirt's client waits for an answer without limit, and goes on waiting after a signal (``poll`` is begun anew after
EINTR: virNetClientIOEventLoop of libvirt 9.0 and 11.3), so a daemon that hangs would hold a command for ever. Each
call is noted while it is under way, and whoever watches an operation can tell for how long (``silence``). A call of
the main thread, which takes the signals, is made in a thread beside it, and waited for with ``LibvirtPatience``.

What the connection gives (VMs, checkpoints, secrets) makes its calls over it, so ``Watched`` wraps those as well.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

import libvirt

from vmkeep.errors import GivenUp, HypervisorHangs, Interrupted, VmkeepError
from vmkeep.hypervisor.patience import LibvirtPatience, Silence
from vmkeep.hypervisor.release import free_unused
from vmkeep.threads import operation_here, working_for

# A call that takes longer is asked about. An answer to the question takes 0.2 ms.
_ASK_AFTER_SECONDS = 0.5
_ASK_EVERY_SECONDS = 1.0
_DEAF_SECONDS = 2.0
_LOOK_SECONDS = 0.05
# What takes as long as its data, its guest or its agent: libvirt ends these by itself, and a Ctrl-C is heard by others.
_LASTING: Final = frozenset(
    (
        "createWithFlags",
        "delete",
        "destroy",
        "fsFreeze",
        "fsInfo",
        "fsThaw",
        "restoreFlags",
        "revertToSnapshot",
        "snapshotCreateXML",
    )
)
_OBJECTS: Final = (
    libvirt.virDomain,
    libvirt.virDomainCheckpoint,
    libvirt.virDomainSnapshot,
    libvirt.virSecret,
    libvirt.virStoragePool,
    libvirt.virStorageVol,
)


class Line:
    """One connection to libvirt: whether the daemon at its other end answers."""

    def __init__(self) -> None:
        self.connection: libvirt.virConnect | None = None
        self.given_up: VmkeepError | None = None
        """Why nothing is waited for any more on this connection: a call over it has not come back."""
        self.left: _Call | None = None
        """The call that an impatient caller has left behind."""
        self._lock = threading.Lock()
        self._asked = -_ASK_EVERY_SECONDS
        self._asking = False

    def is_deaf(self) -> bool:
        """Return whether libvirtd answers nothing. It is asked for that, so ask again and again."""
        if self.connection is None:
            return True  # to connect waits for the daemon and for nothing else
        with self._lock:
            now = time.monotonic()
            if not self._asking and now - self._asked >= _ASK_EVERY_SECONDS:
                self._asking, self._asked = True, now
                threading.Thread(target=self._ask, name="vmkeep-libvirt-question", daemon=True).start()
            return self._asking and now - self._asked > _DEAF_SECONDS

    def _ask(self) -> None:
        assert self.connection is not None
        try:
            self.connection.getLibVersion()
        except libvirt.libvirtError:
            pass  # the connection is gone, and what waits for it comes back with the same
        finally:
            self._asking = False


@dataclass(eq=False, slots=True)
class _Call:
    """One call that is under way."""

    number: int
    doing: str
    line: Line | None
    lasting: bool
    operation: str
    since: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class _Attendance:
    """How the main thread waits: whom it tells, why it shall end, and for how long at most."""

    tell: Callable[[str], None] = lambda _sentence: None
    cancelled: Callable[[], VmkeepError | None] = lambda: None
    limit_seconds: float = float("inf")


class _Situation(threading.local):
    """What a thread is at: for what it calls libvirt, and how long it waits for a deaf daemon."""

    doing: str = ""
    patience_seconds: float | None = None


_numbers = itertools.count(1)
_calls: dict[int, _Call] = {}
_calls_lock = threading.Lock()
_newest_line: Line | None = None
_attendance = _Attendance()
_situation = _Situation()


# -- who waits, and who watches --------------------------------------------------------------------------------------


def attend(*, tell: Callable[[str], None], cancelled: Callable[[], VmkeepError | None], limit_seconds: float) -> None:
    """Let calls of the main thread be told of and ended. ``cancelled`` returns why the command was asked to end."""
    global _attendance
    _attendance = _Attendance(tell, cancelled, limit_seconds)


def silence(operation: str | None = None) -> Silence | None:
    """Return the oldest call that is under way for longer than a moment, or None: for an operation, or of all."""
    with _calls_lock:
        mine = (number for number, call in _calls.items() if operation in (None, call.operation))
        call = _calls.get(min(mine, default=0))
    if call is None or time.monotonic() - call.since < _ASK_AFTER_SECONDS:
        return None
    return _silence_of(call)


@contextmanager
def impatient(seconds: float) -> Iterator[None]:
    """Let calls of the main thread raise HypervisorHangs when libvirtd has answered nothing for so long.

    They are left under way: only what changes nothing may be called so.
    """
    before, _situation.patience_seconds = _situation.patience_seconds, seconds
    try:
        yield
    finally:
        _situation.patience_seconds = before


@contextmanager
def calling_for(doing: str) -> Iterator[None]:
    """Name what libvirt is called for ("suspend the VM")."""
    before, _situation.doing = _situation.doing, doing
    try:
        yield
    finally:
        _situation.doing = before


@contextmanager
def waiting_for(doing: str) -> Iterator[None]:
    """Note a wait for another process that calls libvirt for this one, however long it takes when libvirtd answers."""
    with _under_way(doing, _newest_line, lasting=True):
        yield


def _silence_of(call: _Call) -> Silence:
    deaf = call.line is not None and call.line.is_deaf()
    return Silence(call.number, call.doing, time.monotonic() - call.since, deaf, call.lasting)


@contextmanager
def _under_way(doing: str, line: Line | None, *, lasting: bool) -> Iterator[_Call]:
    call = _Call(next(_numbers), doing, line, lasting, operation_here())
    with _calls_lock:
        _calls[call.number] = call
    try:
        yield call
    finally:
        with _calls_lock:
            del _calls[call.number]


# -- the calls -------------------------------------------------------------------------------------------------------


def connected(open_uri: Callable[[str], libvirt.virConnect], uri: str) -> tuple[libvirt.virConnect, Line]:
    """Return a connection whose calls are watched. Raises what ``open_uri`` does, HypervisorHangs and GivenUp."""
    global _newest_line
    line = Line()
    with calling_for(f"connect to {uri}"):
        line.connection = _call(line, "open", lambda: open_uri(uri))
    _newest_line = line
    return cast("libvirt.virConnect", Watched(line.connection, line)), line


class Watched:
    """A connection, or something that one gave: what it has, with calls that are watched."""

    def __init__(self, thing: Any, line: Line) -> None:
        self._thing = thing
        self._line = line

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            plain = [each._thing if isinstance(each, Watched) else each for each in arguments]
            return self._watched(_call(self._line, name, lambda: value(*plain, **named)))

        return call

    def _watched(self, result: Any) -> Any:
        if isinstance(result, list):
            return [self._watched(each) for each in result]
        return Watched(result, self._line) if isinstance(result, _OBJECTS) else result


def _call(line: Line, name: str, call: Callable[[], Any]) -> Any:
    if line.given_up is not None:
        raise GivenUp(line.given_up)
    doing = _situation.doing or f"answer {name}"
    if threading.current_thread() is not threading.main_thread():
        with _under_way(doing, line, lasting=name in _LASTING):
            free_unused()
            return call()
    if line.left is not None and line.left.number in _calls and _situation.patience_seconds is not None:
        raise HypervisorHangs(_silence_of(line.left).message())
    return _wait_for(_Answer(line, doing, call, lasting=name in _LASTING))


class _Answer:
    """A call of the main thread that is made in a thread beside it."""

    def __init__(self, line: Line, doing: str, call: Callable[[], Any], *, lasting: bool) -> None:
        self.line = line
        self.came = threading.Event()
        self.is_left = False
        self.is_asked = False
        self._is_made = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.call: _Call | None = None
        self._operation = operation_here()
        self._doing = doing
        self._function = call
        self._lasting = lasting

    def make(self) -> None:
        """Make the call, once."""
        if self._is_made:
            return
        self._is_made = True
        try:
            with (
                working_for(self._operation),
                _under_way(self._doing, self.line, lasting=self._lasting) as self.call,
            ):
                free_unused()
                self.result = self._function()
        except BaseException as error:
            self.error = error
        finally:
            self.came.set()

    def silence(self) -> Silence | None:
        call = self.call
        return None if call is None or time.monotonic() - call.since < _ASK_AFTER_SECONDS else _silence_of(call)


class _Caller:
    """The thread beside the main thread. One whose call was left behind is never used again."""

    def __init__(self) -> None:
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="vmkeep-libvirt", daemon=True).start()

    def make(self, answer: _Answer) -> None:
        """Let the call be made. Asked for twice, because a signal came before that was noted, it is made once."""
        if not answer.is_asked:
            self._answers.put(answer)
            answer.is_asked = True

    def _work(self) -> None:
        while True:
            answer = self._answers.get()
            answer.make()
            if answer.is_left:
                return
            del answer


_caller: _Caller | None = None


def _begin_anew() -> None:
    """In a process that was forked: threads stay behind, and so does what they wait for."""
    global _caller
    _caller = None
    _calls.clear()


os.register_at_fork(after_in_child=_begin_anew)


def _wait_for(answer: _Answer) -> Any:
    """Return what the call returns. A Ctrl-C is raised when it has come back, or when libvirtd proves deaf."""
    global _caller
    caller, _caller = _caller or _Caller(), None
    patience = LibvirtPatience(_attendance.limit_seconds, tell=_attendance.tell)
    raised: BaseException | None = None
    while True:
        try:
            caller.make(answer)
            while not answer.came.wait(_LOOK_SECONDS):
                _look(answer, patience)
            break
        except (Interrupted, KeyboardInterrupt) as signalled:
            raised = raised or signalled
            patience.cancel(signalled if isinstance(signalled, Interrupted) else Interrupted("Interrupted by Ctrl-C"))
    _caller = caller
    if raised is not None:
        raise raised
    if answer.error is not None:
        raise answer.error
    return answer.result


def _look(answer: _Answer, patience: LibvirtPatience) -> None:
    """Raise GivenUp or HypervisorHangs when the answer is not to be waited for any more."""
    reason = _attendance.cancelled()
    if reason is not None:
        patience.cancel(reason)
    silence = answer.silence()
    try:
        patience.look(silence)
    except GivenUp as given:
        answer.line.given_up, answer.is_left = given.error, True
        raise
    limit = _situation.patience_seconds
    if limit is not None and silence is not None and silence.deaf and silence.seconds >= limit:
        answer.line.left, answer.is_left = answer.call, True
        raise HypervisorHangs(silence.message())
