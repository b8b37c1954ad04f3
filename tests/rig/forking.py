"""vmkeep's commands without the start of Python: a process in the host has imported it, and forks for each.

Half a second of processor time for each command is imports, a third of the whole test run. The command itself is what
it always is: the entry point of the installed script in a process of its own, with its environment, folder, streams
and exit status. So are the guardians that it starts: processes of their own, leaders of a session, with nothing of the
command's but the socket that they are given. The drivers of the crash tests are forked too, and fork in turn.

Run as a script, this is that process; `CommandForks` is who asks it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol

_REQUEST_BYTES = 256 * 1024
# What these change, a process that runs already has behind it: they need one that starts with them.
_OF_A_START = ("LD_", "PYTHON", "LC_", "LANG", "MALLOC_", "GLIBC_", "TZ")


class Place(Protocol):
    """What of a host is asked."""

    @property
    def dir(self) -> Path: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    def popen(
        self, command: Sequence[str | Path], *, stdin: int, stdout: int, stderr: int
    ) -> subprocess.Popen[str]: ...


def can_fork(env: Mapping[str, str]) -> bool:
    """Return whether a command with these additions to its environment may be forked."""
    return not any(name.startswith(_OF_A_START) for name in env)


class CommandForks:
    """Who forks the commands of one host. ``close`` ends it; commands that run go on."""

    def __init__(self, host: Place) -> None:
        self._host = host
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = own
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
        with its:
            self._process = host.popen(
                [sys.executable, Path(__file__).resolve(), _ROOM_FOR_WORDS],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def run(
        self, command: Sequence[str | Path], env: Mapping[str, str], text: str | None, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end. ``env`` is added to the host's environment, ``text`` is its input."""
        words = [str(word) for word in command]
        (its_input, to), (out, its_output), (err, its_errors) = (os.pipe() for _ in range(3))
        status = self._ask("command", words, env, [its_input, its_output, its_errors])
        with os.fdopen(status) as told:
            output, errors = _exchanged(to, out, err, text, timeout_seconds, words)
            return subprocess.CompletedProcess(words, int(told.read()), output, errors)

    def driver(self, script: Path) -> Driver:
        """Fork a process that runs a script's ``main``; its errors go where those of this process go."""
        (its_input, to), (out, its_output) = (os.pipe() for _ in range(2))
        status = self._ask("driver", [str(script)], {}, [its_input, its_output, os.dup(2)])
        return Driver(to, out, status)

    def _ask(self, kind: str, words: list[str], env: Mapping[str, str], streams: list[int]) -> int:
        """Send a request with its streams, which are its own then; return where it tells how it ended."""
        status, its_status = os.pipe()
        theirs = [*streams, its_status]
        request = {
            "kind": kind,
            "words": words,
            "env": {**self._host.environment, **env},
            "folder": str(self._host.dir),
            "umask": _umask(),
        }
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return status

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)


class Driver:
    """A forked process that reads its requests; what of ``subprocess.Popen`` is used of one that was started."""

    def __init__(self, stdin: int, stdout: int, status: int) -> None:
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)
        self._status = status

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return its exit status. Raises TimeoutExpired."""
        ready, _, _ = select.select([self._status], [], [], timeout)
        if not ready:
            raise subprocess.TimeoutExpired("driver", timeout)
        with os.fdopen(self._status) as told:
            return int(told.read() or -signal.SIGKILL)


def _umask() -> int:
    """Return this process's, which os.umask only tells to who changes it, for all threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


def _exchanged(
    to: int, out: int, err: int, text: str | None, timeout_seconds: float, words: list[str]
) -> tuple[str, str]:
    """Write the input, and read both streams to their ends: whoever a command leaves behind holds neither."""
    pending = memoryview((text or "").encode())
    os.set_blocking(to, False)
    texts: dict[int, bytearray] = {out: bytearray(), err: bytearray()}
    deadline = time.monotonic() + timeout_seconds
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(err, selectors.EVENT_READ)
        if pending:
            selector.register(to, selectors.EVENT_WRITE)
        else:
            os.close(to)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(words, timeout_seconds, bytes(texts[out]), bytes(texts[err]))
            for key, _ in ready:
                if key.fd == to:
                    with suppress(BrokenPipeError):
                        pending = pending[os.write(to, pending) :]
                        if pending:
                            continue
                else:
                    content = os.read(key.fd, 65536)
                    texts[key.fd] += content
                    if content:
                        continue
                selector.unregister(key.fd)
                os.close(key.fd)
    return texts[out].decode(), texts[err].decode()


# -- the process that forks ---------------------------------------------------------------------------------------

_PROJECT = Path(__file__).resolve().parents[2]
# Written over with the words of a guardian, which tests, and people, look for in the list of processes.
_ROOM_FOR_WORDS = "-" * 1000
# What commands import only when they need it, besides vmkeep's own modules.
_IMPORTED_LATE = (
    "alembic.command",
    "alembic.ext.checkconstraint_byname",
    "dbos._sys_db_sqlite",
    "encodings.ascii",
    "fractions",
    "mako.template",
    "markupsafe",
    "obstore",
    "pydantic._internal._schema_generation_shared",
    "pydantic.json_schema",
    "pydantic.main",
    "pydantic.plugin._loader",
    "pydantic.plugin._schema_validator",
    "pydantic.type_adapter",
    "sqlalchemy.ext.compiler",
    "typer._adapters",
)


