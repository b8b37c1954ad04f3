"""How hard blocks are compressed: well while the machine has processor time to spare, quickly while it has none.

On two processors zstd level 1 takes half of the time of a full point whose data is text. A guest on the same host wants
those processors too, so what a large copy may cost follows what is idle. What is small, as an incremental point, is
always compressed well: it costs nothing that anybody would feel, and there are many of them.

Measured in blocks of 64 KiB, in GB/s on one core (and the share that remains):

    level   words of hexadecimal digits   programs      lists of paths   Python sources
        1   0.55 (0.41)                   0.67 (0.33)   0.95 (0.12)      0.49 (0.27)
       -5   1.58 (0.89)                   0.99 (0.47)   1.06 (0.17)      0.56 (0.41)

So in a hurry the first block of a run tells whether the others are worth their time. Random data costs 9 GB/s at either
level: there is no gain in guessing what will not shrink at all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zstandard

from vmkeep.repository.layout import Buffer

WELL: Final = 1
QUICKLY: Final = -5
"""Levels of zstd."""
PATIENT_BYTES: Final = 128 << 20
"""So much is compressed well whatever else the machine does."""
_SAMPLE_SECONDS: Final = 0.05
# Between the two the level stays: what is saved by the quicker one shows as idle time, and would at once be spent. The
# threads wait for QEMU and for each other now and then, so two processors that are the limit are idle for a fifth.
_IDLE_SHARE_TO_GO_WELL: Final = 0.5
_IDLE_SHARE_TO_GO_QUICKLY: Final = 0.3
# A run whose first block does not shrink to this share is stored as it is when there is a hurry.
_WORTH_SHARE: Final = 0.75
_STAT: Final = Path("/proc/stat")

Ticks = tuple[int, int]
"""Idle and all time of the machine's processors since it started, in clock ticks."""


def processor_ticks() -> Ticks | None:
    """Return what Linux tells in /proc/stat (proc_stat(5)); None where it cannot be read."""
    try:
        fields = _STAT.read_bytes().split(b"\n", 1)[0].split()[1:9]
        numbers = [int(field) for field in fields]
    except (OSError, ValueError):
        return None
    # Waiting for the disk is idle as well. What guests use is in the first number already.
    return sum(numbers[3:5]), sum(numbers)


class Effort:
    """Which level to use now. Threads may ask at the same time; a sample that gets lost between them does no harm."""

    def __init__(
        self, ticks: Callable[[], Ticks | None] = processor_ticks, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ticks = ticks
        self._clock = clock
        self._bytes = 0
        self._level = WELL
        self._sampled_at = 0.0
        self._last: Ticks | None = None

    def level_for(self, size_bytes: int) -> int:
        """Return the level for so many more bytes."""
        self._bytes += size_bytes
        if self._bytes <= PATIENT_BYTES:
            return WELL
        now = self._clock()
        if now - self._sampled_at >= _SAMPLE_SECONDS:
            self._sampled_at = now
            self._sample()
        return self._level

    def _sample(self) -> None:
        before, self._last = self._last, self._ticks()
        if before is None or self._last is None or self._last[1] <= before[1]:
            return
        idle_share = (self._last[0] - before[0]) / (self._last[1] - before[1])
        if idle_share > _IDLE_SHARE_TO_GO_WELL:
            self._level = WELL
        elif idle_share < _IDLE_SHARE_TO_GO_QUICKLY:
            self._level = QUICKLY


_effort = Effort()
_local = threading.local()


def zstd(pieces: Sequence[Buffer]) -> list[Buffer]:
    """Compress each piece by itself, all in one call that lets other threads run meanwhile.

    One call for a MiB of blocks is an eighth faster on two threads than one for each block.
    """
    # A single piece is a manifest node, a pack's index or a small change.
    if len(pieces) == 1 or _effort.level_for(sum(map(len, pieces))) == WELL:
        return zstd_well(pieces)
    compressor = _compressor(QUICKLY)
    first = compressor.compress(pieces[0])
    if len(first) > len(pieces[0]) * _WORTH_SHARE:
        return [first, *pieces[1:]]
    return [first, *_together(compressor, pieces[1:])]


def zstd_well(pieces: Sequence[Buffer]) -> list[Buffer]:
    """Compress as ``zstd`` does when the machine has time for it."""
    return _together(_compressor(WELL), pieces)


def _together(compressor: zstandard.ZstdCompressor, pieces: Sequence[Buffer]) -> list[Buffer]:
    collected = compressor.multi_compress_to_buffer(list(pieces))
    return [memoryview(collected[number]) for number in range(len(collected))]  # type: ignore[arg-type]


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """Return this thread's compressor of a level; one cannot serve two threads."""
    try:
        compressors: dict[int, zstandard.ZstdCompressor] = _local.compressors
    except AttributeError:
        compressors = _local.compressors = {}
    if level not in compressors:
        compressors[level] = zstandard.ZstdCompressor(level=level)
    return compressors[level]
