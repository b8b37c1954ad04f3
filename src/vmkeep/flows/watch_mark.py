"""The mark of a living watch, which `vmkeep status` looks at without what the watch itself needs."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vmkeep.config import Settings
from vmkeep.locks import FileLock


class WatchMark:
    """A lock that is held as long as the watch lives, and whose time is that of its last look: `vmkeep status` asks."""

    def __init__(self, settings: Settings) -> None:
        """Take the lock; of two watches the first one has it."""
        path = watch_mark(settings)
        self._lock = FileLock.try_acquire(path, note=f"watch (process {os.getpid()})")

    def renew(self) -> None:
        """Note that the state files were looked at just now."""
        if self._lock is not None:
            with suppress(OSError):
                os.utime(self._lock.descriptor)

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.release()


def watch_mark(settings: Settings) -> Path:
    """Return the lock that a watch of this installation holds."""
    return settings.locks_dir / "watch.lock"
