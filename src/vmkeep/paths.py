"""Paths walked component by component with descriptors, through no link that another user could have put there.

A folder that belongs to QEMU's or swtpm's user may be changed under our hands: a link in the place of a file, a pipe in
the place of a regular one. So whoever works there as root opens the folder once, and all that follows is asked of the
descriptor. Links of root and of this process's own user are followed: who made them could do as much without.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

_MOST_LINKS: Final = 40
"""As the kernel has it."""


class ForeignLink(OSError):
    """A link of another user in the way; ``filename`` names it."""

    def __init__(self, link: str, owner: int) -> None:
        super().__init__(errno.ELOOP, f"a link of user {owner} is in the way", link)


def open_place(path: str | Path, *, base: int | None = None) -> int:
    """Return a descriptor (O_PATH) of what is at a path: nothing is opened yet, so nothing is waited for.

    ``base`` is the descriptor of the folder that a relative path begins in; an absolute one begins at the root. Raises
    ForeignLink, and OSError as opening does. The last component may be a trusted link, which is followed too.
    """
    text = os.fspath(path)
    pending = [part for part in reversed(text.split("/")) if part not in ("", ".")]
    if base is None or text.startswith("/"):
        here = os.open("/" if text.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        here = os.dup(base)
    trail = ["" if text.startswith("/") else "."]
    links = 0
    try:
        while pending:
            part = pending.pop()
            there = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            about = os.fstat(there)
            if not stat.S_ISLNK(about.st_mode):
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
