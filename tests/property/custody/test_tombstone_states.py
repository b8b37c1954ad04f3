"""A tombstone takes only the ways that the table of transitions allows, whoever else moves it meanwhile."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.custody.graves import AT, grave
from vmkeep.catalog import MemoryCatalog
from vmkeep.custody.tombstones import TRANSITIONS, Ending, Tombstone, TombstoneState
from vmkeep.errors import CatalogError, InvalidRequest

MOVES = {
    TombstoneState.RETRIED: lambda known: known.failed(AT, "read-only"),
    TombstoneState.SETTLED: lambda known: known.settled(AT, Ending.DELETED),
    TombstoneState.WAIVED: lambda known: known.waived(AT, "root on alpha", "shredded"),
}


@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.booleans()), max_size=8))
def test_tombstone_is_moved_by_who_knows_how_it_stands_and_never_from_its_end(
    moves: list[tuple[TombstoneState, bool]],
) -> None:
    catalog = MemoryCatalog()
    first = grave()
    catalog.add_tombstones([first])
    read: list[Tombstone] = [first]
    for to, stale in moves:
        present = read[-1]
        known = read[0] if stale else present
        try:
            moved = MOVES[to](known)
            catalog.move_tombstone(known, moved)
        except (InvalidRequest, CatalogError):
            assert to not in TRANSITIONS[known.state] or known != present
        else:
            assert known == present
            assert to in TRANSITIONS[present.state]
            read.append(moved)
        assert catalog.tombstones() == (read[-1],)
        assert catalog.open_tombstones() == tuple(each for each in read[-1:] if TRANSITIONS[each.state])
