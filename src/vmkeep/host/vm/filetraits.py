"""What of a file changes when anybody writes to it."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

Traits: TypeAlias = tuple[int, int, int, int] | None


def traits_of(path: Path) -> Traits:
    """Return a file's device, inode, size and time of change; None for one that is not there."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
