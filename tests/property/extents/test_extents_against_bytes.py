"""merge and cut against the simplest model there is: one entry per byte."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.extents import BlockRun, Extent, Kind, Reply, cut, either_dirty, merge


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, list[Reply], list[Reply]]:
    """Return a disk's size and two maps of it, each cut anywhere, with equal neighbours not joined."""
    size = draw(st.integers(1, 60))

    def replies() -> list[Reply]:
        cuts = sorted(draw(st.sets(st.integers(1, size), max_size=12)) | {size})
        starts = [0, *cuts[:-1]]
        return [(start, end - start, draw(st.integers(0, 3))) for start, end in zip(starts, cuts, strict=True)]

    return size, replies(), replies()


def flags_by_byte(replies: list[Reply]) -> list[int]:
    return [flags for _, length, flags in replies for _ in range(length)]


def kinds_by_byte(dirty: list[Reply], allocation: list[Reply]) -> list[Kind | None]:
    return [
        None if not d & 1 else Kind.ZERO if a & 2 else Kind.DATA
        for d, a in zip(flags_by_byte(dirty), flags_by_byte(allocation), strict=True)
    ]


@given(streams())
def test_merge_says_of_each_byte_what_both_maps_say(drawn: tuple[int, list[Reply], list[Reply]]) -> None:
    size, dirty, allocation = drawn
    extents = list(merge(dirty, allocation, size))
    painted: list[Kind | None] = [None] * size
    for start, length, kind in extents:
        painted[start : start + length] = [kind] * length
    assert painted == kinds_by_byte(dirty, allocation)
    for before, after in itertools.pairwise(extents):
        assert before.start + before.length < after.start or before.kind is not after.kind


@given(streams())
def test_either_dirty_says_of_each_byte_what_one_of_two_maps_says(drawn: tuple[int, list[Reply], list[Reply]]) -> None:
    size, first, second = drawn
    joined = list(either_dirty(first, second, size))
    expected = [(one | other) & 1 for one, other in zip(flags_by_byte(first), flags_by_byte(second), strict=True)]
    assert flags_by_byte(joined) == expected


@given(streams(), st.integers(1, 17), st.one_of(st.none(), st.integers(1, 4)))
def test_cut_says_of_each_block_what_its_bytes_say(
    drawn: tuple[int, list[Reply], list[Reply]], block_bytes: int, max_blocks: int | None
) -> None:
    size, dirty, allocation = drawn
    kinds = kinds_by_byte(dirty, allocation)
    expected: list[Kind | None] = []
    for start in range(0, size, block_bytes):
        block = set(kinds[start : start + block_bytes])
        expected.append(None if block == {None} else Kind.ZERO if block == {Kind.ZERO} else Kind.DATA)
    runs = list(cut(merge(dirty, allocation, size), block_bytes=block_bytes, size_bytes=size, max_blocks=max_blocks))
    painted: list[Kind | None] = [None] * len(expected)
    for first, blocks, kind in runs:
        assert painted[first : first + blocks] == [None] * blocks
        painted[first : first + blocks] = [kind] * blocks
    assert painted == expected
    assert all(max_blocks is None or run.kind is Kind.ZERO or run.blocks <= max_blocks for run in runs)
    assert joined(runs, max_blocks)


def joined(runs: list[BlockRun], max_blocks: int | None) -> bool:
    return all(
        before.first_block + before.blocks < after.first_block
        or before.kind is not after.kind
        or (before.kind is Kind.DATA and before.blocks == max_blocks)
        for before, after in itertools.pairwise(runs)
    )


@given(streams(), st.integers(1, 17))
def test_cut_does_not_depend_on_how_extents_are_split(
    drawn: tuple[int, list[Reply], list[Reply]], block_bytes: int
) -> None:
    size, dirty, allocation = drawn
    extents = list(merge(dirty, allocation, size))
    bytewise = [Extent(at, 1, kind) for start, length, kind in extents for at in range(start, start + length)]
    assert list(cut(bytewise, block_bytes=block_bytes, size_bytes=size)) == list(
        cut(extents, block_bytes=block_bytes, size_bytes=size)
    )
