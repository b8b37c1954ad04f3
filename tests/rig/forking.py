"""vmkeep's commands without the start of Python: a process that has imported it forks for each (forkserver.py).

Half a second of processor time for each command is imports, a third of the whole test run. The command itself is what
it always is: the entry point of the installed script in a process of its own, in the namespaces of its host, with its
environment, folder, streams and exit status. So are the guardians that it starts: processes of their own, leaders of a
session, with nothing of the command's but the socket that they are given. The drivers of the crash tests are forked
too, and fork in turn.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tests.rig.forkserver import REQUEST_BYTES, ROOM_FOR_WORDS, number_of, umask

# What these change, a process that runs already has behind it: they need one that starts with them.
_OF_A_START = ("LD_", "PYTHON", "LC_", "LANG", "MALLOC_", "GLIBC_", "TZ")


class Place(Protocol):
    """What of a host is asked. ``init_pid`` is 0 for this machine itself."""

    @property
    def dir(self) -> Path: ...

    @property
    def environment(self) -> Mapping[str, str]: ...

    @property
    def init_pid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """This machine itself, as a place for commands that need no libvirt; nothing of its environment is theirs."""

    dir: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    init_pid: int = 0


def can_fork(env: Mapping[str, str]) -> bool:
    """Return whether a command with these additions to its environment may be forked."""
    return not any(name.startswith(_OF_A_START) for name in env)


class CommandForks:
    """The commands of one host, forked for it; all hosts of this process share who forks."""

    def __init__(self, host: Place) -> None:
        self._host = host

    def run(
        self, command: Sequence[str | Path], env: Mapping[str, str], text: str | None, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end. ``env`` is added to the host's environment, ``text`` is its input."""
        its_input, to = os.pipe()
        with self._command(command, env, its_input) as forked:
            try:
                output, errors = _exchanged(forked, to, text or "", timeout_seconds)
            except subprocess.TimeoutExpired:
                forked.kill()
                raise
        return subprocess.CompletedProcess(forked.args, forked.returncode, output, errors)

    def start(self, command: Sequence[str | Path], env: Mapping[str, str]) -> ForkedCommand:
        """Start a command line without an input."""
        return self._command(command, env, os.open(os.devnull, os.O_RDONLY))

    def driver(self, script: Path) -> Driver:
        """Fork a process that runs a script's ``main``; its errors go where those of this process go."""
        (its_input, to), (out, its_output) = (os.pipe() for _ in range(2))
        return Driver(to, out, self._ask("driver", [str(script)], {}, [its_input, its_output, os.dup(2)]))

    def _command(self, command: Sequence[str | Path], env: Mapping[str, str], its_input: int) -> ForkedCommand:
        words = [str(word) for word in command]
        (out, its_output), (err, its_errors) = (os.pipe() for _ in range(2))
        return ForkedCommand(words, out, err, self._ask("command", words, env, [its_input, its_output, its_errors]))

    def _ask(self, kind: str, words: list[str], env: Mapping[str, str], streams: list[int]) -> int:
        """Send a request with its streams, which are its own then; return where its number is told, and its end."""
        told, its_told = os.pipe()
        theirs = [*streams, its_told]
        request = {
            "kind": kind,
            "host": self._host.init_pid,
            "words": words,
            "env": {**self._host.environment, **env},
            "folder": str(self._host.dir),
            "umask": umask(),
        }
        try:
            socket.send_fds(_server.socket(), [json.dumps(request).encode()], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return told


class _Server:
    """The process that forks, started when it is first asked for and again if it was ended."""

    def __init__(self) -> None:
        self._starting = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def socket(self) -> socket.socket:
        with self._starting:
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if self._socket is None:
                self._start()
            assert self._socket is not None
            return self._socket

    def _start(self) -> None:
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, REQUEST_BYTES)
        script = Path(__file__).with_name("forkserver.py").resolve()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, script, ROOM_FOR_WORDS], stdin=its.fileno(), stdout=subprocess.DEVNULL
            )
        self._socket = own
        atexit.register(self.close)

    def close(self) -> None:
        """End it; commands that run go on."""
        atexit.unregister(self.close)
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.wait(timeout=10)
            self._process = None


_server = _Server()


class ForkedCommand:
    """A forked command: what of ``subprocess.Popen`` is used of one that was started.

    As with a child, its number is nobody else's until its end was seen here.
    """

    def __init__(self, words: list[str], stdout: int, stderr: int, told: int) -> None:
        self.args = words
        self.stdout = os.fdopen(stdout)
        self.stderr = os.fdopen(stderr)
        self._told = told
        self._hearing = threading.Lock()
        self.pid = number_of(told)
        self.returncode: int | Any = None  # as that of Popen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()
        self.wait()

    def _close(self) -> None:
        for stream in (self.stdout, self.stderr):
            stream.close()

    def poll(self) -> int | None:
        """Return its exit status once it has ended, and let its number go."""
        with self._hearing:
            if self.returncode is None and select.select([self._told], [], [], 0)[0]:
                self.returncode = number_of(self._told)
                os.close(self._told)
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end, and return its exit status. Raises TimeoutExpired."""
        with self._hearing:
            if self.returncode is not None:
                return self.returncode
            told = os.dup(self._told)  # another thread may hear of it meanwhile
        try:
            select.select([told], [], [], timeout)
        finally:
            os.close(told)
        status = self.poll()
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their ends and wait for its own. Raises TimeoutExpired."""
        output = _exchanged(self, None, "", timeout)
        self._close()
        self.wait(timeout)
        return output

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Driver:
    """A forked process that reads its requests; what of ``subprocess.Popen`` is used of one that was started."""

    def __init__(self, stdin: int, stdout: int, told: int) -> None:
        self.stdin = os.fdopen(stdin, "w")
        self.stdout = os.fdopen(stdout)
        self._told = told
        self.pid = number_of(told)

    def wait(self, timeout: float) -> int:
        """Wait for its end, and return its exit status. Raises TimeoutExpired."""
        ready, _, _ = select.select([self._told], [], [], timeout)
        if not ready:
            raise subprocess.TimeoutExpired("driver", timeout)
        try:
            return number_of(self._told)
        finally:
            os.close(self._told)


def _exchanged(command: ForkedCommand, to: int | None, text: str, timeout_seconds: float | None) -> tuple[str, str]:
    """Write the input, and read both streams to their ends: whoever a command leaves behind holds neither."""
    pending = memoryview(text.encode())
    texts = {stream.fileno(): bytearray() for stream in (command.stdout, command.stderr)}
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    with selectors.DefaultSelector() as selector:
        for descriptor in texts:
            selector.register(descriptor, selectors.EVENT_READ)
        if to is not None:
            os.set_blocking(to, False)
            selector.register(to, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(command.args, timeout_seconds or 0.0, *map(bytes, texts.values()))
            for key, _ in ready:
                if key.fd == to:
                    pending = _written(to, pending)
                    if not pending:
                        selector.unregister(to)
                        os.close(to)
                elif content := os.read(key.fd, 65536):
                    texts[key.fd] += content
                else:
                    selector.unregister(key.fd)
    output, errors = (content.decode() for content in texts.values())
    return output, errors


def _written(to: int, pending: memoryview) -> memoryview:
    """Write some of it and return the rest, which is nothing when nobody reads."""
    try:
        return pending[os.write(to, pending) :]
    except BrokenPipeError:
        return pending[:0]
