"""Processes that neither work nor end."""

from __future__ import annotations

from pathlib import Path


def hangs_dead(process: int) -> bool:
    """Return whether a process was killed and cannot end, because a thread of it hangs in the kernel.

    Such a thread, in a call to storage that stalls, keeps its sockets open. The process is a zombie by then.
    """
    return _state_of(process) in ("Z", "X")


def is_stopped(process: int) -> bool:
    """Return whether a process was stopped, by a signal or by a debugger."""
    return _state_of(process) in ("T", "t")


def _state_of(process: int) -> str:
    """Return the letter of a process's state (proc(5)), empty for one that is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""
