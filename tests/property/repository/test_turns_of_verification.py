"""Whatever comes, goes and is killed, each pack has its turn, and none counts that was not read."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.repository.proofs import Proofs

_PACKS = st.sets(st.integers(0, 30), max_size=12).map(frozenset)
_RUN = st.tuples(_PACKS, st.integers(0, 6), st.booleans())
"""What the repository holds then, how many packs are read, and whether the run ends (or was killed)."""


def _held(numbers: frozenset[int]) -> dict[bytes, int]:
    return {bytes([number]) * 16: 10 for number in numbers}


@given(st.lists(_RUN, max_size=8), _PACKS, st.integers(1, 4))
def test_each_pack_has_its_turn_and_none_counts_that_was_not_read(
    runs: list[tuple[frozenset[int], int, bool]], last: frozenset[int], at_a_time: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, mock.patch("vmkeep.repository.proofs.time.time") as clock:
        clock.return_value = 1_000_000.0
        path = Path(directory) / "cache" / "r" / "proofs.sqlite"
        read: set[bytes] = set()

        def run(numbers: frozenset[int], count: int, *, ends: bool) -> list[bytes]:
            with Proofs(path) as proofs:
                proofs.meet(_held(numbers), frozenset())
                read.intersection_update(_held(numbers))  # of one that was gone, and is back, nothing is known
                chosen = list(proofs.packs(bad=False))[:count]
                for pack in chosen:
                    clock.return_value += 1
                    proofs.note_pack(pack, None)
                    read.add(pack)
                if ends:
                    proofs.end_run()
                coverage = proofs.coverage()
            if coverage is not None:
                assert (coverage.packs, coverage.proved) == (len(numbers), len(read))
                assert coverage.unread == len(numbers) - len(read)
            return chosen

        for numbers, count, ends in runs:
            run(numbers, count, ends=ends)
        turn: list[bytes] = []
        for _ in range(0, len(last), at_a_time):
            turn += run(last, at_a_time, ends=True)
        assert set(turn[: len(last)]) == set(_held(last))


def test_time_that_is_yet_to_come_is_no_proof(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "r" / "proofs.sqlite"
    with mock.patch("vmkeep.repository.proofs.time.time") as clock, Proofs(path) as proofs:
        clock.return_value = 2_000_000.0
        proofs.meet(_held(frozenset({1, 2})), frozenset())
        proofs.note_pack(bytes([1]) * 16, None)
        clock.return_value = 1_000_000.0
        proofs.meet(_held(frozenset({1, 2})), frozenset())
        proofs.note_pack(bytes([2]) * 16, None)
        assert list(proofs.packs(bad=False)) == [bytes([1]) * 16, bytes([2]) * 16]
        proofs.end_run()
        coverage = proofs.coverage()
        assert coverage is not None
        assert (coverage.proved, coverage.unread) == (1, 1)
