"""vmkeep's commands without the start of Python: a process in the host has imported it, and forks for each.

Half a second of processor time for each command is imports, a third of the whole test run. The command itself is what
it always is: the entry point of the installed script in a process of its own, with its environment, folder, streams
and exit status. Run as a script, this is that process; `CommandForks` is who asks it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_REQUEST_BYTES = 256 * 1024
# What these change, a process that runs already has behind it: they need one that starts with them.
_OF_A_START = ("LD_", "PYTHON", "LC_", "LANG", "MALLOC_", "GLIBC_", "TZ")


class Place(Protocol):
    """What of a host is asked."""

    dir: Path

    @property
    def environment(self) -> dict[str, str]: ...

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
                [sys.executable, Path(__file__).resolve()],
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
        request = {"words": words, "env": {**self._host.environment, **env}, "folder": str(self._host.dir)}
        (its_input, to), (out, its_output), (err, its_errors), (status, its_status) = (os.pipe() for _ in range(4))
        theirs = [its_input, its_output, its_errors, its_status]
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], theirs)
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        with os.fdopen(status) as told:
            output, errors = _exchanged(to, out, err, text, timeout_seconds, words)
            return subprocess.CompletedProcess(words, int(told.read()), output, errors)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=10)


def _exchanged(
    to: int, out: int, err: int, text: str | None, timeout_seconds: float, words: list[str]
) -> tuple[str, str]:
    """Write the input, and read both streams to their ends: whoever a command leaves behind holds neither."""
    import selectors

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


def _serve() -> None:
    import obstore  # noqa: F401  imported before the forks, for their speed, as all that follows

    import vmkeep.cli.main
    import vmkeep.flows.check_up
    import vmkeep.flows.durable
    import vmkeep.flows.engine
    import vmkeep.host.checkup
    import vmkeep.host.inplace
    import vmkeep.host.point
    import vmkeep.host.restore
    import vmkeep.repository  # noqa: F401
    from vmkeep.cli.ondemand import ON_DEMAND

    for command in ON_DEMAND.values():  # a command by itself loads what it uses
        importlib.import_module(command.module)

    asked = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who wait for the commands
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, _REQUEST_BYTES, 4)
        if not message:
            return
        if os.fork() == 0:
            _wait_for_command(json.loads(message), descriptors, asked)
        for descriptor in descriptors:
            os.close(descriptor)


def _wait_for_command(request: dict[str, Any], descriptors: list[int], asked: socket.socket) -> None:
    """Fork the command, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked.close()
    *streams, told = descriptors
    child = os.fork()
    if child == 0:
        os.close(told)
        _become_command(request, streams)
    for descriptor in streams:
        os.close(descriptor)
    _, status = os.waitpid(child, 0)
    os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become_command(request: dict[str, Any], streams: list[int]) -> None:
    from vmkeep.cli.main import run

    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    sys.argv = request["words"]
    try:
        run()
    finally:
        os._exit(70)  # never reached: it ends the process


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, which no command has on its path
    _serve()
