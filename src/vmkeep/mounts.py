"""What is mounted where, as the kernel lists it: by names alone, because to ask a dead server would not come back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def mount_points() -> list[str]:
    """Return the mount points that this process sees, in the order in which they were made; raises OSError."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    # Space, tab, line end and backslash are written as octal numbers (proc(5)).
    return [_ESCAPED.sub(lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines]


def mount_point(path: Path, mounts: Iterable[str]) -> str:
    """Return which of the mount points a path is below."""
    parents = {str(parent) for parent in (path, *path.parents)}
    return max((mount for mount in mounts if mount in parents), key=len, default="/")


def mount_of(path: Path) -> str:
    """Return the mount point that a path is below; ``/`` where the kernel does not tell."""
    try:
        return mount_point(path, mount_points())
    except OSError:
        return "/"
