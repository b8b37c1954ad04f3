"""Versions that no point names: pinned in the repository, kept by rule, and found again by a catalogue that is new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.catalog.examples import example_point
from tests.integration.repository.samples import opener, record_of, sample_key
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.catalog import (
    Catalog,
    CatalogDeletion,
    CatalogSnapshot,
    CatalogState,
    KnownHostKey,
    MemoryCatalog,
    SqlCatalog,
    Trust,
)
from vmkeep.errors import PermissionRefused
from vmkeep.flows.catch_up_on_pins import catch_up_on_pins
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.vm_states import known_states, versions_nobody_vouches_for
from vmkeep.keys.signing import SigningKey
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import Repository
from vmkeep.repository.pins import Pins

VM = "16b6c512-678b-44b6-a438-527ecc51f748"
OTHER = "5a1d3a4e-0000-4000-8000-000000000001"
RULE = KeepRule(last=2)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@dataclass
class Place:
    """A repository and a catalogue that keeps VMs in it."""

    catalog: Catalog
    repository: Repository
    made: list[CatalogState] = field(default_factory=list)

    def capture(self, content: bytes, vm: str = VM, kind: Literal["tpm", "nvram"] = "tpm") -> CatalogState:
        """Keep a content as the newest version, a minute after the one before."""
        newest = self.catalog.newest_state(vm, kind)
        version = self.repository.put_state(
            content * 1000,
            vm_uuid=vm,
            kind=kind,
            generation=1 if newest is None else newest.generation + 1,
            file="tpm2/tpm2-00.permall" if kind == "tpm" else "nvram.fd",
            owner="tss",
            group="tss",
            mode=0o600,
            created=(NOON + timedelta(minutes=len(self.made))).isoformat(timespec="microseconds"),
        )
        state = CatalogState(
            version.id, vm, kind, version.generation, version.sha256, version.size_bytes, version.created
        )
        self.catalog.see_vm(vm, "win11" if vm == VM else "other")
        self.catalog.accept_states([state])
        self.made.append(state)
        self.settle(vm)
        return state

    def store_point(self, point_id: str, cache: Path) -> None:
        """Let the repository hold a point of this id."""
        with self.repository.begin(purpose="x", host="a", cache=cache, workers=1, point_id=point_id) as writer:
            writer.commit(record_of([]))

    def settle(self, vm: str = VM, rule: KeepRule = RULE, without: str | None = None) -> None:
        settle_pins(self.catalog, self.repository, vm, rule, without=without)

    def pinned(self) -> dict[str, tuple[str, ...]]:
        """Return the versions that the repository's pins name, by pin."""
        pins = self.repository.pins
        return {pin: tuple(sorted(state.version_id for state in pins.get(pin).states)) for pin in pins.ids()}

    def versions(self) -> list[tuple[str, ...]]:
        return sorted(self.pinned().values())


def owned(catalog: Catalog, key: SigningKey) -> None:
    catalog.see_host_key(
        KnownHostKey(key.fingerprint, key.public_key.hex(), key.installation, key.host, Trust.OWN, machine=key.machine)
    )


def place_at(location: Path, catalog: Catalog, *, by: SigningKey = SIGNER) -> Place:
    if not location.exists():
        Repository.create(str(location), sample_key())
    repository = Repository.open(str(location), opener(sample_key()))
    repository.sign_with(lambda: by)
    owned(catalog, by)
    return Place(catalog, repository)


