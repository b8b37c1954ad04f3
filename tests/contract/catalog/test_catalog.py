"""What every catalogue promises of points, state versions, pins and operations."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, example_state, number
from tests.unit.custody.graves import grave
from vmkeep.catalog import (
    SAFETY_LABEL,
    Catalog,
    CatalogDeletion,
    CatalogPin,
    CatalogSnapshot,
    CatalogState,
    FoundPin,
    KnownHostKey,
    KnownKeyring,
    Operation,
    OperationState,
    PointProtection,
    PointRemoval,
    Policy,
    StateFile,
    Trust,
)
from vmkeep.custody.tombstones import Ending
from vmkeep.errors import CatalogError, PointNotFound, VmNotFound


def test_recorded_point_comes_back_whole(catalog: Catalog) -> None:
    state = example_state("tpm-1", 1)
    point = example_point("p1", labels={"why": "before update"}, states=(state,))
    catalog.record_point(point, [state])
    assert catalog.points() == (point,)
    assert catalog.summaries() == (point.summary(),)
    assert point.summary()["state"] == {
        "tpm": {"present": True, "sha256": state.sha256, "bytes": 5},
        "nvram": {"present": False, "sha256": None, "bytes": None},
    }
    assert catalog.newest_state(WIN11, "tpm") == state
    assert catalog.pins(state.id) == (point.id,)


def test_points_are_oldest_first_and_points_of_a_vm_newest_first(catalog: Catalog) -> None:
    for name, minute in (("b", 2), ("c", 3), ("a", 1)):
        catalog.record_point(example_point(name, minute=minute))
    catalog.record_point(example_point("w", vm=WEB, vm_name="web", minute=0))
    assert [point.id for point in catalog.points()] == [number(name) for name in "wabc"]
    assert [point.id for point in catalog.points("win11")] == [number(name) for name in "abc"]
    assert [summary["id"] for summary in catalog.summaries(WEB.upper())] == [number("w")]
    assert [point.id for point in catalog.points_of_vm(WIN11)] == [number(name) for name in "cba"]


def test_unknown_vm_is_an_error_and_not_an_empty_list(catalog: Catalog) -> None:
    with pytest.raises(VmNotFound):
        catalog.points("nobody")
    with pytest.raises(VmNotFound):
        catalog.summaries("nobody")


def test_renamed_vm_is_found_by_both_names(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1", vm_name="old"))
    catalog.record_point(example_point("p2", vm_name="new", minute=1))
    assert len(catalog.points("new")) == 2
    assert len(catalog.points("old")) == 2


def test_point_is_found_by_id_by_beginning_and_as_latest(catalog: Catalog) -> None:
    first = example_point("p1", point_id="abcd" + "0" * 28)
    second = example_point("p2", point_id="abce" + "0" * 28, minute=5)
    catalog.record_point(first)
    catalog.record_point(second)
    assert catalog.find_point(first.id) == first
    assert catalog.find_point("ABCD") == first
    assert catalog.find_point("win11@latest") == second
    assert catalog.find_point(f"{WIN11}@latest") == second


def test_latest_is_the_newest_point_that_somebody_made_and_not_the_state_that_a_restore_left(catalog: Catalog) -> None:
    made = example_point("p1")
    safety = [example_point(f"s{minute}", minute=minute, labels={SAFETY_LABEL: made.id}) for minute in (5, 6)]
    catalog.record_point(safety[0])
    with pytest.raises(PointNotFound) as caught:
        catalog.find_point("win11@latest")
    assert safety[0].id in caught.value.message
    catalog.record_point(made)
    catalog.record_point(safety[1])
    assert catalog.find_point("win11@latest") == made
    assert catalog.newest_made(WIN11) == made
    assert catalog.newer_safety_points(made) == (safety[1].id, safety[0].id)
    later = example_point("p2", minute=7, labels={"why": "timer"})
    catalog.record_point(later)
    assert catalog.find_point("win11@latest") == later
    assert catalog.newer_safety_points(later) == ()
    # By its id it is a point like any other.
    assert catalog.find_point(safety[1].id) == safety[1]


@pytest.mark.parametrize(
    ("text", "minute"),
    [
        ("2026-03-01T10:03Z", 3),
        ("2026-03-01T10:03:00Z", 3),
        ("2026-03-01T10:04:59+00:00", 3),
        ("2026-03-01T11:03+01:00", 3),
        ("2026-03-01 12:05:00+02:00", 3),
        ("2026-03-01T10:59Z", 9),
        ("2026-03-02", 9),
        ("2026-03-01", 9),  # the day is included
        ("2026-03-01 04:03", 3),  # the time of this place
        ("2026-03-01 04", 9),
    ],
)
def test_point_is_found_by_a_time(catalog: Catalog, monkeypatch: pytest.MonkeyPatch, text: str, minute: int) -> None:
    monkeypatch.setenv("TZ", "XYZ+6")  # six hours behind
    time.tzset()
    try:
        for made in (1, 3, 9):
            catalog.record_point(example_point(f"p{made}", minute=made, vm_name="a@b"))
        catalog.record_point(example_point("s", minute=4, vm_name="a@b", labels={SAFETY_LABEL: number("p1")}))
        assert catalog.find_point(f"a@b@{text}").id == number(f"p{minute}")
        assert catalog.find_point(f"{WIN11}@{text}").id == number(f"p{minute}")
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("win11@2026-03-01T09:00Z", "2026-03-01"),  # before the first one: which that is
        ("win11@yesterday", "2026-11-29T14:30"),  # how a time is written
        ("win11@2026-13-01", "2026-11-29T14:30"),
        ("win11", "win11@latest"),
        ("nobody@2026-03-01", "nobody"),
    ],
)
def test_name_or_time_that_means_no_point_is_told_what_would(catalog: Catalog, text: str, word: str) -> None:
    catalog.record_point(example_point("p1"))
    with pytest.raises(PointNotFound) as caught:
        catalog.find_point(text)
    assert word in f"{caught.value.message} {caught.value.hint}"


def test_ambiguous_beginning_lists_the_candidates(catalog: Catalog) -> None:
    ids = ["abcd" + str(digit) * 28 for digit in range(2)]
    for minute, point_id in enumerate(ids):
        catalog.record_point(example_point("p", point_id=point_id, minute=minute))
    with pytest.raises(PointNotFound) as caught:
        catalog.find_point("abcd")
    assert all(point_id in caught.value.message for point_id in ids)


@pytest.mark.parametrize("text", ["", "abc", "ffff", "%%%%", "____", "nobody@latest", "@latest"])
def test_text_that_means_no_point_is_refused(catalog: Catalog, text: str) -> None:
    catalog.record_point(example_point("p", point_id="abcd" + "0" * 28))
    with pytest.raises(PointNotFound):
        catalog.find_point(text)


def test_latest_of_a_name_that_two_vms_bear_is_not_guessed(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"))
    catalog.record_point(example_point("p2", vm=WEB, minute=1))
    with pytest.raises(PointNotFound) as caught:
        catalog.find_point("win11@latest")
    assert number("p1") in caught.value.message
    assert number("p2") in caught.value.message


@pytest.mark.parametrize("late", [1, 2])
def test_late_generation_is_refused_and_nothing_of_its_point_is_kept(catalog: Catalog, late: int) -> None:
    accepted = example_state("new", 2)
    catalog.record_point(example_point("p1"), [accepted])
    with pytest.raises(CatalogError):
        catalog.record_point(example_point("p2"), [example_state("nv", 1, kind="nvram"), example_state("old", late)])
    assert [point.id for point in catalog.points()] == [number("p1")]
    assert catalog.newest_state(WIN11, "tpm") == accepted
    assert catalog.newest_state(WIN11, "nvram") is None


def test_version_held_by_two_points_is_accepted_once_and_pinned_twice(catalog: Catalog) -> None:
    state = example_state("same", 1)
    catalog.record_point(example_point("p1"), [state])
    catalog.record_point(example_point("p2", minute=1), [state])
    catalog.forget_point(number("p1"))
    assert catalog.pins(state.id) == (number("p2"),)


def test_generation_does_not_start_again_when_all_points_are_gone(catalog: Catalog) -> None:
    state = example_state("only", 7)
    catalog.record_point(replace(example_point("p1"), signed_by=""), [state])
    catalog.forget_point(number("p1"))
    assert catalog.points() == ()
    assert catalog.pins(state.id) == ()
    assert catalog.newest_state(WIN11, "tpm") == state
    assert not catalog.forget_point(number("p1"))


def test_version_that_came_with_a_point_nobody_vouches_for_counts_no_more_when_that_is_gone(catalog: Catalog) -> None:
    mine, theirs = example_state("mine", 7), example_state("theirs", 8)
    catalog.record_point(replace(example_point("p1"), signed_by=""), [mine])
    catalog.adopt([(replace(example_point("p2"), signed_by="ab" * 16), [theirs])])
    assert catalog.newest_state(WIN11, "tpm") == theirs
    catalog.forget_point(number("p2"))
    assert catalog.newest_state(WIN11, "tpm") == mine


def test_recording_a_point_again_changes_nothing_and_another_of_its_id_is_refused(catalog: Catalog) -> None:
    state = example_state("t", 1)
    catalog.record_point(example_point("p1"), [state])
    catalog.record_point(example_point("p1"), [state])
    assert len(catalog.points()) == 1
    with pytest.raises(CatalogError):
        catalog.record_point(example_point("p1", minute=1))


def test_adopting_twice_is_the_same_as_once(catalog: Catalog) -> None:
    old, new = example_state("t1", 1), example_state("t2", 2)
    found = [
        (example_point("p2", vm_name="renamed", minute=2), [new]),
        (example_point("p1", minute=1), [old]),
    ]
    first = catalog.adopt(found)
    assert (first.points, first.vms, first.states, first.conflicts) == (2, 1, 2, ())
    assert catalog.adopt(found).points == 0
    assert catalog.newest_state(WIN11, "tpm") == new
    (vm,) = catalog.vms()
    assert (vm.name, vm.adopted) == ("renamed", True)


def test_adopted_vm_becomes_this_hosts_own_when_it_is_seen_and_stays_so(catalog: Catalog) -> None:
    catalog.adopt([(example_point("p1"), [])])
    catalog.see_host("h", "host1")
    catalog.see_vm(WIN11, "win11", "h")
    catalog.adopt([(example_point("p1"), [])])
    vm = catalog.vm(WIN11)
    assert vm is not None
    assert (vm.adopted, vm.host_uuid) == (False, "h")


def test_version_that_is_kept_late_never_counts_whatever_its_number(catalog: Catalog) -> None:
    catalog.see_vm(WIN11, "win11")
    first, late = example_state("first", 3), example_state("late", 3)
    catalog.accept_states([first])
    catalog.keep_late([late, example_state("first", 3)])  # one that is known stays as it is
    catalog.keep_late([late])
    assert catalog.newest_state(WIN11, "tpm") == first
    assert [(each.sha256, each.conflict) for each in catalog.states_of_vm(WIN11)] == [
        (first.sha256, False),
        (late.sha256, True),
    ]
    catalog.keep_late([example_state("above", 9)])
    assert catalog.newest_state(WIN11, "tpm") == first
    catalog.accept_states([example_state("next", 4)])
    with pytest.raises(CatalogError):
        catalog.keep_late([replace(late, sha256=first.sha256)])


def test_contradicting_versions_are_reported_and_the_point_is_adopted(catalog: Catalog) -> None:
    report = catalog.adopt(
        [
            (example_point("p1", minute=1), [example_state("a", 1)]),
            (example_point("p2", minute=2), [example_state("b", 1)]),
        ]
    )
    assert report.points == 2
    assert len(report.conflicts) == 1
    # That of the point which was made first counts; the other is kept for its point, and said once.
    assert catalog.newest_state(WIN11, "tpm") == example_state("a", 1)
    late = next(state for state in catalog.states_of_vm(WIN11) if state.id == number("b"))
    assert (late.conflict, catalog.pins(late.id)) == (True, (number("p2"),))
    assert number("p2") in report.conflicts[0]
    assert number("p1") in report.conflicts[0]
    again = catalog.adopt([(example_point("p2", minute=2), [example_state("b", 1)])])
    assert (again.points, again.conflicts) == (0, ())
    catalog.record_point(example_point("p3", minute=3), [example_state("c", 2)])


def test_version_that_nothing_holds_any_more_gives_way_to_that_of_a_point(catalog: Catalog) -> None:
    """Another installation went on from a point, and never saw a later one that was deleted here."""
    catalog.record_point(example_point("p1", minute=1), [example_state("a", 1)])
    catalog.forget_point(number("p1"))
    report = catalog.adopt([(example_point("p2", minute=2), [example_state("b", 1)])])
    assert report.conflicts == ()
    assert catalog.newest_state(WIN11, "tpm") == example_state("b", 1)
    catalog.record_point(example_point("p3", minute=3), [example_state("c", 2)])


def test_repository_used_last_is_remembered(catalog: Catalog) -> None:
    assert catalog.repository() is None
    catalog.use_repository("a", "/one")
    catalog.use_repository("b", "/two")
    catalog.use_repository("a", "/three")
    known = catalog.repository()
    assert known is not None
    assert (known.id, known.location, known.keyring) == ("a", "/three", None)


def test_keyring_that_was_in_force_is_remembered_with_its_repository(catalog: Catalog) -> None:
    keyring = KnownKeyring(2, "c" * 64, "a" * 32, ("a" * 32, "b" * 32))
    catalog.see_keyring("a", keyring)  # of a repository that is not known
    catalog.use_repository("a", "/one")
    known = catalog.repository()
    assert known is not None
    assert known.keyring is None
    catalog.see_keyring("a", keyring)
    catalog.use_repository("a", "/two")
    known = catalog.repository()
    assert known is not None
    assert (known.location, known.keyring) == ("/two", keyring)
    catalog.use_repository("b", "/other")
    known = catalog.repository()
    assert known is not None
    assert known.keyring is None


def test_operation_is_moved_by_its_owner_only(catalog: Catalog) -> None:
    started = catalog.begin_operation("op", "take-point", "win11", "me", {"vm": "win11"})
    assert catalog.unfinished_operations() == (started,)
    with pytest.raises(CatalogError):
        catalog.move_operation("op", "another", OperationState.DONE)
    assert catalog.take_over_operation("op", "me", "another")
    assert not catalog.take_over_operation("op", "me", "third")
    ended = catalog.move_operation("op", "another", OperationState.FAILED, {"code": "no-space"})
    assert ended.finished is not None
    assert ended.error == {"code": "no-space"}
    assert catalog.unfinished_operations() == ()


def test_cancel_reaches_the_operation_with_its_next_progress(catalog: Catalog) -> None:
    catalog.begin_operation("op", "take-point", "win11", "me", {})
    assert not catalog.report_progress("op", "copy", 1, 10)
    assert catalog.request_cancel("op")
    assert catalog.report_progress("op", "copy", 2, 10)
    assert catalog.cancel_requested("op")
    noted: Operation = catalog.operation("op")
    assert (noted.stage, noted.done_bytes, noted.total_bytes) == ("copy", 2, 10)
    catalog.move_operation("op", "me", OperationState.DONE)
    assert not catalog.request_cancel("op")


def test_snapshot_keeps_its_states_until_it_is_forgotten(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"), (example_state("tpm 1", 1),))
    states = (example_state("nvram 1", 1, kind="nvram"), example_state("tpm 1", 1))
    snapshot = _snapshot("s1", states=states)
    catalog.record_snapshot(snapshot)
    catalog.record_snapshot(snapshot)
    assert catalog.snapshot(WIN11.upper(), "before") == snapshot
    assert catalog.snapshots_of_vm(WIN11) == (snapshot,)
    assert set(catalog.pins(states[1].id)) == {number("p1"), number("s1")}

    assert catalog.forget_snapshot(snapshot.id)
    assert not catalog.forget_snapshot(snapshot.id)
    assert catalog.snapshot(WIN11, "before") is None
    assert catalog.pins(states[0].id) == ()
    assert catalog.pins(states[1].id) == (number("p1"),)


def test_snapshot_made_again_takes_the_place_of_the_one_of_its_name(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"))
    catalog.record_snapshot(_snapshot("s1", states=(example_state("tpm 1", 1),)))
    again = _snapshot("s2", states=(example_state("tpm 2", 2),))
    catalog.record_snapshot(again)
    assert catalog.snapshots_of_vm(WIN11) == (again,)
    assert catalog.pins(number("tpm 1")) == ()


def test_snapshot_goes_on_under_its_new_name(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"))
    snapshot = _snapshot("s1", states=(example_state("tpm 1", 1),))
    catalog.record_snapshot(snapshot)
    assert catalog.rename_snapshot(WIN11, "before", "after")
    assert not catalog.rename_snapshot(WIN11, "before", "after")
    assert catalog.snapshots_of_vm(WIN11) == (replace(snapshot, name="after"),)


def test_snapshot_with_a_late_state_is_refused_whole(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"), (example_state("tpm 5", 5),))
    with pytest.raises(CatalogError):
        catalog.record_snapshot(_snapshot("s1", states=(example_state("tpm 4", 4),)))
    assert catalog.snapshots_of_vm(WIN11) == ()


def _snapshot(name: str, *, states: tuple[CatalogState, ...]) -> CatalogSnapshot:
    created = "2026-03-01T10:00:00.000000+00:00"
    return CatalogSnapshot(number(name), WIN11, "before", 1772359200, number("p1"), created, states)


def test_state_put_in_place_on_purpose_is_known_until_a_newer_version_is_accepted(catalog: Catalog) -> None:
    first, second = example_state("t1", 1), example_state("t2", 2)
    catalog.record_point(example_point("p1"), [first])
    catalog.record_point(example_point("p2"), [second])
    assert catalog.placed_states(WIN11) == {}

    catalog.place_states(WIN11, {"tpm": first.sha256, "nvram": ""})
    assert catalog.placed_states(WIN11.upper()) == {"tpm": first.sha256, "nvram": ""}
    catalog.place_states(WIN11, {"nvram": None})
    assert catalog.placed_states(WIN11) == {"tpm": first.sha256}

    theirs = example_state("theirs", 3)
    catalog.adopt([(replace(example_point("p3", states=(theirs,)), signed_by="f" * 32), [theirs])])
    assert catalog.placed_states(WIN11) == {"tpm": first.sha256}

    catalog.see_host_key(KnownHostKey("a" * 32, "00", "i1", "host1", Trust.OWN))
    catalog.record_point(replace(example_point("p4"), signed_by="a" * 32), [example_state("t4", 4)])
    assert catalog.placed_states(WIN11) == {}


def test_vm_that_is_as_before_its_first_point_is_told_from_one_of_which_nothing_is_known(catalog: Catalog) -> None:
    point = example_point("first")
    catalog.record_point(point)

    def descent() -> tuple[str | None, bool]:
        vm = catalog.vm(WIN11)
        assert vm is not None
        return vm.current_point, vm.before_first

    assert descent() == (point.id, False)
    catalog.return_to(WIN11, None)
    assert descent() == (None, True)
    catalog.lose_track(WIN11)
    assert descent() == (None, False)
    catalog.return_to(WIN11, point.id)
    assert descent() == (point.id, False)


@pytest.mark.parametrize("signed_by", ["a" * 32, "", "f" * 32, None])
@pytest.mark.parametrize("trusted", [False, True])
def test_only_points_of_our_own_say_that_the_vm_has_gone_on(
    catalog: Catalog, signed_by: str | None, trusted: bool
) -> None:
    """Whoever can write to the repository would else let an older state file start: where the VM is were not known."""
    catalog.see_host_key(KnownHostKey("a" * 32, "00", "i1", "host1", Trust.OWN))
    catalog.see_host_key(KnownHostKey("f" * 32, "01", "i2", "host1", Trust.UNKNOWN))
    if trusted:
        catalog.trust_host("f" * 32, Trust.TRUSTED)
    point = example_point("first")
    catalog.record_point(point)
    catalog.adopt([(replace(example_point("later", parent=point.id, minute=1), signed_by=signed_by), [])])
    vm = catalog.vm(WIN11)
    assert vm is not None
    assert vm.current_point == (None if signed_by in ("a" * 32, "") else point.id)


@pytest.mark.parametrize("trusted", [False, True])
def test_version_of_a_host_that_nobody_trusts_gives_way_to_one_of_our_own(catalog: Catalog, trusted: bool) -> None:
    """Whoever can write to the repository would else let none of our captured versions count when the catalogue is made
    anew: points are taken over before pins.
    """
    ours, theirs = "a" * 32, "f" * 32
    catalog.see_host_key(KnownHostKey(ours, "00", "i1", "alpha", Trust.OWN))
    catalog.see_host_key(KnownHostKey(theirs, "01", "i2", "beta", Trust.UNKNOWN))
    if trusted:
        catalog.trust_host(theirs, Trust.TRUSTED)
    first, mine = example_state("theirs", 1), example_state("ours", 1)
    catalog.adopt([(replace(example_point("p1", states=(first,)), signed_by=theirs), [first])])
    pin = CatalogPin(number("pin"), WIN11, "win11", "alpha", "2026", "kept", (mine.id,), signed_by=ours)
    conflicts = catalog.adopt_pins([FoundPin(pin, (mine,))])
    assert len(conflicts) == trusted
    newest, late = (first, mine) if trusted else (mine, first)
    assert catalog.newest_state(WIN11, "tpm") == newest
    assert catalog.states_of_vm(WIN11) == (newest, replace(late, conflict=True))


def test_state_file_is_known_since_it_is_as_it_is_and_goes_when_it_is_found_no_more(catalog: Catalog) -> None:
    catalog.see_host("h", "alpha")
    catalog.see_vm(WIN11, "win11")
    tpm = StateFile(WIN11, "h", "tpm", "/x/tpm2-00.permall", "aa", 7, "current")
    nvram = StateFile(WIN11, "h", "nvram", "/x/vars.fd", None, None, "missing")
    catalog.note_state_files("h", {WIN11: [tpm, nvram], WEB: [replace(tpm, vm_uuid=WEB)]})
    assert catalog.state_files(WEB) == ()  # no VM that is known
    first = {file.kind: file for file in catalog.state_files(WIN11)}
    assert {kind: replace(file, since="", seen_at="") for kind, file in first.items()} == {"tpm": tpm, "nvram": nvram}
    catalog.note_state_files("h", {WIN11: [tpm, replace(nvram, sha256="bb", size_bytes=9, standing="changed")]})
    second = {file.kind: file for file in catalog.state_files(WIN11)}
    assert second["tpm"].since == first["tpm"].since < second["tpm"].seen_at
    assert second["nvram"].since > first["nvram"].since
    catalog.note_state_files("h", {WIN11: [tpm]})
    assert [file.kind for file in catalog.state_files(WIN11)] == ["tpm"]
    assert catalog.host_names() == {"h": "alpha"}


def example_deletion(**changes: Any) -> CatalogDeletion:
    document = {"vm_name": "win11", "host": "alpha", "files": [], "tombstones": ["0a" * 16]}
    made = CatalogDeletion("0b" * 16, None, "removal", WIN11, "2026-03-02T10:00:00.000000+00:00", document)
    return replace(made, **changes)


def test_removal_is_recorded_with_what_could_not_be_deleted_and_once(catalog: Catalog) -> None:
    removal, left = example_deletion(kept_until="2026-06-01T10:00:00.000000+00:00"), grave()
    for _ in range(2):
        catalog.record_deletion(removal, [left])
    assert catalog.deletions(WIN11.upper()) == catalog.deletions() == catalog.unstored_deletions() == (removal,)
    assert catalog.tombstones(WIN11) == catalog.open_tombstones() == (left,)
    assert (catalog.deletions(WEB), catalog.tombstones(WEB)) == ((), ())
    catalog.withdraw_deletion(removal.id, left.origin)
    assert (catalog.deletions(), catalog.tombstones()) == ((), ())


def test_proof_that_is_stored_is_signed_and_not_withdrawn(catalog: Catalog) -> None:
    removal = example_deletion()
    catalog.record_deletion(removal)
    key = KnownHostKey("ab" * 16, "00", "installation", "alpha", Trust.TRUSTED)
    catalog.note_deletion_stored(removal.id, key.fingerprint)
    (unknown,) = catalog.deletions()
    assert (unknown.trust, unknown.is_vouched_for, catalog.unstored_deletions()) == (Trust.UNKNOWN, False, ())
    catalog.see_host_key(key)
    (known,) = catalog.deletions()
    assert (known.trust, known.is_vouched_for) == (Trust.TRUSTED, True)
    catalog.withdraw_deletion(removal.id, "x")
    assert catalog.deletions() == (known,)


def test_hidden_point_is_nowhere_until_its_removal_ends(catalog: Catalog) -> None:
    catalog.record_point(example_point("p1"))
    removal = PointRemoval(
        number("p1"), "alpha", "2026-03-02", "2026-03-02", 60, "mistake", WIN11, "win11", "2026-03-01"
    )
    catalog.hide_point(removal)  # nobody who is trusted signed it
    assert (catalog.point_ids(), [each.hides for each in catalog.removals()]) == ((number("p1"),), [False])
    key = KnownHostKey("ab" * 16, "00", "installation", "alpha", Trust.TRUSTED)
    catalog.see_host_key(key)
    catalog.hide_point(replace(removal, signed_by=key.fingerprint, trust=Trust.TRUSTED))
    assert (catalog.point_ids(), catalog.points("win11"), catalog.is_anything_marked()) == ((), (), True)
    (hidden,) = catalog.removals(WIN11.upper())
    assert (hidden.hides, hidden.why, hidden.grace_seconds, catalog.removals(WEB)) == (True, "mistake", 60, ())
    catalog.trust_host(key.fingerprint, Trust.DISTRUSTED)
    assert [each.hides for each in catalog.removals()] == [False]
    catalog.end_removal(number("p1"))
    assert (catalog.removals(), catalog.is_anything_marked()) == ((), False)


def test_what_keeps_points_is_kept_and_replaced(catalog: Catalog) -> None:
    for until in ("2027-01-01", None):
        catalog.protect_point(PointProtection(number("p1"), "alpha", "2026", "2026", "audit", until))
    assert catalog.protections() == {number("p1"): PointProtection(number("p1"), "alpha", "2026", "2026", "audit")}
    catalog.end_protection(number("p1"))
    assert catalog.protections() == {}
    catalog.note_soundness({number("p1"), number("p2")}, ())
    since = catalog.harmed_points()[number("p2")]
    catalog.note_soundness({number("p2")}, {number("p1"), number("p2")})
    assert catalog.harmed_points() == {number("p2"): since}
    for last in (1, 2):
        catalog.set_policy(Policy("all", f"last={last}", 0, "UTC", 60))
    assert catalog.policies() == {"all": Policy("all", "last=2", 0, "UTC", 60)}
    assert catalog.policies()["all"].changed_at
    assert (catalog.drop_policy("all"), catalog.drop_policy("all"), catalog.policies()) == (True, False, {})


def test_tombstone_is_moved_by_compare_and_set_with_the_fact_of_it(catalog: Catalog) -> None:
    known = grave()
    catalog.add_tombstones([known, known])
    tried = known.failed("2026-03-02T11:00:00.000000+00:00", "read-only")
    catalog.move_tombstone(known, tried)
    with pytest.raises(CatalogError):
        catalog.move_tombstone(known, known.waived("2026", "root", "x"))  # another command was first
    with pytest.raises(CatalogError):
        catalog.move_tombstone(grave(id="0e" * 16), grave(id="0e" * 16).failed("2026", "x"))
    fact = example_deletion(id="0f" * 16, of="0b" * 16, event="settled")
    settled = tried.settled("2026-03-02T12:00:00.000000+00:00", Ending.DELETED)
    catalog.move_tombstone(tried, settled, fact)
    assert (catalog.tombstones(), catalog.open_tombstones(), catalog.deletions()) == ((settled,), (), (fact,))
    with pytest.raises(CatalogError):
        catalog.move_tombstone(settled, replace(settled, state=known.state), example_deletion())
    assert catalog.deletions() == (fact,)
