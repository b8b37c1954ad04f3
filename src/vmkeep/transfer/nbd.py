"""An NBD export of QEMU's as a disk source.

Each map is read over a connection of its own with one metadata context. With two contexts on one connection a
reply may cover different lengths for each, and a reader that walks both with one offset drifts; two independent
cursors cannot.
"""

from __future__ import annotations

import socket as socketlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress

import nbd

from vmkeep.errors import TransferError
from vmkeep.extents import Reply, everything_dirty

# A request for block status counts in 32 bits; a multiple of every cluster size below that keeps replies aligned.
_STATUS_STEP_BYTES = 2 << 30
# The NBD protocol's greeting of a server, and a client's answer: its flags (newstyle), and the option to give up.
_GREETING_BYTES = 18
_GIVE_UP = struct.pack(">I8sII", 1, b"IHAVEOPT", 2, 0)


class NbdConnection:
    """One connection to an export; raises TransferError for every failure of it.

    ``label`` is how errors name the disk, where the name of the export does not tell a user which one it is.
    """

    def __init__(self, socket: str, export: str, context: str | None = None, *, label: str | None = None) -> None:
        self._label = label = label or export
        self._handle = nbd.NBD()
        try:
            self._handle.set_export_name(export)
            if context is not None:
                self._handle.add_meta_context(context)
            self._handle.connect_unix(socket)
            if context is not None and not self._handle.can_meta_context(context):
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

    def status(self) -> Iterator[Reply]:
        """Yield (start, length, flags) of the connection's context over the whole export."""
        position = 0
        while position < self.size_bytes:
            replies: list[int] = []

            def take(_context: str, _offset: int, entries: list[int], _error: object, into: list[int] = replies) -> int:
                into.extend(entries)
                return 0

            step = min(_STATUS_STEP_BYTES, self.size_bytes - position)
            try:
                self._handle.block_status(step, position, take)
            except nbd.Error as error:
                raise TransferError(
                    f"the map of disk {self._label} cannot be read at {position}: {error.string}", disk=self._label
                ) from error
            if not replies:
                raise TransferError(f"QEMU gave no map of disk {self._label} at {position}", disk=self._label)
            # No calls in here: a map can have millions of extents.
            for length, flags in zip(replies[::2], replies[1::2], strict=True):
                end = position + length
                if end > self.size_bytes:
                    # The last extent of a reply may reach past what was asked, and past the end of the export.
                    end = self.size_bytes
                    if end <= position:
                        break
                yield position, end - position, flags
                position = end

    def close(self) -> None:
        """Say goodbye; a connection that is broken already has nothing to say.

        The socket goes with the handle: libnbd's binding has no close before 1.20 (Debian 12 has 1.14).
        """
        with suppress(nbd.Error):
            self._handle.shutdown()


class NbdSource:
    """A disk as an NBD export shows it. ``bitmap`` is the name of the exported dirty bitmap, None for all.

    ``label`` is how errors name the disk; the name of the export if None.
    """

    def __init__(
        self,
        socket: str,
        export: str,
        bitmap: str | None,
        *,
        label: str | None = None,
        connecting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """``connecting`` is entered while a connection is made."""
        self._socket = socket
        self._export = export
        self._bitmap = bitmap
        self._label = label
        self._connecting = connecting
        probe = self.connect()
        self._size_bytes = probe.size_bytes
        probe.close()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def connect(self, context: str | None = None) -> NbdConnection:
        with self._connecting():
            return NbdConnection(self._socket, self._export, context, label=self._label)

    def dirty_map(self) -> Iterator[Reply]:
        if self._bitmap is None:
            return everything_dirty(self._size_bytes)
        return self._status(f"qemu:dirty-bitmap:{self._bitmap}")

    def zero_map(self) -> Iterator[Reply]:
        return self._status(nbd.CONTEXT_BASE_ALLOCATION)

    def _status(self, context: str) -> Iterator[Reply]:
        connection = self.connect(context)
        try:
            yield from connection.status()
        finally:
            connection.close()


def export_names(socket: str, timeout_seconds: float) -> frozenset[str] | None:
    """Return what the server at a socket exports now; None when it does not answer (yet)."""
    handle = nbd.NBD()
    deadline = time.monotonic() + timeout_seconds
    names: set[str] = set()

    def take(name: str, _description: str) -> int:
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
                pass
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
