"""Capturing a disk: what is read, what is recorded as zero, and how it ends."""

from __future__ import annotations

import threading

import pytest

from vmkeep.errors import Interrupted, TransferError
from vmkeep.repository import BlockRef
from vmkeep.transfer.capture import READ_BYTES, RUN_BYTES, BaseMismatch, Captured, capture_disk
from vmkeep.transfer.source import MemorySource, SourceConnection

BLOCK = 64 * 1024


class Kept:
    """A sink that keeps what it is given, as the repository would."""

    def __init__(self, content: bytes = b"") -> None:
        self.image = bytearray(content)
        self.sealed: dict[bytes, bytes] = {}
        self.order: list[int] = []
        self._lock = threading.Lock()

    def seal_run(self, *pieces: bytes | memoryview) -> list[BlockRef | None]:
        data = b"".join(pieces)
        refs: list[BlockRef | None] = []
        with self._lock:
            for at in range(0, len(data), BLOCK):
                plain = bytes(data[at : at + BLOCK])
                if not any(plain):
                    refs.append(None)
                    continue
                id_ = len(self.sealed).to_bytes(32, "big")
                self.sealed[id_] = plain
                refs.append(BlockRef(id_, bytes(16), 0, 100))
        return refs

    def matches(self, ref: BlockRef, data: bytes | bytearray | memoryview) -> bool:
        return self.sealed[ref.id] == bytes(data)

    def record(self, block: int, ref: BlockRef | None) -> None:
        self.order.append(block)
        length = min(BLOCK, len(self.image) - block * BLOCK)
        self.image[block * BLOCK : block * BLOCK + length] = bytes(length) if ref is None else self.sealed[ref.id]

    def record_zero(self, first_block: int, blocks: int) -> None:
        self.order.append(first_block)
        end = min((first_block + blocks) * BLOCK, len(self.image))
        self.image[first_block * BLOCK : end] = bytes(end - first_block * BLOCK)


def capture(source: MemorySource, sink: Kept, workers: int = 2) -> Captured:
    return capture_disk(
        source, sink, block_bytes=BLOCK, workers=workers, stop=lambda: None, progress=lambda _settled: None
    )


def test_ranges_known_to_be_zero_are_not_read() -> None:
    content = bytes(8 * BLOCK) + b"\x11" * BLOCK + bytes(7 * BLOCK)
    source, sink = MemorySource(content), Kept(b"\xff" * len(content))
    captured = capture(source, sink)
    assert bytes(sink.image) == content
    assert captured == Captured(bytes_read=BLOCK, bytes_zero=15 * BLOCK)
    assert source.reads == [(8 * BLOCK, BLOCK)]


def test_dirty_range_that_became_zero_is_recorded_as_zero() -> None:
    before = b"\xaa" * (4 * BLOCK)
    now = b"\xaa" * BLOCK + bytes(BLOCK) + b"\xaa" * (2 * BLOCK)
    sink = Kept(before)
    captured = capture(MemorySource(now, dirty=[(BLOCK, BLOCK)]), sink)
    assert bytes(sink.image) == now
    assert captured.bytes_read == 0


def test_clean_ranges_are_neither_read_nor_recorded() -> None:
    content = bytes(range(256)) * (BLOCK // 256) * 6
    source, sink = MemorySource(content, dirty=[(2 * BLOCK + 512, 512)]), Kept(content)
    capture(source, sink)
    assert source.reads == [(2 * BLOCK, BLOCK)]
    assert sink.order == [2]


def test_runs_are_recorded_in_order_whatever_reader_is_first() -> None:
    content = bytes((number * 7 + 1) % 251 + 1 for number in range(256)) * (40 * READ_BYTES // 256)
    sink = Kept(bytes(len(content)))
    capture(MemorySource(content), sink, workers=4)
    assert sink.order == sorted(sink.order)
    assert bytes(sink.image) == content


def test_long_runs_are_read_by_requests_that_qemu_has_memory_for() -> None:
    content = b"\x01" * (RUN_BYTES + READ_BYTES + BLOCK + 512)
    source, sink = MemorySource(content), Kept(bytes(len(content)))
    capture(source, sink)
    assert max(length for _, length in source.reads) == READ_BYTES
    assert sum(length for _, length in source.reads) == len(content)
    assert bytes(sink.image) == content


def test_short_last_block_is_read_to_the_end_of_the_disk() -> None:
    content = b"\x01" * (BLOCK + 512)
    sink = Kept(bytes(len(content)))
    capture(MemorySource(content), sink)
    assert bytes(sink.image) == content


def _with_witnesses(now: bytes, base: bytes, dirty: list[tuple[int, int]], witnesses: list[int]) -> Kept:
    sink = Kept(base)
    refs = sink.seal_run(base)
    capture_disk(
        MemorySource(now, dirty=dirty),
        sink,
        block_bytes=BLOCK,
        workers=2,
        stop=lambda: None,
        progress=lambda _settled: None,
        witnesses={block: ref for block in witnesses if (ref := refs[block]) is not None},
    )
    return sink


def test_unchanged_block_with_other_content_than_the_base_ends_the_capture() -> None:
    base = b"".join(bytes([number + 1]) * BLOCK for number in range(6)) + b"\x77" * 512
    for changed in (3, 6):  # the last one is the short block
        now = bytearray(base)
        now[changed * BLOCK] ^= 0xFF
        with pytest.raises(BaseMismatch) as mismatch:
            _with_witnesses(bytes(now), base, [(BLOCK, 512)], [0, 3, 5, 6])
        assert mismatch.value.block == changed


def test_block_that_changed_is_no_witness() -> None:
    base = b"".join(bytes([number + 1]) * BLOCK for number in range(6))
    now = base[: 2 * BLOCK] + b"\xee" * (2 * BLOCK) + base[4 * BLOCK :]
    sink = _with_witnesses(now, base, [(2 * BLOCK, 2 * BLOCK)], [0, 2, 3, 4])
    assert bytes(sink.image) == now


class _Broken(MemorySource):
    def read(self, start: int, length: int) -> bytes:
        if start >= 4 * READ_BYTES:
            raise TransferError("the other side is gone", disk="vda")
        return super().read(start, length)


def test_failure_of_a_reader_ends_the_capture_with_its_error() -> None:
    source = _Broken(b"\x01" * (32 * READ_BYTES))
    with pytest.raises(TransferError, match="gone"):
        capture(source, Kept(bytes(source.size_bytes)))


class _Hanging(MemorySource):
    """A source whose reads hang until it is let go, as they do when QEMU stands still."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.let_go = threading.Event()

    def read(self, start: int, length: int) -> bytes:
        self.let_go.wait(30)
        return super().read(start, length)

    def connect(self) -> SourceConnection:  # type: ignore[override]  # the same object, seen as a connection
        return self


def test_cancelling_does_not_wait_for_a_reader_that_hangs() -> None:
    source = _Hanging(b"\x01" * (8 * READ_BYTES))
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked > 12:
            raise Interrupted("enough")

    try:
        with pytest.raises(Interrupted):
            capture_disk(
                source, Kept(bytes(source.size_bytes)), block_bytes=BLOCK, workers=2, stop=stop, progress=lambda _: None
            )
    finally:
        source.let_go.set()
