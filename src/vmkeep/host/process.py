"""What the kernel says of another process."""

from __future__ import annotations

from pathlib import Path

_DEAD = ("Z", "X")


def state_of(process: int) -> str:
    """Return the letter of a process's state (proc(5)), empty for one that is gone."""
    try:
        about = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return about.rpartition(")")[2].split()[0]


def hangs_dead(process: int) -> bool:
    """Return whether a process was killed and cannot end, because a thread of it hangs in the kernel.

    Such a thread, in a call to storage that stalls, keeps its sockets open. The process is a zombie by then. One that
    is gone altogether says so by its sockets.
    """
    return state_of(process) in _DEAD
