"""Packs read whole, or a share of them, and every frame that was read opened: what is wrong is read a second time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from vmkeep.errors import ObjectDamaged, VmkeepError
from vmkeep.pool import Pool
from vmkeep.repository.fetch import fetch_frames
from vmkeep.repository.layout import (
    PACK_HEADER_BYTES,
    TRAILER_BYTES,
    FrameKind,
    PackEntry,
    pack_name,
    parse_trailer,
)
from vmkeep.repository.packs import open_index, read_index
from vmkeep.repository.readings import Readings, is_unread
from vmkeep.repository.record import BlockRef
from vmkeep.repository.sampling import Share
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

_WHOLE_PACK_BYTES = 64 * 1024 * 1024
"""A larger pack is read piece by piece; writers close theirs at 16 MiB."""
_PACKS_AT_A_TIME = 2


@dataclass(frozen=True, slots=True)
class PackRead:
    """What reading a pack found. ``problem``: of its structure, or that it cannot be read; ``bad``: frames that did not
    open, by offset.

    ``size_bytes`` is how much was read, and ``blocks`` the number of blocks in that.
    """

    size_bytes: int
    problem: VmkeepError | None = None
    blocks: int = 0
    bad: tuple[tuple[int, str], ...] = ()


def beside_frames(entries: Sequence[PackEntry], size_bytes: int) -> int:
    """Return how much of a pack is header, index and trailer, which are read for the index."""
    return PACK_HEADER_BYTES + size_bytes - max((entry.offset + entry.length for entry in entries), default=0)


class PackReader:
    """Reads packs of a store, whose sizes are given; with ``share`` only so much of each."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        readings: Readings,
        sizes: Mapping[bytes, int],
        share: Share | None = None,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._readings = readings
        self._sizes = sizes
        self._share = share

    def read_all(self, packs: Iterable[bytes]) -> Iterator[tuple[bytes, PackRead]]:
        """Yield each pack, in that order, with what reading it found; some more are read meanwhile."""
        waiting: deque[tuple[bytes, Future[PackRead]]] = deque()
        pool = Pool(max_workers=_PACKS_AT_A_TIME, thread_name_prefix="vmkeep-verify")
        try:
            for pack in packs:
                waiting.append((pack, pool.submit(self._read_pack, pack, self._sizes[pack])))
                if len(waiting) > _PACKS_AT_A_TIME:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_pack(self, pack: bytes, size_bytes: int) -> PackRead:
        """Read a pack, or the share of it, and open every frame that was read; what is wrong is read again."""
        taken: set[int] = set()  # the second attempt reads the frames of the first, or it proves nothing of them
        read = self._read_pack_once(pack, size_bytes, taken)
        damaged = read.problem is not None and not is_unread(read.problem)
        if not damaged and not read.bad:
            return read
        self._store.forget_cached(pack_name(pack))
        again = self._read_pack_once(pack, size_bytes, taken)
        bad = tuple(frame for frame in again.bad if read.problem is not None or frame in read.bad)
        if again.problem is None and not bad:
            what = read.problem.message if read.problem is not None else read.bad[0][1]
            self._readings.unsteady[pack_name(pack)] = what
        return replace(again, bad=bad)

    def _read_pack_once(self, pack: bytes, size_bytes: int, taken: set[int]) -> PackRead:
        try:
            if self._share is not None:
                return self._read_share(pack, size_bytes, self._share, taken)
            if size_bytes > _WHOLE_PACK_BYTES:
                return self._read_large_pack(pack, size_bytes)
            (content,) = self._store.ranges(pack_name(pack), [(0, size_bytes)]) if size_bytes else [memoryview(b"")]
            start, length = parse_trailer(bytes(content[-TRAILER_BYTES:]), len(content), pack)
            header = bytes(content[:PACK_HEADER_BYTES])
            entries = open_index(self._sealer, pack, header, content[start : start + length], start)
        except VmkeepError as error:
            return PackRead(size_bytes, problem=error)
        frames = (content[entry.offset : entry.offset + entry.length] for entry in entries)
        return self._opened(pack, entries, frames, size_bytes)

    def _read_large_pack(self, pack: bytes, size_bytes: int) -> PackRead:
        """Read a pack frame by frame: what another writer made of it must not decide how much memory this takes."""
        entries = read_index(self._store, self._sealer, pack, size_bytes)
        return self._opened(pack, entries, self._one_by_one(pack, entries), size_bytes)

    def _one_by_one(self, pack: bytes, entries: Sequence[PackEntry]) -> Iterator[memoryview]:
        """Yield frames; one that is longer than it can be is not read, and what is yielded opens as damage."""
        for entry in entries:
            too_long = entry.length > frame_bytes_limit(entry.kind)
            ref = BlockRef(entry.id, pack, entry.offset, entry.length)
            yield memoryview(b"") if too_long else fetch_frames(self._store, [ref])[0]

    def _read_share(self, pack: bytes, size_bytes: int, share: Share, taken: set[int]) -> PackRead:
        """Read the frames at the offsets ``taken``, or, when there are none yet, choose them and note them there."""
        entries = read_index(self._store, self._sealer, pack, size_bytes)
        if not taken:
            taken.update(entry.offset for entry in share.of(entries, lambda item: (pack, item.offset, item.length)))
        chosen = [entry for entry in sorted(entries, key=lambda item: item.offset) if entry.offset in taken]
        read_bytes = beside_frames(entries, size_bytes) + sum(entry.length for entry in chosen)
        if size_bytes > _WHOLE_PACK_BYTES:
            return self._opened(pack, chosen, self._one_by_one(pack, chosen), read_bytes)
        refs = [BlockRef(entry.id, pack, entry.offset, entry.length) for entry in chosen]
        return self._opened(pack, chosen, fetch_frames(self._store, refs), read_bytes)

    def _opened(
        self, pack: bytes, entries: Sequence[PackEntry], frames: Iterable[memoryview], read_bytes: int
    ) -> PackRead:
        bad: list[tuple[int, str]] = []
        for entry, frame in zip(entries, frames, strict=True):
            where = f"{pack_name(pack)} at {entry.offset}"
            try:
                plain = self._sealer.open(entry.kind, entry.id, frame, where)
                if len(plain) != entry.plain_bytes:
                    bad.append((entry.offset, f"{where} has a wrong length"))
            except ObjectDamaged as error:
                bad.append((entry.offset, error.message))
        blocks = sum(entry.kind is FrameKind.BLOCK for entry in entries)
        return PackRead(read_bytes, blocks=blocks, bad=tuple(bad))
