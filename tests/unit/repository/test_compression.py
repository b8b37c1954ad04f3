"""How hard blocks are compressed, with a machine of the test's own making."""

from __future__ import annotations

import random

import pytest
import zstandard

from vmkeep.repository import compression
from vmkeep.repository.compression import PATIENT_BYTES, QUICKLY, WELL, Effort, Ticks, zstd, zstd_well

_BLOCK = 65536


class Machine:
    """Processors of which a given share is idle from now on; time passes when it is asked for."""

    def __init__(self) -> None:
        self.idle_share = 0.0
        self._idle = self._all = 0
        self._now = 0.0

    def ticks(self) -> Ticks:
        self._all += 100
        self._idle += int(100 * self.idle_share)
        return self._idle, self._all

    def clock(self) -> float:
        self._now += 1.0
        return self._now


def test_small_copy_is_compressed_well_on_a_busy_machine() -> None:
    machine = Machine()
    effort = Effort(machine.ticks, machine.clock)
    levels = {effort.level_for(1 << 20) for _ in range(PATIENT_BYTES >> 20)}
    assert levels == {WELL}


def test_level_follows_what_is_idle_and_stays_in_between() -> None:
    machine = Machine()
    effort = Effort(machine.ticks, machine.clock)
    effort.level_for(PATIENT_BYTES)
    followed = []
    for idle_share in (0.0, 0.0, 0.4, 0.6, 0.4, 0.2):
        machine.idle_share = idle_share
        followed.append(effort.level_for(1 << 20))
    assert followed == [WELL, QUICKLY, QUICKLY, WELL, WELL, QUICKLY]  # the first only looks: there is no time before it


def test_machine_that_tells_nothing_counts_as_idle() -> None:
    effort = Effort(lambda: None, Machine().clock)
    assert {effort.level_for(PATIENT_BYTES) for _ in range(5)} == {WELL}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    effort = Effort(machine.ticks, machine.clock)
    for _ in range(3):
        effort.level_for(PATIENT_BYTES)
    monkeypatch.setattr(compression, "_effort", effort)


def _words(blocks: int) -> list[bytes]:
    source = random.Random(1)
    words = [source.randbytes(6).hex().encode() for _ in range(4096)]
    return [b" ".join(source.choices(words, k=_BLOCK // 12))[:_BLOCK] for _ in range(blocks)]


def _lines(blocks: int) -> list[bytes]:
    source = random.Random(2)
    return [
        b"".join(b"/usr/share/doc/package-%d/copyright\n" % source.randrange(10**6) for _ in range(2000))[:_BLOCK]
        for _ in range(blocks)
    ]


@pytest.mark.usefixtures("hurried")
def test_in_a_hurry_what_hardly_shrinks_is_left_and_the_rest_still_shrinks() -> None:
    left = zstd(_words(4))
    assert [len(body) for body in left[1:]] == [_BLOCK] * 3
    shrunk = zstd(_lines(4))
    assert all(len(body) < _BLOCK // 2 for body in shrunk)
    assert [len(body) for body in zstd(_words(1))] == [len(body) for body in zstd_well(_words(1))]


@pytest.mark.parametrize("compress", [zstd, zstd_well])
def test_pieces_come_back_each_by_itself(compress: object) -> None:
    assert callable(compress)
    pieces = [*_lines(3), b"", b"x", random.Random(3).randbytes(5000)]
    bodies = compress(pieces)
    assert [zstandard.ZstdDecompressor().decompress(bytes(body)) for body in bodies] == pieces
