"""Blocks put together into writes."""

from __future__ import annotations

from vmkeep.transfer.images import runs


def test_neighbours_are_joined_and_gaps_are_kept() -> None:
    blocks = [(0, b"aa"), (2, b"bb"), (8, b"cc")]
    assert list(runs(iter(blocks))) == [(0, [b"aa", b"bb"]), (8, [b"cc"])]


def test_a_write_ends_when_it_is_long_enough() -> None:
    blocks = [(start, b"x" * 4) for start in range(0, 32, 4)]
    writes = list(runs(iter(blocks), limit_bytes=8))
    assert [start for start, _ in writes] == [0, 8, 16, 24]
    assert b"".join(b"".join(pieces) for _, pieces in writes) == b"x" * 32


def test_nothing_makes_no_write() -> None:
    assert list(runs(iter([]))) == []
