"""A guardian's process before it has a job: started early, so that its imports run beside vmkeep's own.

A guardian takes 0.1 s to come up, nearly all of it imports, and no guest may be touched before it watches. A command
that will take a point starts one at once (``stand_by``); the job finds it ready. Over one socket go first the
record and the locks to hold, later the words of ``vmkeep.host.guard.guardian``. The end of the socket before there was
a record means that there is no job: the process ends, nothing is left.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from vmkeep.host.guard.clients import Channel

_standing: list[Standby] = []
# Neither the current folder nor, where the installed command goes without (scripts/isolate), the environment says where
# modules come from.
_ISOLATED = "-I" if sys.flags.isolated else "-P"


class Standby:
    """A process that waits for the record of a job. Raises OSError when it cannot be started."""

    def __init__(self, records: Path) -> None:
        """``records``: the directory of the records; it only shows whose process this is in a list of processes."""
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, _ISOLATED, "-m", "vmkeep.host.guard.guardian", str(records)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )

    def hand_over(self, record: Path, hold: tuple[int, ...], clients: Channel) -> None:
        """Give it its job: the path of the record, descriptors of locks, which it holds as long as it lives, and the
        channel over which it is given the job's clients."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it is dead; whoever waits for its answer is told
            socket.send_fds(self.socket, [str(record).encode() + b"\n"], (*hold, clients.theirs.fileno()))
        clients.theirs.close()


def stand_by(records: Path) -> None:
    """Start the process for the next job of this command, unless one is there already."""
    if not _standing:
        _standing.append(Standby(records))


def standing(records: Path) -> Standby:
    """Return the process that stands by, for one job, or a new one."""
    return _standing.pop() if _standing else Standby(records)
