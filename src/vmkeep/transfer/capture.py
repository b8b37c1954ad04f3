"""Reading a disk into the repository: what changed, in order, with several readers.

    maps -> runs of blocks -> readers (read, zero test, id, compress, seal) -> in order -> manifest

The window of runs in flight is bounded, so memory does not grow with the disk; the manifest is written by the
one thread that waits for the runs in order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from types import MappingProxyType
from typing import Protocol

from vmkeep.errors import TransferError
from vmkeep.extents import BlockRun, ExtentError, Kind, Reply, cut, merge
from vmkeep.pool import Pool
from vmkeep.repository import BlockRef
from vmkeep.transfer.source import DiskSource, SourceConnection
from vmkeep.values import dataclass

# So much is asked of QEMU at a time. More costs QEMU: it allocates the memory of each request anew, and from 1 MiB on
# its allocator gets it from the kernel and gives it back (1.2 GB over three connections: 0.85 s of processor time
# instead of 0.25 s).
READ_BYTES = 512 << 10
# So much is hashed, compressed and sealed at a time: what is done once for all of it, with threads that wait for each
# other, costs more than what is done for each block. A full point of 1.2 GB took 2.66 s by the half of a MiB, 2.13 to
# 2.4 s by the MiB, 2.2 s by two (two processors), and from there on no less.
RUN_BYTES = 4 * READ_BYTES
_WAIT_SECONDS = 0.2
_STOP_EVERY = 1 << 12


class BlockSink(Protocol):
    """What takes the blocks: a disk writer of the repository."""

    def seal_run(self, *pieces: bytes | memoryview) -> list[BlockRef | None]: ...
    def matches(self, ref: BlockRef, data: bytes | bytearray | memoryview) -> bool: ...
    def record(self, block: int, ref: BlockRef | None) -> None: ...
    def record_zero(self, first_block: int, blocks: int) -> None: ...


class BaseMismatch(Exception):
    """A block that did not change, by the dirty map, is not what the base has there: the base is not this disk's."""

    def __init__(self, block: int) -> None:
        super().__init__(f"block {block}")
        self.block = block


@dataclass(frozen=True, slots=True)
class Captured:
    """What reading a disk took: bytes read from the source, and bytes in ranges recorded as zero."""

    bytes_read: int
    bytes_zero: int


class _Readers:
    """Threads with a connection each, all closed when the capture ends, however it ends."""

    def __init__(self, source: DiskSource, workers: int) -> None:
        self._source = source
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[SourceConnection] = []
        self.pool = Pool(workers, thread_name_prefix="vmkeep-capture")

    def connection(self) -> SourceConnection:
        existing: SourceConnection | None = getattr(self._local, "connection", None)
        if existing is None:
            existing = self._local.connection = self._source.connect()
            with self._lock:
                self._connections.append(existing)
        return existing

    def close(self, *, orderly: bool) -> None:
        # After a failure a reader may hang in a read that only ends when the job does, so it is not waited for;
        # its connection is then closed by the end of the job.
        self.pool.shutdown(wait=orderly, cancel_futures=True)
        if orderly:
            for connection in self._connections:
                connection.close()


class _Proof:
    """That the base is this disk's: a bitmap cannot tell that its image was exchanged for another one that has a
    bitmap of the same name, as the disks of one VM have."""

    def __init__(self, witnesses: Mapping[int, BlockRef]) -> None:
        self._unchanged = dict(witnesses)

    def see_change(self, run: BlockRun) -> None:
        for block in [block for block in self._unchanged if run.first_block <= block < run.first_block + run.blocks]:
            del self._unchanged[block]

    def check(self, sink: BlockSink, read: Callable[[int], bytes | bytearray]) -> None:
        for block, ref in self._unchanged.items():
            if not sink.matches(ref, read(block)):
                raise BaseMismatch(block)


def changed_runs(source: DiskSource, block_bytes: int, stop: Callable[[], None]) -> Iterator[BlockRun]:
    """Yield the blocks that changed, as runs; raises TransferError for maps that are none of the disk.

    ``stop`` is asked also where nothing changed: a QEMU that its guest took over may go on with that for ever.
    """
    size_bytes = source.size_bytes
    try:
        extents = merge(_heeding(source.dirty_map(), stop), _heeding(source.zero_map(), stop), size_bytes)
        yield from cut(
            extents, block_bytes=block_bytes, size_bytes=size_bytes, max_blocks=max(1, RUN_BYTES // block_bytes)
        )
    except ExtentError as error:
        raise TransferError(f"the maps of the disk cannot be true: {error}") from error


def _heeding(replies: Iterable[Reply], stop: Callable[[], None]) -> Iterator[Reply]:
    for number, reply in enumerate(replies):
        if not number % _STOP_EVERY:
            stop()
        yield reply


def capture_disk(
    source: DiskSource,
    sink: BlockSink,
    *,
    block_bytes: int,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
    witnesses: Mapping[int, BlockRef] = MappingProxyType({}),
) -> Captured:
    """Read what the dirty map names and record it, zero ranges as zero.

    ``stop`` raises when the operation was cancelled; it is asked at least every 0.2 s. ``progress`` is told the
    number of bytes that were settled since the last call. ``witnesses`` are blocks of the base; those that did not
    change are read as well, to prove it. Raises TransferError when the source fails, BaseMismatch when a witness has
    another content.
    """
    size_bytes = source.size_bytes
    runs = changed_runs(source, block_bytes, stop)
    readers = _Readers(source, workers)
    waiting: deque[tuple[BlockRun, Future[list[BlockRef | None]] | None]] = deque()
    bytes_read = bytes_zero = 0
    proof = _Proof(witnesses)
    step = max(1, READ_BYTES // block_bytes) * block_bytes

    def byte_range(run: BlockRun) -> tuple[int, int]:
        start = run.first_block * block_bytes
        return start, min(run.blocks * block_bytes, size_bytes - start)

    def read_run(run: BlockRun) -> list[BlockRef | None]:
        start, length = byte_range(run)
        connection = readers.connection()
        pieces = [memoryview(connection.read(start + at, min(step, length - at))) for at in range(0, length, step)]
        return sink.seal_run(*pieces)

    def settle() -> None:
        run, future = waiting.popleft()
        if future is None:
            sink.record_zero(run.first_block, run.blocks)
        else:
            for number, ref in enumerate(_result(future, stop), run.first_block):
                sink.record(number, ref)
        progress(byte_range(run)[1])

    orderly = False
    try:
        for run in runs:
            stop()
            proof.see_change(run)
            length = byte_range(run)[1]
            if run.kind is Kind.ZERO:
                bytes_zero += length
                waiting.append((run, None))
            else:
                bytes_read += length
                waiting.append((run, readers.pool.submit(read_run, run)))
            while len(waiting) > workers * 4:
                settle()
        while waiting:
            settle()
        proof.check(sink, lambda block: readers.connection().read(*byte_range(BlockRun(block, 1, Kind.DATA))))
        orderly = True
    finally:
        readers.close(orderly=orderly)
    return Captured(bytes_read, bytes_zero)


def _result(future: Future[list[BlockRef | None]], stop: Callable[[], None]) -> list[BlockRef | None]:
    while True:
        try:
            return future.result(timeout=_WAIT_SECONDS)
        except StillRunning:
            if future.done():
                raise  # a TimeoutError of the reader itself
            stop()