def _serve() -> None:
    _import_all()
    asked = socket.socket(fileno=os.dup(0))
    guardians, asks_for_guardian = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    guardians.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _REQUEST_BYTES)
    asks_for_guardian.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REQUEST_BYTES)
    ended, its_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(its_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    waiting: dict[int, int] = {}
    gc.freeze()  # what is here stays: a collection in a fork would copy all of it
    while True:
        ready, _, _ = select.select([asked.fileno(), guardians.fileno(), ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _tell_ends(waiting)
        for source in (asked, guardians):
            if source.fileno() not in ready:
                continue
            message, descriptors, _, _ = socket.recv_fds(source, _REQUEST_BYTES, 4)
            if not message:
                return
            for_guardian = source is guardians
            # One fork, not one more to wait for it: each costs 15 ms of a processor, a third of a short command.
            child = os.fork()
            if child == 0:
                _leave_the_server(asked, guardians, ended, its_end, *waiting.values())
                become = _become_guardian if for_guardian else partial(_become, asks_for_guardian)
                become(json.loads(message), descriptors)
            *streams, told = descriptors
            if for_guardian:
                os.write(told, str(child).encode())
                os.close(told)
            else:
                waiting[child] = told
            for descriptor in streams:
                os.close(descriptor)


def _leave_the_server(*mine: socket.socket | int) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in mine:
        os.close(each) if isinstance(each, int) else each.close()


def _tell_ends(waiting: dict[int, int]) -> None:
    """Tell of each child that has ended how it did; of guardians nobody is told."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            told = waiting.pop(ended[0], None)
            if told is not None:
                with suppress(BrokenPipeError):
                    os.write(told, str(os.waitstatus_to_exitcode(ended[1])).encode())
                os.close(told)


def _import_all() -> None:
    """Import what a command may import, before the forks: they find it there."""
    import vmkeep.cli.main

    for module in pkgutil.walk_packages(vmkeep.__path__, "vmkeep."):
        if ".migrations." not in module.name:  # scripts of Alembic, which it runs itself
            importlib.import_module(module.name)
    for name in ("vmkeep.catalog.migrations.upgrade", *_IMPORTED_LATE):
        with suppress(ImportError):  # of another release of the library
            importlib.import_module(name)


def _become(asks_for_guardian: socket.socket, request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Become a command or driver, in a process that was forked for it."""
    *streams, told = descriptors
    os.close(told)
    _take_streams(streams)
    _surround(request)
    _Guardians(asks_for_guardian).take_over()
    if request["kind"] == "command":
        _become_command(request["words"])
    _become_driver(request["words"])


def _surround(request: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    os.umask(request["umask"])


def _take_streams(streams: Sequence[int]) -> None:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)


def _become_command(words: list[str]) -> NoReturn:
    from vmkeep.cli.main import run

    sys.argv = words
    try:
        run()
    finally:
        os._exit(70)  # never reached: it ends the process


def _become_driver(words: list[str]) -> NoReturn:
    try:
        sys.path.insert(0, str(_PROJECT))
        name = ".".join(Path(words[0]).relative_to(_PROJECT).with_suffix("").parts)
        importlib.import_module(name).main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


# -- guardians ----------------------------------------------------------------------------------------------------


class _Guardians:
    """Starts guardians for a command: what of ``subprocess`` is used by vmkeep.host.guard.standby."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, asks: socket.socket) -> None:
        self._asks = asks

    def take_over(self) -> None:
        standby: Any = importlib.import_module("vmkeep.host.guard.standby")
        standby.subprocess = self

    def Popen(self, words: list[str], *, stdin: int, cwd: str, **options: Any) -> _ForkedGuardian:  # noqa: N802
        assert words[-3] == "-m", words
        assert options == {"stdout": self.DEVNULL, "stderr": self.DEVNULL, "start_new_session": True}, options
        request = {"words": words, "env": dict(os.environ), "folder": cwd, "umask": _umask()}
        heard, told = os.pipe()
        socket.send_fds(self._asks, [json.dumps(request).encode()], [stdin, told])
        os.close(told)
        with os.fdopen(heard) as answer:
            return _ForkedGuardian(words, int(answer.read()))


class _ForkedGuardian:
    """A guardian that is no child: what of ``subprocess.Popen`` is used of it."""

    def __init__(self, words: list[str], pid: int) -> None:
        self.args = words
        self.pid = pid
        try:
            self._end = os.pidfd_open(pid)
        except ProcessLookupError:
            self._end = -1  # it has ended

    def wait(self) -> None:
        if self._end >= 0:
            select.select([self._end], [], [])
            os.close(self._end)
            self._end = -1

    def poll(self) -> int | None:
        """Return None as long as it lives; its exit status is for its parent."""
        ended = self._end < 0 or bool(select.select([self._end], [], [], 0)[0])
        return 0 if ended else None


def _become_guardian(request: dict[str, Any], descriptors: list[int]) -> NoReturn:
    conversation, told = descriptors
    os.close(told)
    null = os.open(os.devnull, os.O_RDWR)
    _take_streams([conversation, os.dup(null), null])
    os.closerange(3, 1 << 16)
    os.setsid()
    _surround(request)
    words = request["words"]
    _show(words)
    module, records = words[-2:]
    sys.argv = [module, records]
    try:
        os._exit(importlib.import_module(module).main())
    finally:
        os._exit(70)


def _show(words: list[str]) -> None:
    """Write the words over those that this process was started with, where ``ps`` reads them."""
    first, last = (int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = "".join(f"{word}\0" for word in words).encode()
    assert len(shown) < last - first
    ctypes.memset(first, 0, last - first)
    ctypes.memmove(first, shown, len(shown))


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which no command has on its path
    _serve()
