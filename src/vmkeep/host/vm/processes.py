"""Processes that neither work nor end, and how old one is."""

from __future__ import annotations

import os
import time
from pathlib import Path


def hangs_dead(process: int) -> bool:
    """Return whether a process was killed and cannot end, because a thread of it hangs in the kernel.

    Such a thread, in a call to storage that stalls, keeps its sockets open. The process is a zombie by then.
    """
    return _state_of(process) in ("Z", "X")


def is_stopped(process: int) -> bool:
    """Return whether a process was stopped, by a signal or by a debugger."""
    return _state_of(process) in ("T", "t")


def age_seconds(process: int) -> float:
    """Return how long a process has been there, whatever was done to the clock. Raises OSError for one that is gone."""
    started_ticks = int(_stat_of(process)[19])  # since the host was started
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def _state_of(process: int) -> str:
    """Return the letter of a process's state (proc(5)), empty for one that is gone."""
    try:
        return _stat_of(process)[0]
    except OSError:
        return ""


def _stat_of(process: int) -> list[str]:
    """Return what proc(5) tells of a process after its name."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
