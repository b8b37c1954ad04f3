"""An NBD export of QEMU's as a disk source.

Each map is read over a connection of its own with one metadata context. With two contexts on one connection a
reply may cover different lengths for each, and a reader that walks both with one offset drifts; two independent
cursors cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import nbd

from vmkeep.errors import TransferError
from vmkeep.extents import Reply, everything_dirty

# A request for block status counts in 32 bits; a multiple of every cluster size below that keeps replies aligned.
_STATUS_STEP_BYTES = 2 << 30


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

    def __init__(self, socket: str, export: str, bitmap: str | None, *, label: str | None = None) -> None:
        self._socket = socket
        self._export = export
        self._bitmap = bitmap
        self._label = label
        probe = NbdConnection(socket, export, label=label)
        self._size_bytes = probe.size_bytes
        probe.close()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def connect(self) -> NbdConnection:
        return NbdConnection(self._socket, self._export, label=self._label)

    def dirty_map(self) -> Iterator[Reply]:
        if self._bitmap is None:
            return everything_dirty(self._size_bytes)
        return self._status(f"qemu:dirty-bitmap:{self._bitmap}")

    def zero_map(self) -> Iterator[Reply]:
        return self._status(nbd.CONTEXT_BASE_ALLOCATION)

    def _status(self, context: str) -> Iterator[Reply]:
        connection = NbdConnection(self._socket, self._export, context, label=self._label)
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
