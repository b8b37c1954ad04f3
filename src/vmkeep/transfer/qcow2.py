"""A new qcow2 image, written as a file: its data one behind the other, its tables at the end.

Through qemu-nbd each byte of a restored disk crosses a socket, and QEMU spends as much processor time on it as reading,
opening and proving the blocks takes (0.85 s and 1.0 s for 1.2 GB). The layout of an image that is written once is
simple. It is that of QEMU's specification (docs/interop/qcow2.txt), version 3, with clusters of 64 KiB as `qemu-img
create` makes them:

    header | data and second-level tables, as they come | first-level table | reference counts | table of those

The header is written last, so a file that was not finished is no image. Every cluster is used once, so every reference
count is one. No feature is used that QEMU 1.1 does not know; bitmaps can be added to it as to any other.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vmkeep.transfer.newfile import Lane, NewFile

CLUSTER_BITS: Final = 16
CLUSTER_BYTES: Final = 1 << CLUSTER_BITS
_ENTRY_BYTES: Final = 8
_TABLE_ENTRIES: Final = CLUSTER_BYTES // _ENTRY_BYTES
_USED_ONCE: Final = 1 << 63
_REFCOUNT_ORDER: Final = 4
"""Reference counts have 16 bits."""
_COUNTS_IN_CLUSTER: Final = CLUSTER_BYTES // 2
_VERSION: Final = 3
# magic, version, backing file (place, length), cluster bits, size, encryption, first-level table (entries, place),
# reference count table (place, clusters), snapshots (number, place), three sets of features, order of the reference
# counts, length of the header; then the end of its extensions.
_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQQQQII8x")
_HEADER_LENGTH: Final = 104


class Qcow2File:
    """A new image in which all that is not written reads as zero.

    ``size_bytes`` is a multiple of 512. Raises OSError when the file cannot be made.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._file = NewFile(path, aligned=True)
        self._lock = threading.Lock()
        self._clusters = 1  # the header's
        self._tables: dict[int, int] = {}

    def writer(self) -> Qcow2Writer:
        return Qcow2Writer(self, self._file.lane())

    def allocate(self, clusters: int) -> int:
        """Return the number of the first of so many clusters, one behind the other."""
        with self._lock:
            first = self._clusters
            self._clusters += clusters
            return first

    def map(self, guest: int, host: int, clusters: int) -> None:
        """Enter where clusters of the disk, one behind the other, are in the file."""
        while clusters:
            table, entry = divmod(guest, _TABLE_ENTRIES)
            count = min(clusters, _TABLE_ENTRIES - entry)
            entries = [cluster << CLUSTER_BITS | _USED_ONCE for cluster in range(host, host + count)]
            place = (self._table(table) << CLUSTER_BITS) + entry * _ENTRY_BYTES
            self._file.write(place, struct.pack(f">{count}Q", *entries))
            guest, host, clusters = guest + count, host + count, clusters - count

    def finish(self) -> None:
        """Write the tables and the header, and make all durable."""
        tables = max(1, -(-self._size_bytes // (CLUSTER_BYTES * _TABLE_ENTRIES)))
        first_level_at = self.allocate(-(-tables // _TABLE_ENTRIES))
        self._write_first_level(first_level_at << CLUSTER_BITS, tables)
        counts_table_at, counts_table_clusters = self._write_reference_counts()
        header = _HEADER.pack(
            b"QFI\xfb",
            _VERSION,
            0,
            0,
            CLUSTER_BITS,
            self._size_bytes,
            0,
            tables,
            first_level_at << CLUSTER_BITS,
            counts_table_at << CLUSTER_BITS,
            counts_table_clusters,
            0,
            0,
            0,
            0,
            0,
            _REFCOUNT_ORDER,
            _HEADER_LENGTH,
        )
        self._file.write(0, header)
        self._file.finish(self._clusters << CLUSTER_BITS)

    def _write_first_level(self, place: int, tables: int) -> None:
        """Write the first-level table cluster by cluster: it follows the size of the disk, whatever that holds.

        Zeros are left out, as the file is new and reads as zero there.
        """
        by_cluster: dict[int, list[int]] = {}
        for table in sorted(self._tables):
            by_cluster.setdefault(table // _TABLE_ENTRIES, []).append(table)
        for number, present in by_cluster.items():
            entries = [0] * min(_TABLE_ENTRIES, tables - number * _TABLE_ENTRIES)
            for table in present:
                entries[table % _TABLE_ENTRIES] = self._tables[table] << CLUSTER_BITS | _USED_ONCE
            self._file.write(place + (number << CLUSTER_BITS), struct.pack(f">{len(entries)}Q", *entries))

    def _write_reference_counts(self) -> tuple[int, int]:
        """Return the first cluster and the number of clusters of the table; its own clusters are counted as well."""
        blocks = table_clusters = 0
        while (needed := _reference_counts(self._clusters + blocks + table_clusters)) != (blocks, table_clusters):
            blocks, table_clusters = needed
        first = self.allocate(blocks)
        table_at = self.allocate(table_clusters)
        one = struct.pack(">H", 1)
        for number in range(blocks):
            used = min(_COUNTS_IN_CLUSTER, self._clusters - number * _COUNTS_IN_CLUSTER)
            self._file.write((first + number) << CLUSTER_BITS, one * used)
        places = [(first + number) << CLUSTER_BITS for number in range(blocks)]
        self._file.write(table_at << CLUSTER_BITS, struct.pack(f">{blocks}Q", *places))
        return table_at, table_clusters

    def _table(self, number: int) -> int:
        with self._lock:
            if number not in self._tables:
                self._tables[number] = self._clusters
                self._clusters += 1
            return self._tables[number]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class Qcow2Writer:
    """One thread's way into the image."""

    def __init__(self, image: Qcow2File, lane: Lane) -> None:
        self._image = image
        self._lane = lane

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Write blocks, (start, content) ascending; all are whole clusters, but for the end of the disk."""
        if not blocks:
            return
        host = self._image.allocate(sum(_clusters_of(data) for _, data in blocks))
        self._lane.write(host << CLUSTER_BITS, (data for _, data in blocks))
        for guest, clusters in _runs(blocks):
            self._image.map(guest, host, clusters)
            host += clusters


def _runs(blocks: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
    """Yield (first cluster, clusters) of what lies one behind the other on the disk."""
    first = clusters = 0
    for start, data in blocks:
        guest = start >> CLUSTER_BITS
        if clusters and guest != first + clusters:
            yield first, clusters
            clusters = 0
        if not clusters:
            first = guest
        clusters += _clusters_of(data)
    yield first, clusters


def _clusters_of(data: bytes) -> int:
    return -(-len(data) // CLUSTER_BYTES)


def _reference_counts(clusters: int) -> tuple[int, int]:
    """Return how many clusters the reference counts of so many clusters take, and how many the table of those."""
    blocks = -(-clusters // _COUNTS_IN_CLUSTER)
    return blocks, -(-blocks // _TABLE_ENTRIES)
