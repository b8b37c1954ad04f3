"""Bytes written in place are the stored ones, whatever lay there; what is equal already is not written."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.extents import Reply
from vmkeep.transfer import inplace
from vmkeep.transfer.inplace import PIECE_BYTES, Piece, overwrite, overwrite_differing

_BLOCK = 16


class _Image:
    """An image in memory that remembers what was done to it."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        self.writes: list[tuple[int, int]] = []
        self.read_bytes = 0

    def read(self, start: int, length: int) -> bytes:
        assert start >= 0
        assert start + length <= len(self.content)
        self.read_bytes += length
        return bytes(self.content[start : start + length])

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        assert start + len(data) <= len(self.content)
        self.content[start : start + len(data)] = data
        self.writes.append((start, len(data)))

    def zero(self, start: int, length: int) -> None:
        self.write(start, bytes(length))


@st.composite
def _disks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    size = draw(st.integers(1, 40 * _BLOCK))
    blocks = -(-size // _BLOCK)

    def content() -> bytes:
        fills = draw(st.lists(st.integers(0, 2), min_size=blocks, max_size=blocks))
        return b"".join(bytes([fill]) * _BLOCK for fill in fills)[:size]

    return content(), content()


def _pieces(want: bytes, chosen: set[int], *, zero_runs: bool) -> Iterator[Piece]:
    for block in range(-(-len(want) // _BLOCK)):
        if block in chosen:
            start = block * _BLOCK
            content = want[start : start + _BLOCK]
            yield start, len(content), None if zero_runs and not any(content) else content


def _zero_map(content: bytes) -> Iterator[Reply]:
    for start in range(0, len(content), _BLOCK):
        piece = content[start : start + _BLOCK]
        yield start, len(piece), 0 if any(piece) else 3


@given(_disks(), st.sets(st.integers(0, 39)), st.booleans())
def test_chosen_blocks_become_the_stored_ones_and_no_others(
    disks: tuple[bytes, bytes], chosen: set[int], zero_runs: bool
) -> None:
    have, want = disks
    image = _Image(have)
    settled: list[int] = []
    overwrite(image, _pieces(want, chosen, zero_runs=zero_runs), stop=lambda: None, progress=settled.append)
    expected = bytearray(have)
    for start, length, _ in _pieces(want, chosen, zero_runs=zero_runs):
        expected[start : start + length] = want[start : start + length]
    assert image.content == expected
    assert sum(settled) == sum(length for _, length, _ in _pieces(want, chosen, zero_runs=zero_runs))


@given(_disks(), st.booleans())
def test_comparing_writes_what_differs_and_nothing_else(disks: tuple[bytes, bytes], known: bool) -> None:
    have, want = disks
    image = _Image(have)
    everything = set(range(40))
    zero_map = _zero_map(have) if known else iter([(0, len(have), 0)])
    done = overwrite_differing(
        image,
        _pieces(want, everything, zero_runs=True),
        zero_map,
        block_bytes=_BLOCK,
        stop=lambda: None,
        progress=lambda _: None,
    )
    assert image.content == want
    differing = {
        block
        for block in range(-(-len(want) // _BLOCK))
        if have[block * _BLOCK : (block + 1) * _BLOCK] != want[block * _BLOCK : (block + 1) * _BLOCK]
    }
    data = {block for block in differing if any(want[block * _BLOCK : (block + 1) * _BLOCK])}
    assert done.written_bytes == sum(len(want[block * _BLOCK : (block + 1) * _BLOCK]) for block in data)
    # Where a zero block ends a piece of 1 MiB, blocks beside it may be made zero again.
    zeroed = sum(len(want[block * _BLOCK : (block + 1) * _BLOCK]) for block in differing - data)
    assert done.zeroed_bytes >= zeroed
    assert (done.zeroed_bytes == 0) is (zeroed == 0)
    if not differing:
        assert image.writes == []


@given(_disks())
def test_comparing_with_only_some_of_the_zeroes_known_writes_the_same(disks: tuple[bytes, bytes]) -> None:
    have, want = disks
    image = _Image(have)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inplace, "_MOST_ZEROS", 2)
        pieces = _pieces(want, set(range(40)), zero_runs=True)
        overwrite_differing(
            image, pieces, _zero_map(have), block_bytes=_BLOCK, stop=lambda: None, progress=lambda _: None
        )
    assert image.content == want


def test_map_of_any_length_takes_bounded_memory() -> None:
    """Seen before: each range of an image's map was kept, and a small file can have billions."""
    number = 3 * inplace._MOST_ZEROS
    ranges = ((place << 17, 1 << 16, 3) for place in range(number))
    long = (number << 17, 1 << 30, 3)
    kept = inplace._known_zeros(chain(ranges, [long]), lambda: None)
    assert len(kept) <= inplace._MOST_ZEROS
    assert kept[-1] == (number << 17, (number << 17) + (1 << 30))


def test_a_sparse_disk_that_is_zero_already_is_not_read() -> None:
    image = _Image(bytes(4 * PIECE_BYTES))
    zero_map = [(0, 4 * PIECE_BYTES, 3)]
    pieces: list[Piece] = [(0, 4 * PIECE_BYTES, None)]
    overwrite_differing(image, pieces, zero_map, block_bytes=4096, stop=lambda: None, progress=lambda _: None)
    assert (image.read_bytes, image.writes) == (0, [])


def test_neighbouring_blocks_are_written_together() -> None:
    image = _Image(bytes(4 * PIECE_BYTES))
    block = PIECE_BYTES // 16
    pieces: list[Piece] = [(start, block, b"x" * block) for start in range(0, 2 * PIECE_BYTES, block)]
    overwrite(image, pieces, stop=lambda: None, progress=lambda _: None)
    assert image.writes == [(0, PIECE_BYTES), (PIECE_BYTES, PIECE_BYTES)]
