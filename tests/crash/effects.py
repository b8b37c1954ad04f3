"""Every effect of a process, counted at its system calls, and its death at the n-th of them.

A run is started under a seccomp filter that reports system calls which change something (writes to files, names made,
moved and removed, syncs, processes started, requests to libvirt) to its parent before the kernel carries them out
(``SECCOMP_RET_USER_NOTIF``). So nothing is missed: obstore's and SQLite's writes count like Python's, and so do those
of qemu-img and qemu-nbd. The parent counts, lets each go on, and at the chosen one sends SIGKILL to the run instead.
The guardian, which outlives the run, is under the same filter; the parent serves it until it ends.

Counted together as one effect are the writes to one file that follow each other: what lies between two of them is a
torn file, and the death before the first sync finds that as well.

Standard library only: it is imported by the driver, inside a host.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_SECCOMP, _PIDFD_OPEN, _PIDFD_GETFD = 317, 434, 438
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_RECEIVE, _ANSWER = 0xC0502100, 0xC0182101
_CONTINUE = 1
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_X86_64 = 0xC000003E
_NO_NEW_PRIVS = 38
_CLONE_THREAD = 0x10000
_MAKES_OR_CUTS = os.O_CREAT | os.O_TRUNC

# Numbers of x86-64. The word is what an effect is called; where it stands for several calls they do the same.
_CALLS: Final = {
    1: "write", 18: "write", 20: "write", 296: "write", 328: "write", 326: "write", 44: "send", 46: "send",
    2: "open", 257: "open", 42: "connect", 49: "bind",
    82: "rename", 264: "rename", 316: "rename", 86: "link", 265: "link", 88: "symlink", 266: "symlink",
    87: "unlink", 263: "unlink", 84: "rmdir", 83: "mkdir", 258: "mkdir",
    76: "cut", 77: "cut", 285: "cut", 74: "sync", 75: "sync",
    90: "chmod", 91: "chmod", 268: "chmod", 92: "chown", 93: "chown", 260: "chown",
    56: "spawn", 57: "spawn", 58: "spawn",
}  # fmt: skip
_NAMES_AT: Final = {257: 1, 263: 1, 258: 1, 264: 3, 316: 3, 82: 1, 86: 1, 265: 3, 88: 1, 266: 2, 268: 1, 260: 1}
_BY_DESCRIPTOR: Final = {1, 18, 20, 296, 328, 326, 44, 46, 74, 75, 77, 285, 91, 93}
_IDS: Final = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{8,}|[0-9]{5,}")
# The last one: files of the driver.
_NOT_KEPT: Final = re.compile(r"-shm$|/__pycache__/|\.pyc|^/dev/|^/proc/|^/memfd:| \(deleted\)$|^(?!/)|/run-[0-9]+\.")
_PROGRAM: Final = 0x20008086
# Requests of libvirt's protocol (remote_protocol.x) that change something, of those that vmkeep makes.
_REQUESTS: Final = {
    11: "define", 28: "resume", 34: "suspend", 164: "abort job", 185: "make snapshot", 193: "delete snapshot",
    411: "make checkpoint", 417: "delete checkpoint", 421: "begin backup",
}  # fmt: skip


def is_possible() -> str | None:
    """Return why no effects can be counted here, or None."""
    sizes = (ctypes.c_uint16 * 3)()
    if os.uname().machine != "x86_64" or _LIBC.syscall(_SECCOMP, 3, 0, sizes) != 0:
        return "this kernel reports no system calls to another process (seccomp user notification, x86-64)"
    return None


@dataclass(slots=True)
class Death:
    """At which effect a run dies, from 1, and how long after that was let go on; 0 ms is before it."""

    effect: int | None
    delay_ms: float = 0.0


def run_watched(child: Callable[[], int], effects_file: Path, death: Death, answer: Callable[[int], None]) -> NoReturn:
    """Run ``child`` in a process of its own; tell its status through ``answer`` and serve what it has left behind.

    The process that calls this ends with it.
    """
    to_parent, from_child = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(to_parent)
        os._exit(_under_filter(child, from_child))
    os.close(from_child)
    listener = _taken_from(pid, int(os.read(to_parent, 16)))
    os.close(to_parent)
    _Watch(pid, listener, death, effects_file, answer).serve()
    os._exit(0)


# -- the filter ------------------------------------------------------------------------------------------------


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _under_filter(child: Callable[[], int], tell: int) -> int:
    # The next free descriptor will be the listener's. It is told before, because from then on nobody answers yet.
    expected = os.dup(tell)
    os.close(expected)
    os.write(tell, str(expected).encode())
    if os.geteuid() != 0 and _LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    text = _filter()
    program = _Program(len(text) // 8, text)
    got = _LIBC.syscall(_SECCOMP, 1, _NEW_LISTENER | _WAIT_KILLABLE, ctypes.byref(program))
    if got != expected:
        raise OSError(ctypes.get_errno(), f"seccomp: {got}, expected {expected}")
    os.close(tell)
    return child()  # with the listener open, because the parent may not have taken it yet


def _filter() -> bytes:
    """Return the BPF program: report the calls above, of open only what makes or cuts, of clone only processes."""
    load, equal, test, give = 0x20, 0x15, 0x45, 0x06
    plain = [number for number, word in _CALLS.items() if word != "open" and number != 56]
    code = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, _ALLOW), (load, 0, 0, 0)]
    for number, argument, mask, reported in (
        (2, 1, _MAKES_OR_CUTS, 1),
        (257, 2, _MAKES_OR_CUTS, 1),
        (56, 0, _CLONE_THREAD, 0),
    ):
        code += [(equal, 0, 4, number), (load, 0, 0, 16 + 8 * argument), (test, 0, 1, mask)]
        code += [(give, 0, 0, _NOTIFY if reported else _ALLOW), (give, 0, 0, _ALLOW if reported else _NOTIFY)]
    for place, number in enumerate(plain):
        code.append((equal, len(plain) - place, 0, number))
    code += [(give, 0, 0, _ALLOW), (give, 0, 0, _NOTIFY)]
    return b"".join(struct.pack("<HBBI", *each) for each in code)


def _taken_from(pid: int, descriptor: int) -> int:
    pidfd = _LIBC.syscall(_PIDFD_OPEN, pid, 0)
    deadline = time.monotonic() + 10
    while True:
        listener: int = _LIBC.syscall(_PIDFD_GETFD, pidfd, descriptor, 0)
        if listener >= 0 and "seccomp" in str(Path(f"/proc/self/fd/{listener}").readlink()):
            os.close(pidfd)
            return listener
        if listener >= 0:
            os.close(listener)
        if time.monotonic() > deadline:
            raise OSError(ctypes.get_errno(), "the filter did not come to be")
        time.sleep(0.0005)


# -- counting --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Watch:
    pid: int
    listener: int
    death: Death
    effects_file: Path
    answer: Callable[[int], None]
    effects: list[str] = field(default_factory=list)
    sockets: dict[tuple[int, int], str] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)
    last: tuple[int, str] | None = None
    die_at: float | None = None
    ended: bool = False

    def serve(self) -> None:
        """Answer until no process is under the filter any more."""
        poll = select.poll()
        poll.register(self.listener, select.POLLIN)
        pidfd = _LIBC.syscall(_PIDFD_OPEN, self.pid, 0)
        poll.register(pidfd, select.POLLIN)
        while True:
            wait_ms = None if self.die_at is None else max(0.0, self.die_at - time.monotonic()) * 1000
            found = dict(poll.poll(wait_ms))
            if self.die_at is not None and time.monotonic() >= self.die_at:
                self._kill()
            if pidfd in found:
                poll.unregister(pidfd)
                self._end()
            if found.get(self.listener, 0) & select.POLLIN:
                self._one()
            elif found.get(self.listener, 0):
                if not self.ended:
                    os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
                    self._end()
                return

    def _end(self) -> None:
        self.ended = True
        _, status = os.waitpid(self.pid, 0)
        self.effects_file.write_text(json.dumps(self.effects))
        self.answer(os.waitstatus_to_exitcode(status))

    def _kill(self) -> None:
        self.die_at = None
        os.kill(self.pid, signal.SIGKILL)

    def _one(self) -> None:
        buffer = bytearray(80)
        try:
            fcntl.ioctl(self.listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return  # its thread died meanwhile
            raise
        notice, thread = struct.unpack_from("<QI", buffer)
        number, *_ = struct.unpack_from("<i", buffer, 16)
        arguments = struct.unpack_from("<6Q", buffer, 32)
        if not self.ended:
            self._count(thread, number, arguments)
        try:
            fcntl.ioctl(self.listener, _ANSWER, struct.pack("<QqiI", notice, 0, 0, _CONTINUE))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _count(self, thread: int, number: int, arguments: tuple[int, ...]) -> None:
        try:
            effect = self._effect(thread, number, arguments)
        except (OSError, struct.error):
            return  # the process is gone, or what it named
        if effect is None:
            return
        writes = effect.partition(" ")[0] == "write"
        if writes and (thread, effect) == self.last:
            return
        self.last = (thread, effect) if writes else None
        self.effects.append(effect)
        if len(self.effects) == self.death.effect:
            self.die_at = time.monotonic() + self.death.delay_ms / 1000
            if not self.death.delay_ms:
                self._kill()

    def _effect(self, thread: int, number: int, arguments: tuple[int, ...]) -> str | None:
        word = _CALLS[number]
        process = self._process(thread)
        if word == "spawn":
            return "spawn"
        if word == "connect":
            address = _memory(thread, arguments[1], min(arguments[2], 110))
            self.sockets[process, arguments[0]] = os.fsdecode(address[2:].partition(b"\0")[0])
            return None
        if word == "bind":
            return None
        if number in _BY_DESCRIPTOR:
            descriptor = arguments[2] if number == 326 else arguments[0]
            path = str(Path(f"/proc/{thread}/fd/{descriptor & 0xFFFFFFFF}").readlink())
            if path.startswith("socket:"):
                return self._request(process, thread, number, arguments)
        else:
            path = _text(thread, arguments[_NAMES_AT.get(number, 0)])
            path = str(Path(_directory(thread, number, arguments), path))
        if word == "open" and os.path.lexists(f"/proc/{thread}/root{path}"):
            if not stat.S_ISREG(Path(f"/proc/{thread}/root{path}").stat().st_mode) or not _cuts(number, arguments):
                return None
            word = "cut"
        if word == "send" or _NOT_KEPT.search(path):
            return None
        return f"{word} {_IDS.sub('*', path)}"

    def _request(self, process: int, thread: int, number: int, arguments: tuple[int, ...]) -> str | None:
        """Return the effect of what is sent over a socket: a request to libvirt, known by its protocol's header."""
        if not self.sockets.get((process, arguments[0]), "").endswith("libvirt-sock") or number not in (1, 44):
            return None
        length, program, _, procedure, kind = struct.unpack(">5I", _memory(thread, arguments[1], 20))
        if program != _PROGRAM or kind != 0 or length != arguments[2] or procedure not in _REQUESTS:
            return None
        return f"libvirt {_REQUESTS[procedure]}"

    def _process(self, thread: int) -> int:
        if thread not in self.processes:
            lines = Path(f"/proc/{thread}/status").read_text().splitlines()
            self.processes[thread] = int(next(line for line in lines if line.startswith("Tgid:")).split()[1])
        return self.processes[thread]


def _cuts(number: int, arguments: tuple[int, ...]) -> bool:
    return bool(arguments[1 if number == 2 else 2] & os.O_TRUNC)


def _directory(thread: int, number: int, arguments: tuple[int, ...]) -> str:
    at = {257: 0, 263: 0, 258: 0, 264: 2, 316: 2, 265: 2, 266: 1, 268: 0, 260: 0}.get(number)
    descriptor = -100 if at is None else ctypes.c_int(arguments[at] & 0xFFFFFFFF).value
    return str(Path(f"/proc/{thread}/cwd" if descriptor == -100 else f"/proc/{thread}/fd/{descriptor}").readlink())


def _memory(thread: int, address: int, length: int) -> bytes:
    with Path(f"/proc/{thread}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length) or b""


def _text(thread: int, address: int) -> str:
    # Not beyond the page, which may be the last one.
    found = _memory(thread, address, 4096 - address % 4096)
    if b"\0" not in found:
        found += _memory(thread, address + len(found), 4096)
    return os.fsdecode(found.partition(b"\0")[0])
