"""Opens a way to the checkout for every user, in a mount namespace of its own, and becomes another command.

A checkout may lie below a directory that others may not enter, as /root. What a test runs as another user could not be
reached there. In the namespace that directory holds nothing but the way to the checkout, which all may go.

    unshare --mount --propagation=private python3 -I -S way.py COMMAND...

Standard library only: it runs isolated, without site packages.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_MS_BIND = 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)
_CHECKOUT = Path(__file__).resolve().parents[2]


def opened(*command: str) -> list[str]:
    """Return the command that runs another one in such a namespace."""
    unshare = ["unshare", "--mount", "--propagation=private"]
    return [*unshare, *on_the_way(*command)]


def on_the_way(*command: str) -> list[str]:
    """Return the same for a mount namespace that is made already."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), *command]


def _open_way(place: Path) -> None:
    closed = next((parent for parent in reversed(place.parents) if not parent.stat().st_mode & 0o001), None)
    if closed is None:
        return
    descriptor = os.open(place, os.O_PATH | os.O_DIRECTORY)
    _mount("tmpfs", closed, "tmpfs", 0, "mode=711,size=64k")
    place.mkdir(parents=True, mode=0o755)
    _mount(f"/proc/self/fd/{descriptor}", place, "none", _MS_BIND, "")
    os.close(descriptor)
    os.chdir(place)


def _mount(source: str, target: Path, filesystem: str, flags: int, options: str) -> None:
    words = (source.encode(), os.fsencode(target), filesystem.encode(), ctypes.c_ulong(flags), options.encode() or None)
    if _LIBC.mount(*words) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount of {source} on {target}: {os.strerror(error)}")


if __name__ == "__main__":
    _open_way(_CHECKOUT)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 -- a test's own command