@pytest.fixture(params=["sql", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "memory":
        yield place_at(tmp_path / "repository", MemoryCatalog())
        return
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as catalog:
        yield place_at(tmp_path / "repository", catalog)


def snapshot_of(name: str, *states: CatalogState) -> CatalogSnapshot:
    made = (NOON + timedelta(hours=1)).isoformat(timespec="microseconds")
    return CatalogSnapshot(f"{name:0>32}".encode().hex()[-32:], VM, name, 1_772_445_600, None, made, states)


def test_captured_version_has_a_pin_and_settling_again_changes_nothing(place: Place) -> None:
    state = place.capture(b"1")
    before = place.pinned()
    assert list(before.values()) == [(state.id,)]
    place.settle()
    assert place.pinned() == before


def test_versions_that_the_rule_does_not_keep_lose_their_pin_and_stay_known(place: Place) -> None:
    states = [place.capture(content) for content in (b"1", b"2", b"3", b"4")]
    assert place.versions() == sorted((state.id,) for state in states[2:])
    assert [state.generation for state in place.catalog.states_of_vm(VM)] == [4, 3, 2, 1]
    place.settle(rule=KeepRule(yearly=1))
    assert place.versions() == [(states[3].id,)]


def test_host_that_may_delete_nothing_captures_all_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_pins: Pins, pin_id: str) -> bool:
        raise PermissionRefused(f"access to pins/{pin_id} was refused")

    with monkeypatch.context() as patched:
        patched.setattr(Pins, "delete", refused)
        states = [place.capture(content) for content in (b"1", b"2", b"3")]
        assert place.versions() == sorted((state.id,) for state in states)
    place.settle()
    assert place.versions() == sorted((state.id,) for state in states[1:])


def test_what_a_point_holds_is_pinned_before_it_goes(place: Place, tmp_path: Path) -> None:
    states = [place.capture(content) for content in (b"1", b"2")]
    point = example_point("held", vm=VM, vm_name="win11")
    place.store_point(point.id, tmp_path / "cache")
    place.catalog.record_point(replace(point, signed_by=SIGNER.fingerprint), states)
    place.settle()
    assert place.versions() == []
    place.settle(without=point.id)
    assert place.versions() == sorted((state.id,) for state in states)
    place.catalog.forget_point(point.id)
    before = place.pinned()
    place.settle()
    assert place.pinned() == before


def test_what_another_installation_deleted_with_its_point_is_pinned(place: Place, tmp_path: Path) -> None:
    state = place.capture(b"1")
    point = replace(example_point("theirs", vm=VM, vm_name="win11"), signed_by=SIGNER.fingerprint)
    place.store_point(point.id, tmp_path / "cache")
    place.catalog.record_point(point, [state])
    place.settle()
    assert place.versions() == []
    place.repository.delete_point(point.id)
    place.settle()
    assert place.versions() == [(state.id,)]


def test_version_whose_pin_a_kill_came_before_does_not_give_way_to_one_that_nobody_vouches_for(place: Place) -> None:
    state = place.capture(b"1")
    for pin in place.pinned():
        place.catalog.forget_pin(pin)
    theirs = replace(state, id="f" * 32, sha256="0" * 64)
    place.catalog.adopt([(replace(example_point("p", vm=VM), signed_by=ROGUE.fingerprint), [theirs])])
    assert place.catalog.newest_state(VM, "tpm") == state


def test_snapshot_has_a_pin_of_its_own_which_follows_its_name_and_goes_with_it(place: Place) -> None:
    tpm, nvram = place.capture(b"1"), place.capture(b"n", kind="nvram")
    place.catalog.record_snapshot(snapshot_of("before", tpm, nvram))
    place.settle()
    both = tuple(sorted([tpm.id, nvram.id]))
    assert place.versions() == [both]
    (first,) = place.pinned()

    place.catalog.rename_snapshot(VM, "before", "after")
    place.settle()
    (second,) = place.pinned()
    kept = place.repository.pins.get(second).snapshot
    assert (second != first, kept is not None and kept.name, place.versions()) == (True, "after", [both])

    place.catalog.forget_snapshot(snapshot_of("before").id)
    place.settle()
    assert place.versions() == sorted([(tpm.id,), (nvram.id,)])


def test_new_catalogue_finds_versions_generations_and_snapshots_again(place: Place) -> None:
    held = place.capture(b"1")
    place.catalog.record_snapshot(snapshot_of("before", held))
    states = [held, *(place.capture(content) for content in (b"2", b"3", b"4"))]
    place.settle()
    stored = place.pinned()

    new = MemoryCatalog()
    owned(new, SIGNER)
    taken = catch_up_on_pins(new, place.repository, lambda _: True)
    assert (set(taken.taken), taken.told) == ({VM}, ())
    # The second one is kept by nothing, so it is not found; its number is not given again.
    assert {state.id: state.generation for state in new.states_of_vm(VM)} == {
        states[3].id: 4,
        states[2].id: 3,
        held.id: 1,
    }
    found = new.snapshot(VM, "before")
    assert found is not None
    assert (found.id, found.creation_time, [state.id for state in found.states]) == (
        snapshot_of("before").id,
        1_772_445_600,
        [held.id],
    )
    settle_pins(new, place.repository, VM, RULE)
    assert place.pinned() == stored
    assert catch_up_on_pins(new, place.repository, lambda _: True).taken == frozenset()


def test_versions_of_a_host_that_nobody_trusts_count_for_nothing_until_it_is_trusted(
    place: Place, tmp_path: Path
) -> None:
    mine = place.capture(b"1")
    other = place_at(tmp_path / "repository", MemoryCatalog(), by=ROGUE)
    catch_up_on_pins(other.catalog, other.repository, lambda _: True)
    theirs = other.capture(b"2")
    other.catalog.record_snapshot(snapshot_of("before", theirs))
    other.settle()

    taken = catch_up_on_pins(place.catalog, place.repository, lambda uuid: uuid == VM)
    assert [host.fingerprint for host in taken.hosts] == [ROGUE.fingerprint]
    assert versions_nobody_vouches_for((), place.catalog.pins_of_vm(VM)) == {theirs.id}
    assert place.catalog.snapshot(VM, "before") is None
    before = place.pinned()
    place.settle(rule=KeepRule(yearly=1))
    assert place.pinned() == before, "nothing of another host is deleted, and nothing of ours for it"

    place.catalog.trust_host(ROGUE.fingerprint, Trust.TRUSTED)
    assert versions_nobody_vouches_for((), place.catalog.pins_of_vm(VM)) == set()
    recovered = place.catalog.snapshot(VM, "before")
    assert recovered is not None
    assert [state.id for state in recovered.states] == [theirs.id]
    assert known_states(place.catalog, VM, ())[0].version_id == theirs.id
    assert mine.id in {state.id for state in place.catalog.states_of_vm(VM)}


def test_snapshot_of_a_trusted_host_that_is_forgotten_here_keeps_its_pin(place: Place, tmp_path: Path) -> None:
    place.capture(b"1")
    other = place_at(tmp_path / "repository", MemoryCatalog(), by=ROGUE)
    catch_up_on_pins(other.catalog, other.repository, lambda _: True)
    other.catalog.record_snapshot(snapshot_of("before", other.capture(b"2")))
    other.settle()
    catch_up_on_pins(place.catalog, place.repository, lambda uuid: uuid == VM)
    place.catalog.trust_host(ROGUE.fingerprint, Trust.TRUSTED)
    assert place.catalog.forget_snapshot(snapshot_of("before").id)
    before = place.pinned()
    place.settle()
    assert before.items() <= place.pinned().items()
    place.catalog.trust_host(ROGUE.fingerprint, Trust.TRUSTED)
    assert place.catalog.snapshot(VM, "before") is None, "what was forgotten does not come back by itself"


def test_pins_of_other_vms_are_read_once(place: Place, tmp_path: Path) -> None:
    other = place_at(tmp_path / "repository", MemoryCatalog(), by=ROGUE)
    state = other.capture(b"2", vm=OTHER)
    reads: list[str] = []

    class Counting:
        @property
        def pins(self) -> Counting:
            return self

        def ids(self) -> list[str]:
            return place.repository.pins.ids()

        def get(self, pin_id: str):  # type: ignore[no-untyped-def]
            reads.append(pin_id)
            return place.repository.pins.get(pin_id)

    for _ in range(3):
        assert catch_up_on_pins(place.catalog, Counting(), lambda uuid: uuid == VM).taken == frozenset()
    assert len(reads) == 1
    assert catch_up_on_pins(place.catalog, Counting(), lambda uuid: uuid == OTHER).taken == {OTHER}
    assert [each.id for each in place.catalog.states_of_vm(OTHER)] == [state.id]


def test_damaged_pin_is_told_and_harms_nothing_else(place: Place, tmp_path: Path) -> None:
    place.capture(b"1")
    (pin,) = place.pinned()
    (tmp_path / "repository" / "pins" / pin).write_bytes(b"VMKF" + bytes(100))
    taken = catch_up_on_pins(MemoryCatalog(), place.repository, lambda _: True)
    assert len(taken.told) == 1
    assert pin in taken.told[0]


def test_vm_that_is_forgotten_keeps_its_versions_until_the_term_is_over_or_it_is_seen_again(place: Place) -> None:
    tpm, nvram = place.capture(b"1"), place.capture(b"n", kind="nvram")
    later = (datetime.now(UTC) + timedelta(days=90)).isoformat(timespec="microseconds")
    place.catalog.forget_vm(VM, later)
    place.settle()
    terms = {place.repository.pins.get(pin).until for pin in place.pinned()}
    assert (place.versions(), terms) == (sorted([(tpm.id,), (nvram.id,)]), {later})

    place.catalog.see_vm(VM, "win11")
    place.settle()
    assert {place.repository.pins.get(pin).until for pin in place.pinned()} == {None}
    assert len(place.pinned()) == 2

    place.catalog.forget_vm(VM, (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="microseconds"))
    place.settle()
    assert place.pinned() == {}
    assert [state.generation for state in place.catalog.states_of_vm(VM)] == [1, 1]
    assert place.repository.state(tpm.id)[0].id == tpm.id  # there is no prune yet


def test_two_that_pinned_one_version_at_once_leave_one_pin(place: Place) -> None:
    state = place.capture(b"1")
    (pin,) = place.pinned()
    record = replace(place.repository.pins.get(pin), id="", signature=None)
    twice = place.repository.pins.put(record)
    catch_up_on_pins(place.catalog, place.repository, lambda _: True)
    place.settle()
    assert place.versions() == [(state.id,)]
    assert twice.id in {pin, *place.pinned()} or pin in place.pinned()


def test_what_a_point_of_a_host_that_nobody_trusts_holds_as_well_is_pinned_before_ours_goes(place: Place) -> None:
    """Else nobody vouches for the newest version any more, and it goes with that point."""
    state = place.capture(b"1")
    ours, theirs = (example_point(name, vm=VM, vm_name="win11", states=(state,)) for name in ("ours", "theirs"))
    place.catalog.record_point(replace(ours, signed_by=SIGNER.fingerprint), [state])
    place.settle()
    place.catalog.adopt([(replace(theirs, signed_by=ROGUE.fingerprint), [state])])
    place.settle(without=ours.id)
    place.catalog.forget_point(ours.id)
    assert versions_nobody_vouches_for(place.catalog.points_of_vm(VM), place.catalog.pins_of_vm(VM)) == set()
    place.catalog.forget_point(theirs.id)
    assert place.catalog.newest_state(VM, "tpm") == state


def removed(place: Place, until: str, event: str = "removal", **about: str) -> None:
    created = (NOON + timedelta(hours=1)).isoformat(timespec="microseconds")
    of = about.get("of")
    place.catalog.record_deletion(
        CatalogDeletion(about.get("name", "ab" * 16), of, event, VM, created, {"vm_name": "win11"}, until)
    )


def terms(place: Place) -> dict[str, str | None]:
    """Return until when the repository's pins keep what they name, by version."""
    found = (place.repository.pins.get(pin) for pin in place.repository.pins.ids())
    return {state.version_id: pin.until for pin in found for state in pin.states}


def test_versions_of_a_tpm_that_was_removed_have_a_term_until_the_vm_has_one_again(place: Place) -> None:
    tpm, nvram = place.capture(b"a"), place.capture(b"n", kind="nvram")
    until = (datetime.now(UTC) + timedelta(days=90)).isoformat(timespec="microseconds")
    removed(place, until)
    place.settle()
    place.settle()
    assert terms(place) == {tpm.id: until, nvram.id: None}
    assert len(place.pinned()) == 2
    removed(place, until, "returned", name="cd" * 16, of="ab" * 16)
    place.settle()
    assert terms(place) == {tpm.id: None, nvram.id: None}


def test_versions_of_a_removed_tpm_are_let_go_when_their_term_is_over_and_newer_ones_have_none(place: Place) -> None:
    place.capture(b"a")
    removed(place, (datetime.now(UTC) - timedelta(days=1)).isoformat(timespec="microseconds"))
    place.settle()
    assert terms(place) == {}
    # Somebody gave it a TPM without vmkeep.
    place.made.extend([place.made[0]] * 90)
    newer = place.capture(b"b")
    assert terms(place)[newer.id] is None
