"""Locks of files that end with their process, also after kill -9."""

from __future__ import annotations

import fcntl
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from vmkeep.filesystem import file_errors

_PROCESS = re.compile(r"\(process (\d+)\)")
# Who only looks whether a lock is held has it for some microseconds. A taker tries again for so long: by no clock but
# the monotonic one, since a file's time says nothing when the clock was set meanwhile.
_LOOKED_AT_SECONDS = 0.05
_AGAIN_SECONDS = 0.005


class FileLock:
    """An exclusive flock. Child processes that are handed the descriptor hold it together with this one."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @classmethod
    def try_acquire(cls, path: Path, note: str = "") -> FileLock | None:
        """Take the lock and write ``note`` (who holds it) into the file; None when another holds it.

        Raises NoSpace, PermissionRefused and others with the file's path when there can be no lock.
        """
        with file_errors(path, "locked"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if not _locked(descriptor):
                        os.close(descriptor)
                        return None
                    # A holder removes the file when it lets go: a lock on a removed file would protect nothing.
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        with suppress(OSError):  # a full file system: it is locked all the same
                            os.ftruncate(descriptor, 0)
                            os.pwrite(descriptor, note.encode(), 0)
                        return cls(path, descriptor)
                except FileNotFoundError:
                    pass
                except OSError:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    @staticmethod
    def holder(path: Path) -> str:
        """Return the note of whoever holds the lock; empty when unknown."""
        try:
            return path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    @staticmethod
    def holding_process(path: Path) -> int | None:
        """Return the process that took the lock, as its note names it; None when unknown."""
        taker = _PROCESS.search(FileLock.holder(path))
        return None if taker is None else int(taker[1])

    @staticmethod
    def is_held(path: Path) -> bool:
        """Return whether a living process holds the lock. Nothing is changed, and a taker is not disturbed.

        One that may not be read counts as held.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    @staticmethod
    def is_inherited(path: Path) -> bool:
        """Return whether the process that took the lock, as its note names it, is dead: a child of it holds it now."""
        taker = _PROCESS.search(FileLock.holder(path))
        if taker is None:
            return False
        try:
            os.kill(int(taker[1]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def release(self, *, remove: bool = True) -> None:
        """Let go. With ``remove`` the file goes too: a child that still holds the lock would then protect nothing."""
        if self.descriptor < 0:
            return
        if remove:
            # A file that stays locks nothing, and what was done under the lock is done.
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        os.close(self.descriptor)
        self.descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _locked(descriptor: int) -> bool:
    """Lock a file for this process alone; return False when another holds it."""
    deadline = time.monotonic() + _LOOKED_AT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(_AGAIN_SECONDS)
