"""Who gives a command: what a person did is recorded with his name."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

_NOBODY = 0xFFFFFFFF
"""The kernel's audit id of a process that descends from no login (auditd(8)); sudo and su leave it as it is."""


def who_asks() -> str:
    """Return the user and the host, and who logged in where that is somebody else: `root (alice) on alpha`."""
    user = _name(os.getuid())
    try:
        login = int(Path("/proc/self/loginuid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        login = _NOBODY
    by = f" ({_name(login)})" if login not in (_NOBODY, os.getuid()) else ""
    return f"{user}{by} on {socket.gethostname()}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
