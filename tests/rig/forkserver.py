"""The process that has imported vmkeep and forks commands, drivers and guardians; ``forking`` starts and asks it.

It stands outside of all hosts and serves those of one process of pytest: what it forks enters the namespaces of the
host that it is for. So a host that a test makes for itself costs no start of Python.

Run as a script; the rest of the rig is not imported, which no command has in it.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

REQUEST_BYTES = 256 * 1024
# Written over with the words of a command or guardian, which tests, and people, look for in the list of processes.
ROOM_FOR_WORDS = "-" * 4000
_PROJECT = Path(__file__).resolve().parents[2]
_NUMBER_BYTES = 8
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


def tell(descriptor: int, number: int) -> None:
    """Write a number for ``number_of``; it does not matter whether anybody still reads."""
    with suppress(BrokenPipeError):
        os.write(descriptor, f"{number:{_NUMBER_BYTES}}".encode())


def number_of(descriptor: int) -> int:
    """Read the next number that was told. Raises ValueError when whoever tells it has died."""
    return int(os.read(descriptor, _NUMBER_BYTES))


def umask() -> int:
    """Return this process's, which os.umask only tells to who changes it, for all threads."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))


@dataclass(frozen=True, slots=True)
class _Forked:
    """A process that was forked: where its end is told, nowhere for guardians; ``kept`` until nobody reads there."""

    pid: int
    told: int | None
    kept: bool


class _Server:
    def __init__(self, asked: int) -> None:
        self._asked = socket.socket(fileno=asked)
        self._guardians, self._asks_for_guardian = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._guardians.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, REQUEST_BYTES)
        self._asks_for_guardian.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES)
        # Has no descriptor of its own that a fork would share.
        self._poll = select.poll()
        for source in (self._asked, self._guardians):
            self._poll.register(source, select.POLLIN)
        self._running: dict[int, _Forked] = {}
        self._ended: dict[int, int] = {}

    def serve(self) -> None:
        """Fork what is asked for, until nobody can ask any more."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor in self._running:
                    self._tell_end(descriptor)
                elif descriptor in self._ended:
                    self._let_go(descriptor)
                else:
                    source = self._guardians if descriptor == self._guardians.fileno() else self._asked
                    message, descriptors, _, _ = socket.recv_fds(source, REQUEST_BYTES, 4)
                    if not message:
                        return
                    self._fork(json.loads(message), descriptors)

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> None:
        kind = request["kind"]
        *streams, told = descriptors
        child = self._child(request, streams, told)
        for descriptor in streams:
            os.close(descriptor)
        if child is None:
            os.close(told)
            return
        if kind == "guardian":  # it tells its number itself, as its host counts
            os.close(told)
        else:
            tell(told, child)
        end = os.pidfd_open(child)
        self._running[end] = _Forked(child, None if kind == "guardian" else told, kept=kind == "command")
        self._poll.register(end, select.POLLIN)

    def _child(self, request: dict[str, Any], streams: list[int], told: int) -> int | None:
        """Fork a process and return its number; None when its host is gone."""
        host = request["host"]
        try:
            with namespaces.children_in_pid_namespace_of(host) if host else nullcontext():
                # One fork, not one more to wait for it: each costs 15 ms of a processor, a third of a short command.
                child = os.fork()
                if child == 0:
                    self._become(request, streams, told)
        except OSError:
            return None
        return child

    def _become(self, request: dict[str, Any], streams: list[int], told: int) -> NoReturn:
        try:
            if request["kind"] == "guardian":
                _become_guardian(request, streams, told)
            _become(request, streams, self._asks_for_guardian.fileno())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)  # never reached unless something went wrong

    def _tell_end(self, end: int) -> None:
        """Tell how a process ended; its number is taken by nobody else until that was heard, where it is kept."""
        forked = self._running.pop(end)
        self._poll.unregister(end)
        os.close(end)
        how = os.waitid(os.P_PID, forked.pid, os.WEXITED | (os.WNOWAIT if forked.kept else 0))
        assert how is not None
        if forked.told is None:
            return
        tell(forked.told, how.si_status if how.si_code == os.CLD_EXITED else -how.si_status)
        if forked.kept:
            self._ended[forked.told] = forked.pid
            self._poll.register(forked.told, 0)  # only that its other end was closed
        else:
            os.close(forked.told)

    def _let_go(self, told: int) -> None:
        self._poll.unregister(told)
        os.close(told)
        os.waitpid(self._ended.pop(told), 0)


def _import_all() -> None:
    """Import what a command may import, before the forks: they find it there."""
    import vmkeep.cli.main

    for module in pkgutil.walk_packages(vmkeep.__path__, "vmkeep."):
        if ".migrations." not in module.name:  # scripts of Alembic, which it runs itself
            importlib.import_module(module.name)
    for name in ("vmkeep.catalog.migrations.upgrade", *_IMPORTED_LATE):
        with suppress(ImportError):  # of another release of the library
            importlib.import_module(name)


def _become(request: dict[str, Any], streams: list[int], asks_for_guardian: int) -> NoReturn:
    """Become a command or driver, in a process that was forked for it."""
    _take_streams([*streams, asks_for_guardian])
    _surround(request)
    _show([sys.executable, *request["words"]])
    _Guardians(socket.socket(fileno=len(streams)), request["host"]).take_over()
    if request["kind"] == "driver":
        _become_driver(request["words"])
    _become_command(request["words"])


def _surround(request: dict[str, Any]) -> None:
    if request["host"]:
        namespaces.enter(request["host"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["folder"])
    os.umask(request["umask"])


def _take_streams(streams: Sequence[int]) -> None:
    """Have these as the first descriptors, and none of the server's."""
    above = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, len(streams)) for descriptor in streams]
    for number, descriptor in enumerate(above):
        os.dup2(descriptor, number, inheritable=number < 3)
    os.closerange(len(streams), 1 << 16)


