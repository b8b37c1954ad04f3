"""What must still be deleted: the ways that a tombstone takes, and when a command that was not asked to may try it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.unit.custody.graves import AT, grave
from vmkeep.custody.tombstones import (
    TRANSITIONS,
    UNSETTLED,
    Ending,
    Protection,
    TombstoneKind,
    TombstoneState,
    chosen_tombstones,
    told_of_protection,
    tombstone_id,
)
from vmkeep.errors import InvalidRequest

NOW = datetime.fromisoformat(AT)


def test_every_state_has_its_row_in_the_table_and_two_are_ends() -> None:
    assert set(TRANSITIONS) == set(TombstoneState)
    assert {TombstoneState.OPEN, TombstoneState.RETRIED} == UNSETTLED


def test_each_try_is_counted_with_what_kept_it() -> None:
    tried = grave().failed(AT, "read-only").failed(AT, "busy")
    assert (tried.state, tried.tries, tried.last_error, tried.is_open) == (TombstoneState.RETRIED, 2, "busy", True)
    settled = tried.settled(AT, Ending.DELETED)
    assert (settled.state, settled.tries, settled.ending, settled.is_open) == (
        TombstoneState.SETTLED,
        2,
        "deleted",
        False,
    )


def test_what_is_at_its_end_stays_there() -> None:
    for over in (grave().settled(AT, Ending.GONE), grave().waived(AT, "root on alpha", "shredded")):
        for again in (
            lambda over=over: over.failed(AT, "x"),
            lambda over=over: over.settled(AT, Ending.GONE),
            lambda over=over: over.waived(AT, "x", "y"),
        ):
            with pytest.raises(InvalidRequest, match="already"):
                again()  # type: ignore[no-untyped-call]


def test_only_how_it_stands_may_change() -> None:
    known = grave()
    assert known.failed(AT, "x").follows(known)
    assert not grave(place="/elsewhere").failed(AT, "x").follows(known)
    assert not known.follows(known)


@pytest.mark.parametrize(
    ("tries", "minutes", "due"),
    [
        (0, 9, False),
        (0, 11, True),
        (1, 11, False),
        (1, 21, True),
        (40, 60 * 23, False),
        (40, 60 * 25, True),
        (0, -5, True),
    ],
)
def test_tries_that_nobody_asked_for_come_ever_later(tries: int, minutes: int, due: bool) -> None:
    tried = grave()
    for _ in range(tries):
        tried = tried.failed(AT, "x")
    assert tried.is_due(NOW + timedelta(minutes=minutes)) is due
    assert not tried.settled(AT, Ending.GONE).is_due(datetime.max.replace(tzinfo=UTC))


def test_id_is_the_same_for_whoever_writes_it_again() -> None:
    ids = {tombstone_id("op", kind, place) for kind in TombstoneKind for place in ("a", "b")}
    assert len(ids) == 4
    assert tombstone_id("op", TombstoneKind.STATE, "a") == tombstone_id("op", TombstoneKind.STATE, "a")


def test_only_those_of_the_host_that_are_open_are_tried() -> None:
    here, there = grave(), grave(host_uuid="other")
    assert chosen_tombstones((here, there, here.settled(AT, Ending.GONE)), here.host_uuid) == (here,)


def test_each_protection_has_its_words() -> None:
    assert len({told_of_protection(each) for each in Protection}) == len(Protection)
