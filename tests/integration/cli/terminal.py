"""Runs the real command on a terminal of a given width: a pseudo-terminal, as a user's window is one."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

from tests.integration.cli.command_line import COMMAND, environment


def on_terminal(home: Path, *arguments: str, columns: int, term: str = "xterm") -> list[str]:
    """Return the lines that a command writes to a terminal, which must succeed; bold is left in."""
    return spoken([*COMMAND, *arguments], {**environment(home), "TERM": term}, columns=columns)


def answered(home: Path, *arguments: str, answer: str) -> str:
    """Return all that a command writes to a terminal on which a person answers its questions; it must succeed."""
    master, slave = os.openpty()
    os.write(master, answer.encode())
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment(home), stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                said += os.read(master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
        assert process.wait(60) == 0, said
    os.close(master)
    return said.decode()


def spoken(command: Sequence[str], variables: dict[str, str], *, columns: int) -> list[str]:
    """Return the lines that any command writes to a terminal."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(command, env=variables, stdin=slave, stdout=slave, stderr=subprocess.PIPE) as process:
        os.close(slave)
        said = b""
        while True:
            try:
                said += os.read(master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                break
        assert process.stderr is not None
        err = process.stderr.read().decode()
        assert process.wait(60) == 0, err
    os.close(master)
    return said.decode().replace("\r\n", "\n").splitlines()
