"""The catalogue in memory: a complete twin of the one in SQL, for tests of flows and of what stands above them.

It promises what ``Catalog`` does, and the same suites of tests look at both. What SQL's constraints refuse is a
CatalogError here too; only words differ. Nothing is kept beyond the object.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from vmkeep.catalog import naming, texts
from vmkeep.catalog.catalog import Catalog
from vmkeep.catalog.memory_tables import BEFORE_FIRST, Contradiction, Tables, VmRow, as_kept, checked
from vmkeep.catalog.operations import FINISHED, TRANSITIONS, Operation, OperationState
from vmkeep.catalog.records import (
    Adopted,
    CatalogDeletion,
    CatalogPin,
    CatalogPoint,
    CatalogSnapshot,
    CatalogState,
    CatalogVm,
    FoundPin,
    KnownHostKey,
    KnownKeyring,
    KnownRepository,
    PassedPoint,
    PointOutline,
    PointProtection,
    PointRemoval,
    Policy,
    StateAlert,
    StateFile,
    Trust,
    made_by,
    trust_of,
)
from vmkeep.catalog.times import end_of_named_time
from vmkeep.custody.leases import Lease
from vmkeep.custody.tombstones import Tombstone
from vmkeep.errors import CatalogError, InvalidRequest, VmkeepError, VmNotFound
from vmkeep.identity.hosts import HostEvent, HostIdentity, HostStatus

_SHORTEST_KEY = 8


class MemoryCatalog(Catalog):
    """What an installation knows, for as long as the object lives."""

    def __init__(self) -> None:
        self._tables = Tables()
        self._refusal: VmkeepError | None = None
        self._writers = threading.RLock()
        self._begun: dict[str, tuple[str, float]] = {}

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Tables]:
        """Yield the tables of one transaction: all of it becomes true at the end, or nothing."""
        if self._refusal is not None:
            raise self._refusal
        with self._writers:
            changed = self._tables.copied()
            try:
                yield changed
            except Contradiction as contradiction:
                raise CatalogError(f"The catalogue would contradict itself: {contradiction}") from contradiction
            changed.require_fit(self._tables)
            self._tables = changed

    def close(self) -> None:
        pass

    def refuse_writing(self, refusal: VmkeepError) -> None:
        self._refusal = refusal

    def allow_writing(self) -> None:
        self._refusal = None

    @contextlib.contextmanager
    def copy_written(self) -> Iterator[None]:
        refusal, self._refusal = self._refusal, None
        try:
            yield
        finally:
            self._refusal = refusal

    def faults(self) -> tuple[str, ...]:
        return ()

    # -- the repository this catalogue belongs to --------------------------------------------------------------

    def repository(self) -> KnownRepository | None:
        known = sorted(self._tables.repositories.values(), key=lambda one: one.id)
        return max(known, key=lambda one: one.since, default=None)

    def use_repository(self, repository_id: str, location: str) -> None:
        with self._writing() as tables:
            known = tables.repositories.get(repository_id)
            keyring = None if known is None else known.keyring
            tables.repositories[repository_id] = KnownRepository(repository_id, location, texts.now(), keyring)

    def see_keyring(self, repository_id: str, keyring: KnownKeyring) -> None:
        with self._writing() as tables:
            known = tables.repositories.get(repository_id)
            if known is not None:
                tables.repositories[repository_id] = replace(known, keyring=keyring)

    # -- hosts that sign points ----------------------------------------------------------------------------------

    def see_host_key(self, key: KnownHostKey) -> bool:
        known = self._tables.keys.get(key.fingerprint)
        if key.is_known_as(known):
            return False
        with self._writing() as tables:
            if known is None:
                tables.keys[key.fingerprint] = replace(checked(key), seen_at=texts.now(), copied_to=None)
                return True
            tables.keys[key.fingerprint] = replace(known, trust=key.trust, machine=key.machine)
            return False

    def host_keys(self) -> tuple[KnownHostKey, ...]:
        return tuple(sorted(self._tables.keys.values(), key=lambda key: (key.seen_at, key.fingerprint)))

    def host_key(self, text: str) -> KnownHostKey:
        wanted = text.lower()
        if len(wanted) < _SHORTEST_KEY or not set(wanted) <= set("0123456789abcdef"):
            raise InvalidRequest(f"{text!r} is neither a fingerprint nor {_SHORTEST_KEY} characters of one")
        found = [key for fingerprint, key in self._tables.keys.items() if fingerprint.startswith(wanted)]
        if len(found) != 1:
            raise InvalidRequest(f"{text!r} is the beginning of {'several keys' if found else 'no key that was met'}")
        return found[0]

    def trust_host(self, text: str, trust: Trust) -> KnownHostKey:
        key = self.host_key(text).trusted_as(trust)
        with self._writing() as tables:
            tables.keys[key.fingerprint] = checked(key)
            tables.recover_snapshots(tables.vms)
        return key

    def retire_own_key(self, fingerprint: str) -> None:
        with self._writing() as tables:
            if fingerprint in tables.keys:
                known = tables.keys[fingerprint]
                tables.keys[fingerprint] = replace(known, trust=Trust.TRUSTED, copied_to=None)

    def note_copy(self, fingerprint: str, host: str) -> None:
        with self._writing() as tables:
            if fingerprint in tables.keys:
                tables.keys[fingerprint] = replace(tables.keys[fingerprint], copied_to=host)

    def points_of_host_keys(self) -> dict[str, int]:
        counted: dict[str, int] = {}
        for point in self._tables.points.values():
            counted[point.signed_by or ""] = counted.get(point.signed_by or "", 0) + 1
        return counted

    def is_signed_by_trusted_host(self, point_id: str) -> bool:
        point = self._tables.get(point_id)
        return point is not None and point.trust.is_proved

    def makers(self) -> dict[str, dict[str, str | None]]:
        tables = self._tables
        judged = [tables.judged(point) for point in tables.points.values()]
        return {point.id: made_by(point.signed_by, point.installation, point.trust) for point in judged}

    # -- VMs ---------------------------------------------------------------------------------------------------

    def see_host(self, uuid: str, name: str) -> None:
        with self._writing() as tables:
            tables.hosts[uuid] = name

    def see_vm(self, uuid: str, name: str, host_uuid: str | None = None) -> None:
        with self._writing() as tables:
            tables.see_vm(uuid.lower(), name, host_uuid, adopted=False)

    def return_to(self, uuid: str, point_id: str | None) -> None:
        with self._writing() as tables:
            tables.set_current_point(uuid.lower(), point_id or BEFORE_FIRST)

    def lose_track(self, uuid: str) -> None:
        with self._writing() as tables:
            tables.set_current_point(uuid.lower(), None)

    def forget_vm(self, uuid: str, until: str) -> bool:
        with self._writing() as tables:
            known = tables.vms.get(uuid.lower())
            if known is not None:
                tables.vms[known.uuid] = replace(known, forgotten_until=until)
            return known is not None

    def vm(self, uuid: str) -> CatalogVm | None:
        row = self._tables.vms.get(uuid.lower())
        return None if row is None else _vm(row)

    def vms(self) -> tuple[CatalogVm, ...]:
        return tuple(_vm(row) for row in sorted(self._tables.vms.values(), key=lambda vm: (vm.name, vm.uuid)))

    def vms_named(self, text: str) -> tuple[str, ...]:
        return self._tables.uuids_named(text)

    # -- points ------------------------------------------------------------------------------------------------

    def record_point(self, point: CatalogPoint, states: Sequence[CatalogState] = ()) -> None:
        with self._writing() as tables:
            known = tables.get(point.id)
            if known is not None and not point.repeats(known):
                raise CatalogError(f"Point {point.id} is recorded already, with other content", vm=point.vm_name)
            tables.see_vm(point.vm_uuid, point.vm_name, None, adopted=False)
            for state in states:
                tables.accept(state)
                tables.pins[state.id, "point", point.id] = None
            if known is None:
                tables.add_point(point)
                tables.put_last(point)
                tables.raise_sequence(point.vm_uuid, point.sequence or 0)
                tables.set_current_point(point.vm_uuid, point.id)

    def points(self, vm: str | None = None) -> tuple[CatalogPoint, ...]:
        if vm is None:
            return tuple(self._tables.oldest_first(None))
        uuids = self._tables.uuids_named(vm)
        if not uuids:
            raise VmNotFound(f"No point was ever taken of a VM {vm!r}", vm=vm)
        return tuple(self._tables.oldest_first(uuids))

    def summaries(self, vm: str | None = None) -> tuple[dict[str, Any], ...]:
        return tuple(as_kept(point.summary()) for point in self.points(vm))

    def point_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self._tables.points))

    def points_of_vm(self, uuid: str) -> tuple[CatalogPoint, ...]:
        return tuple(self._tables.newest_first(uuid.lower()))

    def outlines_of_vm(self, uuid: str) -> tuple[PointOutline, ...]:
        return tuple(PointOutline(point.id, point.created) for point in self._tables.newest_first(uuid.lower()))

    def next_sequence(self, vm_uuid: str) -> int:
        return self._tables.next_sequence(vm_uuid.lower())

    def find_point(self, text: str) -> CatalogPoint:
        return naming.find(self._tables, text)

    def against_the_clock(self, text: str, found: CatalogPoint) -> tuple[str, ...]:
        until = end_of_named_time(text.rpartition("@")[2]) if "@" in text else None
        place = self._tables.places.get(found.id)
        if until is None or place is None:
            return ()
        others = self._tables.newest_first(found.vm_uuid)
        earlier = [point for point in others if self._tables.places[point.id] < place]
        return tuple(point.id for point in earlier if datetime.fromisoformat(point.created) > until)

    def newer_distrusted(self, point: CatalogPoint) -> tuple[str, ...]:
        later = self._tables.made_after(point)
        return tuple(each.id for each in later if not each.is_safety and each.trust is Trust.DISTRUSTED)

    def point(self, point_id: str) -> CatalogPoint | None:
        return self._tables.get(point_id)

    def digest(self, point_id: str) -> str | None:
        point = self._tables.points.get(point_id)
        return None if point is None else point.digest or ""

    def note_digest(self, point_id: str, digest: str) -> None:
        with self._writing() as tables:
            point = tables.points.get(point_id)
            if point is not None and point.digest is None:
                tables.points[point_id] = replace(point, digest=digest)

    def newest_made(self, vm_uuid: str) -> CatalogPoint | None:
        return next((point for point in self._tables.newest_first(vm_uuid.lower()) if not point.is_safety), None)

    def newer_safety_points(self, point: CatalogPoint) -> tuple[str, ...]:
        return tuple(each.id for each in self._tables.made_after(point) if each.is_safety)

    def forget_point(self, point_id: str) -> bool:
        with self._writing() as tables:
            return self._forget_point(tables, point_id)

    @staticmethod
    def _forget_point(tables: Tables, point_id: str) -> bool:
        point = tables.get(point_id)
        held = [version for version, *holder in tables.pins if holder == ["point", point_id]]
        tables.unpin(point_id, "point")
        if point is not None and not point.is_vouched_for:
            tables.disown(held)
        tables.places.pop(point_id, None)
        return tables.points.pop(point_id, None) is not None

    def newest_state(self, vm_uuid: str, kind: str) -> CatalogState | None:
        return self._tables.newest_state(vm_uuid.lower(), kind)

    def states_of_vm(self, vm_uuid: str) -> tuple[CatalogState, ...]:
        mine = [state for state in self._tables.states.values() if state.vm_uuid == vm_uuid.lower()]
        return tuple(sorted(mine, key=lambda state: (-state.generation, state.conflict, state.id)))

    def accept_states(self, states: Sequence[CatalogState]) -> None:
        with self._writing() as tables:
            for state in states:
                tables.accept(state)

    def keep_late(self, states: Sequence[CatalogState]) -> None:
        with self._writing() as tables:
            for state in states:
                tables.keep_late(state)

    def place_states(self, vm_uuid: str, states: Mapping[str, str | None]) -> None:
        with self._writing() as tables:
            for kind, sha256 in states.items():
                tables.place_state(vm_uuid.lower(), kind, sha256)

    def placed_states(self, vm_uuid: str) -> dict[str, str]:
        return self._tables.placed_states(vm_uuid.lower())

    def pins(self, version_id: str) -> tuple[str, ...]:
        return self._tables.pinned(version_id)

    def holders(self, vm_uuid: str) -> Mapping[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for version, reason, holder in sorted(self._tables.pins, key=lambda pin: pin[2]):
            if reason != "pin" and self._tables.states[version].vm_uuid == vm_uuid.lower():
                found[version] = (*found.get(version, ()), holder)
        return found

    # -- pins of the repository ----------------------------------------------------------------------------------

    def adopt_pins(self, found: Sequence[FoundPin]) -> tuple[str, ...]:
        with self._writing() as tables:
            return tables.adopt_pins(found)

    def pin_ids(self) -> frozenset[str]:
        return frozenset(self._tables.pin_objects)

    def pins_of_vm(self, vm_uuid: str) -> tuple[CatalogPin, ...]:
        return tuple(pin for pin, _ in self._tables.pins_of_vm(vm_uuid.lower()))

    def forget_pin(self, pin_id: str) -> bool:
        with self._writing() as tables:
            return tables.forget_pin(pin_id)

    def passed_pins(self) -> Mapping[str, str]:
        return dict(sorted(self._tables.passed_pins.items()))

    def pass_pins(self, passed: Mapping[str, str]) -> None:
        with self._writing() as tables:
            tables.passed_pins = {**passed, **tables.passed_pins}

    # -- where state files lie -----------------------------------------------------------------------------------

    def note_state_files(self, host_uuid: str, found: Mapping[str, Sequence[StateFile]]) -> None:
        with self._writing() as tables:
            for vm_uuid, files in found.items():
                if vm_uuid.lower() not in tables.vms:
                    continue
                if files and host_uuid not in tables.hosts:
                    raise Contradiction(f"no host {host_uuid}")
                before = {key: each for key, each in tables.files.items() if key[:2] == (vm_uuid.lower(), host_uuid)}
                for key in before:
                    del tables.files[key]
                for each in files:
                    key = (vm_uuid.lower(), host_uuid, each.kind)
                    known = before.get(key)
                    now = texts.now()
                    since = known.since if known is not None and each.is_as(known) else now
                    tables.files[key] = replace(each, since=since, seen_at=now)

    def state_files(self, vm_uuid: str) -> tuple[StateFile, ...]:
        return tuple(each for key, each in sorted(self._tables.files.items()) if key[0] == vm_uuid.lower())

    def host_names(self) -> Mapping[str, str]:
        return dict(sorted(self._tables.hosts.items()))

    # -- what keeps state from being captured --------------------------------------------------------------------

    def note_alert(self, vm_uuid: str, code: str, message: str) -> None:
        key = (vm_uuid.lower(), code)
        with self._writing() as tables:
            if key[0] not in tables.vms:
                raise Contradiction(f"no VM {vm_uuid}")
            known = tables.alerts.get(key)
            first, times = (texts.now(), 0) if known is None else (known.first_at, known.times)
            tables.alerts[key] = StateAlert(*key, message, first, texts.now(), times + 1)

    def clear_alerts(self, vm_uuid: str) -> bool:
        with self._writing() as tables:
            mine = [key for key in tables.alerts if key[0] == vm_uuid.lower()]
            for key in mine:
                del tables.alerts[key]
            return bool(mine)

    def alerts(self) -> tuple[StateAlert, ...]:
        return tuple(alert for _, alert in sorted(self._tables.alerts.items()))

    # -- what was deleted on hosts, and what must still be -------------------------------------------------------

    def record_deletion(self, deletion: CatalogDeletion, tombstones: Sequence[Tombstone] = ()) -> None:
        with self._writing() as tables:
            self._add_deletion(tables, deletion)
            self._add_tombstones(tables, tombstones)

    def withdraw_deletion(self, deletion_id: str, origin: str) -> None:
        with self._writing() as tables:
            known = tables.deletions.get(deletion_id)
            if known is not None and not known.stored:
                del tables.deletions[deletion_id]
            tables.tombstones = {name: each for name, each in tables.tombstones.items() if each.origin != origin}

    def note_deletion_stored(self, deletion_id: str, signed_by: str | None) -> None:
        with self._writing() as tables:
            known = tables.deletions.get(deletion_id)
            if known is not None:
                tables.deletions[deletion_id] = replace(known, stored=True, signed_by=signed_by)

    def deletions(self, vm_uuid: str | None = None) -> tuple[CatalogDeletion, ...]:
        found = sorted(self._tables.deletions.values(), key=lambda each: (each.created, each.id))
        vm_uuid = None if vm_uuid is None else vm_uuid.lower()
        return tuple(self._judged_deletion(each) for each in found if vm_uuid in (None, each.vm_uuid))

    def unstored_deletions(self) -> tuple[CatalogDeletion, ...]:
        return tuple(each for each in self.deletions() if not each.stored)

    def add_tombstones(self, tombstones: Sequence[Tombstone]) -> None:
        with self._writing() as tables:
            self._add_tombstones(tables, tombstones)

    def tombstones(self, vm_uuid: str | None = None) -> tuple[Tombstone, ...]:
        found = sorted(self._tables.tombstones.values(), key=lambda each: (each.since, each.id))
        vm_uuid = None if vm_uuid is None else vm_uuid.lower()
        return tuple(each for each in found if vm_uuid in (None, each.vm_uuid))

    def open_tombstones(self) -> tuple[Tombstone, ...]:
        return tuple(each for each in self.tombstones() if each.is_open)

    def move_tombstone(self, known: Tombstone, to: Tombstone, fact: CatalogDeletion | None = None) -> None:
        with self._writing() as tables:
            present = tables.tombstones.get(known.id)
            if present is None or not to.follows(known) or (present.state, present.tries) != (known.state, known.tries):
                raise CatalogError(f"Tombstone {known.id} cannot become {to.state}", vm=known.vm_name)
            tables.tombstones[known.id] = to
            if fact is not None:
                self._add_deletion(tables, fact)

    def _judged_deletion(self, deletion: CatalogDeletion) -> CatalogDeletion:
        return replace(deletion, trust=self._trust_of(deletion.signed_by))

    def _trust_of(self, signed_by: str | None) -> Trust:
        key = self._tables.keys.get(signed_by or "")
        return trust_of(signed_by, None if key is None else key.trust)

    @staticmethod
    def _add_deletion(tables: Tables, deletion: CatalogDeletion) -> None:
        if deletion.id not in tables.deletions:
            tables.deletions[deletion.id] = replace(deletion, document=as_kept(deletion.document))

    @staticmethod
    def _add_tombstones(tables: Tables, tombstones: Sequence[Tombstone]) -> None:
        for each in tombstones:
            tables.tombstones.setdefault(each.id, each)

    # -- which points are kept, and which are to go --------------------------------------------------------------

    def hide_point(self, removal: PointRemoval) -> None:
        with self._writing() as tables:
            tables.removals[removal.point_id] = replace(removal, trust=Trust.UNSIGNED)
            if removal.hides:
                self._forget_point(tables, removal.point_id)

    def is_anything_marked(self) -> bool:
        return bool(self._tables.removals or self._tables.protections)

    def end_removal(self, point_id: str) -> None:
        with self._writing() as tables:
            tables.removals.pop(point_id, None)

    def removals(self, vm_uuid: str | None = None) -> tuple[PointRemoval, ...]:
        wanted = None if vm_uuid is None else vm_uuid.lower()
        mine = [each for each in self._tables.removals.values() if wanted in (None, each.vm_uuid)]
        return tuple(
            replace(each, trust=self._trust_of(each.signed_by))
            for each in sorted(mine, key=lambda each: (each.stored_at, each.point_id))
        )

    def protect_point(self, protection: PointProtection) -> None:
        with self._writing() as tables:
            tables.protections[protection.point_id] = protection

    def end_protection(self, point_id: str) -> None:
        with self._writing() as tables:
            tables.protections.pop(point_id, None)

    def protections(self) -> Mapping[str, PointProtection]:
        return dict(sorted(self._tables.protections.items()))

    def note_soundness(self, harmed: Collection[str], sound: Collection[str]) -> None:
        with self._writing() as tables:
            for point_id in set(sound) - set(harmed):
                tables.harmed.pop(point_id, None)
            for point_id in harmed:
                tables.harmed.setdefault(point_id, texts.now())

    def harmed_points(self) -> Mapping[str, str]:
        return dict(sorted(self._tables.harmed.items()))

    def set_policy(self, policy: Policy) -> None:
        with self._writing() as tables:
            tables.policies[policy.subject] = replace(policy, changed_at=texts.now())

    def drop_policy(self, subject: str) -> bool:
        with self._writing() as tables:
            return tables.policies.pop(subject, None) is not None

    def policies(self) -> Mapping[str, Policy]:
        return dict(sorted(self._tables.policies.items()))

    # -- which host may run a VM -------------------------------------------------------------------------------

    def clock(self) -> str:
        return texts.now()

    def lease(self, vm_uuid: str) -> Lease | None:
        return self._tables.leases.get(vm_uuid.lower())

    def move_lease(self, known: Lease | None, to: Lease) -> None:
        with self._writing() as tables:
            present = tables.leases.get(to.vm_uuid)
            if not to.follows(known) or present != known:
                raise CatalogError(f"The lease of VM {to.vm_uuid} cannot become {to.state}", vm=to.vm_uuid)
            if to.vm_uuid not in tables.vms or to.host_uuid not in tables.hosts:
                raise Contradiction(f"the lease of {to.vm_uuid}")
            tables.leases[to.vm_uuid] = to

    # -- who the hosts of a fleet are ----------------------------------------------------------------------------

    def host_identities(self) -> tuple[HostIdentity, ...]:
        listed = (each for each in self._tables.identities.values() if each.status is not HostStatus.FORGOTTEN)
        return tuple(sorted(listed, key=lambda each: each.name))

    def host_identity(self, host_id: str) -> HostIdentity | None:
        return self._tables.identities.get(host_id)

    def invited_host(self, invite: str) -> HostIdentity | None:
        return next((each for each in self._tables.identities.values() if invite and each.invite == invite), None)

    def move_host_identity(self, known: HostIdentity | None, to: HostIdentity, event: HostEvent) -> None:
        with self._writing() as tables:
            present = tables.identities.get(to.id)
            if not to.follows(known) or present != known:
                raise CatalogError(f"Host {to.name} cannot become {to.status}")
            tables.identities[to.id] = to
            names = [each.name for each in tables.identities.values() if each.status is not HostStatus.FORGOTTEN]
            serials = [each.serial for identity in tables.identities.values() for each in identity.certificates]
            if len(names) > len(set(names)) or len(serials) > len(set(serials)):
                raise Contradiction(f"the identity of host {to.name}")
            tables.events[to.id, to.revision] = replace(event, revision=to.revision, at=to.changed_at)

    def host_events(self, host_id: str) -> tuple[HostEvent, ...]:
        return tuple(event for key, event in sorted(self._tables.events.items()) if key[0] == host_id)

    # -- snapshots ---------------------------------------------------------------------------------------------

    def record_snapshot(self, snapshot: CatalogSnapshot) -> None:
        with self._writing() as tables:
            known = tables.snapshot_named(snapshot.vm_uuid, snapshot.name)
            if known is not None and known.id == snapshot.id:
                return
            if known is not None:
                tables.remove_snapshot(known.id)
            for state in snapshot.states:
                tables.accept(state)
                tables.pins[state.id, "snapshot", snapshot.id] = None
            if snapshot.vm_uuid not in tables.vms or snapshot.id in tables.snapshots:
                raise Contradiction(f"the snapshot {snapshot.id}")
            number = tables.next_sequence(snapshot.vm_uuid)
            tables.snapshots[snapshot.id] = replace(snapshot, states=())
            tables.numbers[snapshot.id] = number
            tables.raise_sequence(snapshot.vm_uuid, number)

    def snapshot(self, vm_uuid: str, name: str) -> CatalogSnapshot | None:
        return self._tables.snapshot_named(vm_uuid.lower(), name)

    def snapshot_by_id(self, snapshot_id: str) -> CatalogSnapshot | None:
        found = self._tables.snapshots.get(snapshot_id)
        return None if found is None else self._tables.with_states(found)

    def snapshots_of_vm(self, vm_uuid: str) -> tuple[CatalogSnapshot, ...]:
        tables = self._tables
        mine = [tables.with_states(each) for each in tables.snapshots.values() if each.vm_uuid == vm_uuid.lower()]
        return tuple(sorted(mine, key=lambda each: (tables.numbers[each.id], each.created, each.name)))

    def rename_snapshot(self, vm_uuid: str, name: str, new_name: str) -> bool:
        with self._writing() as tables:
            known = tables.snapshot_named(vm_uuid.lower(), name)
            if known is None:
                return False
            taken = tables.snapshot_named(vm_uuid.lower(), new_name)
            if taken is not None and taken.id != known.id:
                tables.remove_snapshot(taken.id)
            tables.snapshots[known.id] = replace(tables.snapshots[known.id], name=new_name)
            return True

    def forget_snapshot(self, snapshot_id: str) -> bool:
        with self._writing() as tables:
            return tables.remove_snapshot(snapshot_id)

    # -- a repository taken over ---------------------------------------------------------------------------------

    def adopt(self, points: Sequence[tuple[CatalogPoint, Sequence[CatalogState]]]) -> Adopted:
        with self._writing() as tables:
            return tables.adopt(points)

    def passed_points(self) -> tuple[PassedPoint, ...]:
        return tuple(sorted(self._tables.passed.values(), key=lambda point: point.id))

    def pass_points(self, passed: Sequence[PassedPoint]) -> None:
        with self._writing() as tables:
            for point in passed:
                tables.passed.setdefault(point.id, point)

    # -- operations --------------------------------------------------------------------------------------------

    def begin_operation(
        self, operation_id: str, kind: str, vm: str | None, owner: str, request: Mapping[str, Any]
    ) -> Operation:
        now = texts.now()
        state = OperationState.RUNNING
        operation = Operation(operation_id, kind, vm, owner, state, started=now, updated=now, request=dict(request))
        with self._writing() as tables:
            if operation_id in tables.operations:
                raise Contradiction(f"there is an operation {operation_id} already")
            tables.operations[operation_id] = replace(operation, request=as_kept(request))
        self._begun[operation_id] = (now, time.monotonic())
        return operation

    def operation(self, operation_id: str) -> Operation:
        found = self._tables.operations.get(operation_id)
        if found is None:
            raise CatalogError(f"There is no operation {operation_id}")
        return found

    def operations(self) -> tuple[Operation, ...]:
        by_id = sorted(self._tables.operations.values(), key=lambda operation: operation.id)
        return tuple(sorted(by_id, key=lambda operation: operation.started, reverse=True))

    def unfinished_operations(self) -> tuple[Operation, ...]:
        mine = [operation for operation in self._tables.operations.values() if operation.state not in FINISHED]
        return tuple(sorted(mine, key=lambda operation: (operation.started, operation.id)))

    def move_operation(
        self, operation_id: str, owner: str, to: OperationState, error: Mapping[str, Any] | None = None
    ) -> Operation:
        begun = self._begun.get(operation_id)
        now = texts.now() if begun is None else texts.after(begun[0], time.monotonic() - begun[1])
        with self._writing() as tables:
            known = self.operation(operation_id)
            if known.owner != owner or to not in TRANSITIONS[known.state]:
                raise CatalogError(
                    f"Operation {operation_id} cannot become {to}: it is {known.state} and belongs to {known.owner}",
                    vm=known.vm,
                )
            moved = replace(known, state=to, updated=now)
            if to in FINISHED:
                moved = replace(moved, finished=now)
            if error is not None:
                moved = replace(moved, error=as_kept(error))
            tables.operations[operation_id] = moved
            return moved

    def take_over_operation(self, operation_id: str, from_owner: str, to_owner: str) -> bool:
        with self._writing() as tables:
            known = tables.operations.get(operation_id)
            if known is None or known.owner != from_owner or known.state in FINISHED:
                return False
            tables.operations[operation_id] = replace(known, owner=to_owner, updated=texts.now())
            return True

    def report_progress(self, operation_id: str, stage: str, done_bytes: int, total_bytes: int) -> bool:
        with self._writing() as tables:
            known = tables.operations.get(operation_id)
            if known is None:
                return False
            told = replace(known, stage=stage, done_bytes=done_bytes, total_bytes=total_bytes, updated=texts.now())
            tables.operations[operation_id] = told
            return known.cancel

    def request_cancel(self, operation_id: str) -> bool:
        with self._writing() as tables:
            known = tables.operations.get(operation_id)
            if known is None or known.state in FINISHED:
                return False
            tables.operations[operation_id] = replace(known, cancel=True, updated=texts.now())
            return True

    def cancel_requested(self, operation_id: str) -> bool:
        known = self._tables.operations.get(operation_id)
        return known is not None and known.cancel


def _vm(row: VmRow) -> CatalogVm:
    before_first = row.current_point == BEFORE_FIRST
    current = None if before_first else row.current_point
    return CatalogVm(
        row.uuid, row.name, row.host_uuid, row.seen_at, row.adopted, current, before_first, row.forgotten_until
    )