def _become_command(words: list[str]) -> NoReturn:
    from vmkeep.cli.main import run

    sys.argv = words
    run()
    raise AssertionError("it ends the process")


def _become_driver(words: list[str]) -> NoReturn:
    sys.path.insert(0, str(_PROJECT))
    name = ".".join(Path(words[0]).relative_to(_PROJECT).with_suffix("").parts)
    importlib.import_module(name).main()
    os._exit(0)


# -- guardians ----------------------------------------------------------------------------------------------------


class _Guardians:
    """Starts guardians for a command: what of ``subprocess`` is used by vmkeep.host.guard.standby."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self, asks: socket.socket, host: int) -> None:
        self._asks = asks
        self._host = host

    def take_over(self) -> None:
        standby: Any = importlib.import_module("vmkeep.host.guard.standby")
        standby.subprocess = self

    def Popen(self, words: list[str], *, stdin: int, cwd: str, **options: Any) -> _ForkedGuardian:  # noqa: N802
        assert words[-3] == "-m", words
        assert options == {"stdout": self.DEVNULL, "stderr": self.DEVNULL, "start_new_session": True}, options
        about = {"env": dict(os.environ), "folder": cwd, "umask": umask()}
        request = {"kind": "guardian", "host": self._host, "words": words, **about}
        heard, told = os.pipe()
        socket.send_fds(self._asks, [json.dumps(request).encode()], [stdin, told])
        os.close(told)
        try:
            return _ForkedGuardian(words, number_of(heard))
        finally:
            os.close(heard)


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


def _become_guardian(request: dict[str, Any], streams: list[int], told: int) -> NoReturn:
    tell(told, os.getpid())
    null = os.open(os.devnull, os.O_RDWR)
    _take_streams([*streams, null, null])
    os.setsid()
    _surround(request)
    _show(request["words"])
    module, records = request["words"][-2:]
    sys.argv = [module, records]
    os._exit(importlib.import_module(module).main())


def _show(words: list[str]) -> None:
    """Write the words over those that this process was started with, where ``ps`` reads them."""
    first, last = (int(field) for field in Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    shown = os.fsencode("".join(f"{word}\0" for word in words))
    room = last - first
    ctypes.memset(first, 0, room)
    ctypes.memmove(first, shown, min(len(shown), room - 1))


if __name__ == "__main__":
    import namespaces  # type: ignore[import-not-found]  # beside this script

    sys.path.pop(0)  # this folder, which no command has on its path
    _import_all()
    gc.freeze()  # what is here stays: a collection in a fork would copy all of it
    _Server(os.dup(0)).serve()
