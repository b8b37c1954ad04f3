"""Paths walked component by component with descriptors, through no link that another user could have put there.

A folder that belongs to QEMU's or swtpm's user may be changed under our hands: a link in the place of a file, a pipe in
the place of a regular one. So whoever works there as root opens the folder once, and all that follows is asked of the
descriptor. Links of root and of this process's own user are followed: who made them could do as much without.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_MOST_LINKS: Final = 40
"""As the kernel has it."""


class ForeignLink(OSError):
    """A link of another user in the way; ``filename`` names it."""

    def __init__(self, link: str, owner: int) -> None:
        super().__init__(errno.ELOOP, f"a link of user {owner} is in the way", link)


def open_place(path: str | Path, *, last_may_be_link: bool = True) -> int:
    """Return a descriptor (O_PATH) of what is at a path: nothing is opened yet, so nothing is waited for.

    The last component may be a trusted link, which is followed too, unless ``last_may_be_link`` is False: then a
    descriptor of the link itself is returned. Raises ForeignLink, and OSError as opening does.
    """
    text = os.fspath(path)
    pending = [part for part in reversed(text.split("/")) if part not in ("", ".")]
    here = os.open("/" if text.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    trail = ["" if text.startswith("/") else "."]
    links = 0
    try:
        while pending:
            part = pending.pop()
            there = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            about = os.fstat(there)
            if not stat.S_ISLNK(about.st_mode) or not (pending or last_may_be_link):
                os.close(here)
                here = there
                trail.append(part)
                continue
            try:
                links += 1
                if about.st_uid not in (0, os.geteuid()):
                    raise ForeignLink("/".join([*trail, part]), about.st_uid)
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), text)
                target = os.readlink("", dir_fd=there)
            finally:
                os.close(there)
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                trail = [""]
            pending += [part for part in reversed(target.split("/")) if part not in ("", ".")]
    except BaseException:
        os.close(here)
        raise
    return here


def reopen(place: int, flags: int) -> int:
    """Open what a descriptor of ``open_place`` stands for, with the rights of this thread; raises OSError."""
    return os.open(f"/proc/self/fd/{place}", flags | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)


def open_directory(path: str | Path) -> int:
    """Return a descriptor of a folder, for openat and its like. Raises ForeignLink and OSError."""
    place = open_place(path)
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    finally:
        os.close(place)


def make_directories(path: Path, mode: int) -> None:
    """Make a folder and those above it that are missing, through no link of others. Raises ForeignLink and OSError."""
    missing = []
    while True:
        try:
            here = open_directory(path)
            break
        except FileNotFoundError:
            missing.append(path.name)
            path = path.parent
    try:
        for name in reversed(missing):
            made = False
            with suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=here)
                made = True
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
            if made:
                os.fchmod(here, mode)  # whatever the umask is
    finally:
        os.close(here)


def create_file(path: Path) -> int:
    """Make a new file (0600) and return a descriptor for reading and writing it.

    One single name in a folder that is opened through no link of others. Raises ForeignLink, and OSError,
    FileExistsError above all.
    """
    folder = open_directory(path.parent)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path.name, flags, 0o600, dir_fd=folder)
    finally:
        os.close(folder)


def remove_file(path: Path) -> None:
    """Remove a name in a folder that is reached through no link of others; one that is gone is fine."""
    with suppress(FileNotFoundError):
        folder = open_directory(path.parent)
        try:
            os.unlink(path.name, dir_fd=folder)
        finally:
            os.close(folder)


def open_own_file(path: str | Path) -> int:
    """Open a regular file that this process made just now, to give it an owner; OSError for anything else in its place.

    Its owner is this process's user still, and it has no second name: so no file of somebody else's is given away.
    """
    place = open_place(path, last_may_be_link=False)
    try:
        about = os.fstat(place)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_nlink != 1:
            raise OSError(errno.EPERM, "something else is in its place", os.fspath(path))
        return reopen(place, os.O_RDONLY)
    finally:
        os.close(place)


def give_away(path: str | Path, owner: int, group: int, mode: int | None = None) -> None:
    """Give a file that this process made an owner, a group and a mode. Raises ForeignLink and OSError."""
    descriptor = open_own_file(path)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fchown(descriptor, owner, group)
        if mode is not None:
            os.fchmod(descriptor, mode)  # a change of owner takes away the bits of set-user-id
    finally:
        os.close(descriptor)
