"""The user that QEMU runs as, and what that user may open by itself.

Asked of the kernel, not computed: a thread takes on the user's file system identity (setfsuid(2), with which root's
rights over files go), opens the path, and ends. Modes, lists, folders on the way, NFS: all of it counts.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import platform
import pwd
import re
import stat
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

from vmkeep.paths import open_place, reopen
from vmkeep.values import dataclass

# setgroups(2) of the C library changes all threads of a process, the system call itself changes the one that calls.
_SETGROUPS: Final = {
    "x86_64": 116,
    "aarch64": 159,
    "riscv64": 159,
    "loongarch64": 159,
    "ppc64le": 81,
    "s390x": 206,
}
_SETTING: Final = re.compile(r"""^\s*(user|group)\s*=\s*["']([^"']+)["']""", re.MULTILINE)
# Debian and Ubuntu; Fedora, openSUSE and Arch.
_KNOWN_USERS: Final = ("libvirt-qemu", "qemu")


@dataclass(frozen=True, slots=True)
class QemuUser:
    """A user as the kernel knows it. ``name`` is for people."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = "QEMU's user"

    @classmethod
    def of(cls, uid: int, gid: int) -> QemuUser:
        """Return the user of these numbers, with the groups that the system gives it, as libvirt starts QEMU."""
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            return cls(uid, gid, (gid,), f"QEMU's user {uid}")
        return cls(uid, gid, tuple(os.getgrouplist(name, gid)), f"QEMU's user {name}")

    @classmethod
    def default(cls) -> QemuUser | None:
        """Return the user that libvirt's settings or the distribution name; None where there is none of these."""
        try:
            configured = dict(_SETTING.findall(Path("/etc/libvirt/qemu.conf").read_text(encoding="utf-8")))
        except OSError:
            configured = {}
        for name in (configured.get("user"), *_KNOWN_USERS):
            if name and (found := cls.named(name, configured.get("group"))) is not None:
                return found
        return None

    @classmethod
    def named(cls, user: str, group: str | None) -> QemuUser | None:
        """Return the user of that name, or number after a plus sign (as in a label of the model dac)."""
        try:
            account = pwd.getpwnam(user) if not user.lstrip("+").isdecimal() else None
            uid = int(user.lstrip("+")) if account is None else account.pw_uid
            gid = _group(group) if group else pwd.getpwuid(uid).pw_gid if account is None else account.pw_gid
        except (KeyError, OverflowError):
            return None
        return cls.of(uid, gid)

    def open(self, path: str, flags: int) -> int:
        """Open a file or device as this user would, through no link of others; raises OSError."""
        if os.geteuid() != 0 or self.uid == 0:
            # Who is not root can open no more than is his own.
            return _opened(path, flags)
        return _as_user(self, lambda: _opened(path, flags))


def _group(name: str) -> int:
    return int(name.lstrip("+")) if name.lstrip("+").isdecimal() else grp.getgrnam(name).gr_gid


def _opened(path: str, flags: int) -> int:
    place = open_place(path)
    try:
        mode = os.fstat(place).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise OSError(errno.EINVAL, "neither a file nor a block device", path)
        return reopen(place, flags)
    finally:
        os.close(place)


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _as_user(user: QemuUser, task: Callable[[], int]) -> int:
    """Do something with the identity of a user for files, in a thread that ends with it; raises OSError."""
    answer: list[int] = []
    refused: list[OSError] = []

    def run() -> None:
        try:
            _become(user)
            answer.append(task())
        except OSError as error:
            refused.append(error)

    thread = threading.Thread(target=run, name="vmkeep-qemu-user")
    thread.start()
    thread.join()
    if refused:
        raise refused[0]
    return answer[0]


def _become(user: QemuUser) -> None:
    number = _SETGROUPS.get(platform.machine())
    if number is None:
        raise OSError(errno.EACCES, "another user's rights cannot be asked for on this kind of machine")
    libc = _libc()
    groups = (ctypes.c_uint32 * max(1, len(user.groups)))(*user.groups)
    if libc.syscall(ctypes.c_long(number), ctypes.c_size_t(len(user.groups)), groups) != 0:
        raise OSError(ctypes.get_errno(), "setgroups")
    # They return the former identity and tell of no failure, so it is asked for.
    libc.setfsgid(user.gid)
    libc.setfsuid(user.uid)
    if libc.setfsgid(ctypes.c_uint32(0xFFFFFFFF)) != user.gid or libc.setfsuid(ctypes.c_uint32(0xFFFFFFFF)) != user.uid:
        raise OSError(errno.EPERM, "the identity of QEMU's user cannot be taken on")
