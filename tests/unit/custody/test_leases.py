"""A lease is one host's at a time, for a time, and each holding has an epoch of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmkeep.custody.leases import (
    LEASE_SECONDS,
    TRANSITIONS,
    Lease,
    LeaseState,
    first_lease,
    tenure_of,
)
from vmkeep.errors import InvalidRequest, VmBusy

VM = "16b6c512-678b-44b6-a438-527ecc51f748"
ALPHA, BETA = "a" * 32, "b" * 32
AT, IN_TIME, LATE = (f"2026-03-01T10:0{minute}:00.000000+00:00" for minute in (0, 3, 4))
FIRST = first_lease(VM, ALPHA, AT)


def test_lease_is_another_hosts_only_when_its_time_and_the_margin_are_over() -> None:
    with pytest.raises(VmBusy, match="is held by host a"):
        FIRST.taken(BETA, IN_TIME)
    taken = FIRST.taken(BETA, LATE)
    assert (taken.host_uuid, taken.epoch, taken.state) == (BETA, 2, LeaseState.HELD)
    assert taken.follows(FIRST)
    assert not replace(taken, until=FIRST.until).follows(FIRST)


def test_renewing_keeps_the_epoch_and_a_new_holding_has_another() -> None:
    renewed = FIRST.taken(ALPHA, IN_TIME)
    assert (renewed.epoch, renewed.serial) == (1, 2)
    free = renewed.given_back(ALPHA)
    for host in (ALPHA, BETA):
        taken = free.taken(host, IN_TIME)
        assert taken.follows(free)
        assert taken.epoch == 2
        assert not taken.allows(1)
        assert taken.allows(2)


def test_fenced_lease_can_be_taken_at_once_and_tells_who_said_so() -> None:
    fenced = FIRST.fenced("root on beta", "the host is switched off")
    assert fenced.follows(FIRST)
    taken = fenced.taken(BETA, AT)
    assert taken.follows(fenced)
    assert (taken.epoch, taken.who, taken.why) == (2, "", "")


def test_what_a_host_does_not_hold_it_gives_back_to_nobody() -> None:
    with pytest.raises(InvalidRequest, match="does not hold"):
        FIRST.given_back(BETA)
    free = FIRST.given_back(ALPHA)
    with pytest.raises(InvalidRequest):
        free.given_back(ALPHA)
    with pytest.raises(InvalidRequest):
        free.fenced("root", "")


@pytest.mark.parametrize("before", LeaseState)
@pytest.mark.parametrize("after", LeaseState)
def test_lease_goes_only_the_ways_of_the_table(before: LeaseState, after: LeaseState) -> None:
    known = replace(FIRST, state=before)
    ways = [replace(known, serial=2, state=after, epoch=epoch) for epoch in (1, 2)]
    assert any(way.follows(known) for way in ways) == (after in TRANSITIONS[before])


def test_lease_that_nobody_has_begins_with_the_first_epoch() -> None:
    assert FIRST.follows(None)
    for other in (replace(FIRST, epoch=2), replace(FIRST, serial=2), replace(FIRST, state=LeaseState.FREE)):
        assert not other.follows(None)


def test_host_holds_its_lease_from_before_it_asked_and_not_past_its_next_boot() -> None:
    tenure = tenure_of(FIRST, "boot-1", 100.0)
    assert tenure.holds("boot-1", 100.0 + LEASE_SECONDS - 1)
    assert not tenure.holds("boot-1", 100.0 + LEASE_SECONDS)
    assert not tenure.holds("boot-2", 100.0)


def test_only_the_present_epoch_allows_a_version_to_count() -> None:
    lease: Lease = replace(FIRST, epoch=3)
    assert [lease.allows(epoch) for epoch in (None, 1, 2, 3)] == [False, False, False, True]
