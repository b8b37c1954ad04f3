"""A host on which rows are played one after another, made anew when a row has broken it."""

from __future__ import annotations

import atexit
import contextlib
import signal
import subprocess
from types import FrameType

import libvirt

from tests.crash.bed import Zygote
from tests.rig import Host, RigError
from tests.system.history import Forking
from tests.zoo.playing import Played, play
from tests.zoo.row import Row
from tests.zoo.rows import ROWS

_ROW_SECONDS = 900  # for one that hangs, not for one on a busy machine


class RowHangs(Exception):
    """A row has come to no end."""


class Keeper:
    """Plays rows on a host, its own unless one is given; ``close`` ends its own."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host if host is not None else Host("zoo")
        self._owns = host is None
        if self._owns:
            self._host.start()
        self._zygote = Zygote(self._host, self._host.dir / "home")

    def play(self, row: Row) -> Played:
        try:
            played = play(row, self._host, Forking(self._host, self._zygote))
            self._empty()
        except RowHangs as error:
            self._renew()
            return Played(row, (str(error),), _ROW_SECONDS)
        except (libvirt.libvirtError, RigError, OSError):
            self._renew()
        return played

    def _renew(self) -> None:
        """Make the host anew: a row has broken it."""
        self._end_zygote()
        self._host.close()
        self._host.start()
        self._zygote = Zygote(self._host, self._host.dir / "home")

    def _empty(self) -> None:
        for pool in self._host.run(["virsh", "pool-list", "--all", "--name"], check=True).stdout.split():
            self._host.run(["virsh", "pool-destroy", pool])
            self._host.run(["virsh", "pool-undefine", pool])
        self._host.clear()

    def close(self) -> None:
        self._end_zygote()
        if self._owns:
            self._host.close()

    def _end_zygote(self) -> None:
        with contextlib.suppress(AssertionError, OSError, subprocess.SubprocessError):  # it may be dead already
            self._zygote.close()


_keeper: Keeper | None = None


def open_house() -> None:
    """Make the host of a process that plays rows."""
    global _keeper
    _keeper = Keeper()
    atexit.register(_keeper.close)
    signal.signal(signal.SIGALRM, _too_slow)


def play_named(name: str) -> Played:
    assert _keeper is not None
    """Play the row of that name; one that hangs is ended and broken off."""
    signal.alarm(_ROW_SECONDS)
    try:
        return _keeper.play(ROWS[name])
    finally:
        signal.alarm(0)


def _too_slow(_number: int, _frame: FrameType | None) -> None:
    raise RowHangs(f"no end after {_ROW_SECONDS} s")
