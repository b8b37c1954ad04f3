"""An operation only ever takes the ways that the table of transitions allows."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from vmkeep.catalog import TRANSITIONS, OperationState, SqlCatalog
from vmkeep.errors import CatalogError


@settings(max_examples=examples(12), deadline=None)
@given(st.lists(st.sampled_from(OperationState), max_size=6))
def test_state_follows_the_table(wanted: list[OperationState]) -> None:
    with tempfile.TemporaryDirectory() as directory, SqlCatalog.open(Path(directory) / "catalog.sqlite") as catalog:
        state = catalog.begin_operation("op", "take-point", None, "me", {}).state
        for target in wanted:
            try:
                catalog.move_operation("op", "me", target)
            except CatalogError:
                assert target not in TRANSITIONS[state]
            else:
                assert target in TRANSITIONS[state]
                state = target
            assert catalog.operation("op").state == state
            assert (catalog.operation("op").finished is None) == bool(TRANSITIONS[state])


def test_every_state_has_its_row_in_the_table() -> None:
    assert set(TRANSITIONS) == set(OperationState)
