"""The connections to one NBD server: few for each export, used again, and all closed together at the end.

No connection of a backup job may end before the job is gone: QEMU before 9.0 dies when a client leaves an export whose
disk is in an I/O thread (docs/guide/known-faults.md; ``nbd_blockdev_client_closed`` asserts that it runs in the main
thread, seen with 7.2.22). So none is closed when it has done its work; it waits for more. Nothing says goodbye
either, and of each socket a duplicate is kept here, which stays open when a connection breaks.
"""

from __future__ import annotations

import socket as socketlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from vmkeep.errors import TransferError
from vmkeep.transfer.nbd import BASE_ALLOCATION, NbdConnection


class Keeper(Protocol):
    """Somebody who keeps the sockets of a job open when this process dies."""

    def take(self, socket: socketlib.socket) -> Callable[[], None]:
        """Take a duplicate before its handshake; what is returned is called when the handshake is over."""
        ...


class Connections:
    """All connections to the server at a socket. ``close`` ends them."""

    def __init__(self, path: str, *, connecting: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """``connecting`` is entered while a connection is made."""
        self._path = path
        self._connecting = connecting
        self._exports: dict[str, PooledExport] = {}
        self._lock = threading.Lock()

    def export(
        self, name: str, *, bitmap: str | None = None, most: int, label: str | None = None, keeper: Keeper | None = None
    ) -> PooledExport:
        """Return an export, the same for each who asks. ``bitmap`` is the context of its dirty bitmap, if any.

        ``most`` is how many connections it may have at one time, at least one. ``label`` is how errors name the disk.
        """
        with self._lock:
            if name not in self._exports:
                contexts = (BASE_ALLOCATION,) if bitmap is None else (BASE_ALLOCATION, bitmap)
                self._exports[name] = PooledExport(self, name, contexts, most, label or name, keeper)
            return self._exports[name]

    def close(self, name: str | None = None) -> None:
        """Close all connections, those of one export if it is named. Only when that can harm nobody: see the module."""
        with self._lock:
            ended = list(self._exports) if name is None else [name]
            for each in ended:
                export = self._exports.pop(each, None)
                if export is not None:
                    export.drop()

    def connect(
        self, export: str, contexts: Sequence[str], label: str, keeper: Keeper | None, kept: list[socketlib.socket]
    ) -> NbdConnection:
        """Make a connection, whose socket is among ``kept`` before the server knows what it is for."""
        with self._connecting():
            socket = socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_STREAM)
            kept.append(socket)
            try:
                socket.connect(self._path)
            except OSError as error:
                raise TransferError(
                    f"the export of disk {label} cannot be opened: {error.strerror or error}", disk=label
                ) from error
            made = keeper.take(socket) if keeper is not None else None
            connection = NbdConnection(socket, export, contexts, label)
            if made is not None:
                made()
            return connection


class PooledExport:
    """One export and its connections, which are lent for a request at a time.

    A map has a connection of its own as long as there may be one more for readers; with fewer all serve for all.
    """

    def __init__(
        self,
        server: Connections,
        name: str,
        contexts: tuple[str, ...],
        most: int,
        label: str,
        keeper: Keeper | None,
    ) -> None:
        self._server = server
        self._name = name
        self._label = label
        self._keeper = keeper
        self._most = max(1, most)
        self._kinds: list[tuple[str, ...]] = [(context,) for context in contexts]
        if self._most < len(contexts):
            self._kinds = [contexts]
        if self._most > len(contexts):
            self._kinds.append(())
        self._idle: dict[tuple[str, ...], list[NbdConnection]] = {kind: [] for kind in self._kinds}
        self._number = dict.fromkeys(self._kinds, 0)
        self._sockets: list[socketlib.socket] = []
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, context: str | None = None) -> Iterator[NbdConnection]:
        """Lend a connection, one whose maps can be of ``context``; waits for one when all that may be are lent."""
        kind, connection = self._borrow(context)
        try:
            if connection is None:
                try:
                    connection = self._server.connect(self._name, kind, self._label, self._keeper, self._sockets)
                except BaseException:
                    with self._changed:
                        self._number[kind] -= 1
                    raise
            yield connection
        finally:
            with self._changed:
                if connection is not None:
                    self._idle[kind].append(connection)
                self._changed.notify_all()

    def drop(self) -> None:
        """Close every connection that nobody uses just now; the others when they are given back."""
        with self._changed:
            for idle in self._idle.values():
                idle.clear()
            for socket in self._sockets:
                socket.close()
            self._sockets.clear()

    def _borrow(self, context: str | None) -> tuple[tuple[str, ...], NbdConnection | None]:
        """Return an idle connection, or None with the kind of which one more is to be made."""
        if context is None:
            fitting = self._kinds[-1:] if () in self._kinds else self._kinds
        else:
            fitting = [kind for kind in self._kinds if context in kind]
        with self._changed:
            while True:
                for kind in fitting:
                    if self._idle[kind]:
                        return kind, self._idle[kind].pop()
                for kind in fitting:
                    if self._number[kind] < self._room(kind):
                        self._number[kind] += 1
                        return kind, None
                self._changed.wait()

    def _room(self, kind: tuple[str, ...]) -> int:
        """Return how many connections of a kind there may be: one for each map, the rest for readers."""
        return 1 if kind else self._most - len(self._kinds) + 1
