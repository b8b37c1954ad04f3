"""An NBD export of QEMU's as a disk source, and questions to its server that never come to an export.

Each map is read with requests of its own for one metadata context, of which nothing but that context's answer is
taken. A reply for two contexts may cover different lengths for each, and a reader that walks both with one offset
drifts; two independent cursors cannot.
"""

from __future__ import annotations

import os
import socket as socketlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import nbd

from vmkeep.errors import TransferError
from vmkeep.extents import Reply, everything_dirty

BASE_ALLOCATION: str = nbd.CONTEXT_BASE_ALLOCATION
# A request for block status counts in 32 bits; a multiple of every cluster size below that keeps replies aligned.
_STATUS_STEP_BYTES = 2 << 30
# QEMU answers for all that was asked, or fills a reply with 131,072 extents (7.2, 10.0): so many nobody needs.
_MOST_SHORT_REPLIES = 50_000
# A job has as many exports as the VM has disks.
_MOST_EXPORTS = 4096
# The NBD protocol's greeting of a server, and a client's answer: its flags (newstyle), and the option to give up.
_GREETING_BYTES = 18
_GIVE_UP = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)


class NbdConnection:
    """One connection to an export, over a socket that is connected; raises TransferError for every failure of it.

    ``contexts`` are what its maps can be of. ``label`` is how errors name the disk. It never says goodbye, and the
    server learns nothing of its end as long as somebody has the socket.
    """

    def __init__(self, socket: socketlib.socket, export: str, contexts: Sequence[str], label: str) -> None:
        self._label = label
        self._handle = nbd.NBD()
        try:
            _speak_plainly(self._handle)
            self._handle.set_export_name(export)
            for context in contexts:
                self._handle.add_meta_context(context)
            self._handle.connect_socket(os.dup(socket.fileno()))
            for context in contexts:
                if not self._handle.can_meta_context(context):
                    raise TransferError(f"QEMU's export of disk {label} offers no {context}", disk=label)
            self.size_bytes: int = self._handle.get_size()
        except nbd.Error as error:
            raise TransferError(f"the export of disk {label} cannot be opened: {error.string}", disk=label) from error

    def read(self, start: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``start``."""
        try:
            return self._handle.pread(length, start)
        except nbd.Error as error:
            raise TransferError(
                f"reading disk {self._label} at {start} failed: {error.string}", disk=self._label
            ) from error

    def status(self, context: str, start: int, length: int) -> list[int]:
        """Return what the context says from ``start`` on: lengths and flags by turns, maybe for less or for more."""
        replies: list[int] = []

        def take(of: str, _offset: int, entries: list[int], _error: object) -> int:
            if of == context:
                replies.extend(entries)
            return 0

        try:
            self._handle.block_status(length, start, take)
        except nbd.Error as error:
            raise TransferError(
                f"the map of disk {self._label} cannot be read at {start}: {error.string}", disk=self._label
            ) from error
        if not replies:
            raise TransferError(f"QEMU gave no map of disk {self._label} at {start}", disk=self._label)
        return replies


def _speak_plainly(handle: nbd.NBD) -> None:
    """Use the requests that every server knows, and the shortest last option of the handshake.

    libnbd 1.18 and QEMU 8.2 agree on longer ones otherwise. The guardian asks a connection of a dead vmkeep with a
    plain one, for which QEMU would wait in vain (seen with 1.22 and 10.0: the job ended 3 s late). And where that
    option ended with the two bytes of an item, and vmkeep was killed before them, the guardian's question completed it:
    QEMU was past the handshake, read the next request from its middle, and died with its guest (``vmkeep.host.guard``).
    """
    handle.set_request_block_size(False)
    if hasattr(handle, "set_request_extended_headers"):  # since 1.18; Debian 12 has 1.14
        handle.set_request_extended_headers(False)


class Export(Protocol):
    """An export of a server, and connections to it (``vmkeep.transfer.connections``)."""

    def lend(self, context: str | None = None) -> AbstractContextManager[NbdConnection]:
        """Lend a connection for one request after the other, one whose maps can be of ``context``."""
        ...


class NbdSource:
    """A disk as an NBD export shows it. ``bitmap`` is the context of the exported dirty bitmap, None for all.

    Connections are borrowed for a request, so a map that nobody reads to its end holds none.
    """

    def __init__(self, export: Export, bitmap: str | None) -> None:
        self._export = export
        self._bitmap = bitmap
        with export.lend(BASE_ALLOCATION) as connection:
            self._size_bytes = connection.size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def connect(self) -> BorrowingReader:
        return BorrowingReader(self._export)

    def dirty_map(self) -> Iterator[Reply]:
        if self._bitmap is None:
            return everything_dirty(self._size_bytes)
        return self._status(self._bitmap)

    def zero_map(self) -> Iterator[Reply]:
        return self._status(BASE_ALLOCATION)

    def _status(self, context: str) -> Iterator[Reply]:
        position = short_replies = 0
        while position < self._size_bytes:
            step = min(_STATUS_STEP_BYTES, self._size_bytes - position)
            with self._export.lend(context) as connection:
                replies = connection.status(context, position, step)
            before = position
            # No calls in here: a map can have millions of extents.
            for length, flags in zip(replies[::2], replies[1::2], strict=True):
                end = position + length
                if end > self._size_bytes:
                    # The last extent of a reply may reach past what was asked, and past the end of the export.
                    end = self._size_bytes
                    if end <= position:
                        break
                yield position, end - position, flags
                position = end
            short_replies += position < before + step
            if position == before or short_replies > _MOST_SHORT_REPLIES:
                raise TransferError(f"QEMU's map of the disk makes no progress at {position}")


class BorrowingReader:
    """Reads an export over whichever connection is free."""

    def __init__(self, export: Export) -> None:
        self._export = export

    def read(self, start: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``start``; raises TransferError."""
        with self._export.lend() as connection:
            return connection.read(start, length)

    def close(self) -> None:
        """Nothing is to be given back."""


def export_names(socket: str, timeout_seconds: float) -> frozenset[str] | None:
    """Return what the server at a socket exports now; None when it does not answer (yet)."""
    handle = nbd.NBD()
    deadline = time.monotonic() + timeout_seconds
    names: set[str] = set()

    def take(name: str, _description: str) -> int:
        if len(names) >= _MOST_EXPORTS:
            return -1
        names.add(name)
        return 0

    def passed(busy: Callable[[], bool]) -> bool:
        while busy():
            left = deadline - time.monotonic()
            if left <= 0 or handle.poll(max(1, int(left * 1000))) == 0:
                return False
        return True

    try:
        handle.set_opt_mode(True)
        handle.aio_connect_unix(socket)
        if not passed(handle.aio_is_connecting) or not handle.aio_is_negotiating():
            return None
        handle.aio_opt_list(take)
        if not passed(handle.aio_is_connecting):
            return None
    except nbd.Error:
        return None
    return frozenset(names)


def answers_handshakes(path: str, timeout_seconds: float) -> bool:
    """Begin and end a handshake with the server at a socket, and return whether it came to its end in time.

    QEMU looks at its handshakes one after the other, so all that were given up before have ended then. True also when
    nobody serves there. In libnbd a client that gives a handshake up does not wait for the server's own end of it.
    """
    deadline = time.monotonic() + timeout_seconds
    with socketlib.socket(socketlib.AF_UNIX, socketlib.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return True
        except OSError:
            return False
        try:
            if len(_received(connection, _GREETING_BYTES, deadline)) < _GREETING_BYTES:
                return True  # it was just closing
            connection.sendall(_GIVE_UP)
            while _received(connection, _GREETING_BYTES, deadline):
                if time.monotonic() > deadline:
                    return False  # one that says more and more would keep us for ever
        except (BrokenPipeError, ConnectionResetError):
            return True
        except OSError:
            return False
    return True


def _received(connection: socketlib.socket, length: int, deadline: float) -> bytes:
    """Return so many bytes, fewer when the other side has closed; raises TimeoutError."""
    received = b""
    while len(received) < length:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        more = connection.recv(length - len(received))
        if not more:
            break
        received += more
    return received
