"""What the catalogue in memory holds, and the rules of its rows. Values only: whoever changes them works on a copy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, fields, replace
from typing import Any, Final

from vmkeep.catalog import texts
from vmkeep.catalog.naming import Candidate
from vmkeep.catalog.operations import Operation
from vmkeep.catalog.records import (
    HIGHEST_GENERATION,
    Adopted,
    CatalogDeletion,
    CatalogPin,
    CatalogPoint,
    CatalogSnapshot,
    CatalogState,
    FoundPin,
    KnownHostKey,
    KnownRepository,
    PassedPoint,
    PointProtection,
    PointRemoval,
    Policy,
    StateAlert,
    StateFile,
    Trust,
    trust_of,
)
from vmkeep.custody.leases import Lease
from vmkeep.custody.states import Because
from vmkeep.custody.tombstones import Tombstone
from vmkeep.errors import CatalogError
from vmkeep.identity.hosts import HostEvent, HostIdentity
from vmkeep.planning.order import Made, places
from vmkeep.values import dataclass

BEFORE_FIRST: Final = ""
_GREATEST_SEQUENCE: Final = (1 << 63) - 1
Pin = tuple[str, str, str]
"""A state version, "point", "snapshot" or "pin", and the id of what holds it."""
Held = tuple[CatalogPoint, Sequence[CatalogState]]


@dataclass(frozen=True, slots=True)
class VmRow:
    """A VM. ``current_point`` is empty for one that is as before its first point; ``sequence`` was seen at most."""

    uuid: str
    name: str
    host_uuid: str | None
    seen_at: str
    adopted: bool
    current_point: str | None = None
    sequence: int = 0
    forgotten_until: str | None = None


@dataclasses.dataclass(slots=True)
class Tables:
    """Everything, by its key. ``places`` orders the points of a VM; ``numbers`` the snapshots of one."""

    repositories: dict[str, KnownRepository] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    vms: dict[str, VmRow] = field(default_factory=dict)
    points: dict[str, CatalogPoint] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    states: dict[str, CatalogState] = field(default_factory=dict)
    placed: dict[tuple[str, str], tuple[str, int]] = field(default_factory=dict)
    pins: dict[Pin, None] = field(default_factory=dict)
    snapshots: dict[str, CatalogSnapshot] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    keys: dict[str, KnownHostKey] = field(default_factory=dict)
    passed: dict[str, PassedPoint] = field(default_factory=dict)
    pin_objects: dict[str, FoundPin] = field(default_factory=dict)
    passed_pins: dict[str, str] = field(default_factory=dict)
    files: dict[tuple[str, str, str], StateFile] = field(default_factory=dict)
    leases: dict[str, Lease] = field(default_factory=dict)
    identities: dict[str, HostIdentity] = field(default_factory=dict)
    events: dict[tuple[str, int], HostEvent] = field(default_factory=dict)
    alerts: dict[tuple[str, str], StateAlert] = field(default_factory=dict)
    tombstones: dict[str, Tombstone] = field(default_factory=dict)
    deletions: dict[str, CatalogDeletion] = field(default_factory=dict)
    removals: dict[str, PointRemoval] = field(default_factory=dict)
    protections: dict[str, PointProtection] = field(default_factory=dict)
    harmed: dict[str, str] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    operations: dict[str, Operation] = field(default_factory=dict)

    def copied(self) -> Tables:
        """Return tables of their own with the same rows, which are never changed."""
        return Tables(**{each.name: dict(getattr(self, each.name)) for each in fields(self)})

    def require_fit(self, before: Tables) -> None:
        """Raise InvalidRequest where a row that was not there before has what no database holds."""
        for each in fields(self):
            rows, known = getattr(self, each.name), getattr(before, each.name)
            for key, row in rows.items():
                if key not in known or known[key] is not row:
                    _require_fit(key)
                    _require_fit(row)

    # -- VMs ---------------------------------------------------------------------------------------------------

    def see_vm(self, uuid: str, name: str, host_uuid: str | None, *, adopted: bool) -> bool:
        """Record that a VM was seen, or (adopted) heard of; return True when it is new."""
        if host_uuid is not None and host_uuid not in self.hosts:
            raise Contradiction(f"no host {host_uuid}")
        known = self.vms.get(uuid)
        if known is None:
            self.vms[uuid] = VmRow(uuid, name, host_uuid, texts.now(), adopted)
            return True
        if not adopted:
            host = host_uuid or known.host_uuid
            seen = replace(known, name=name, host_uuid=host, seen_at=texts.now(), adopted=False)
            self.vms[uuid] = replace(seen, forgotten_until=None)
        return False

    def set_current_point(self, uuid: str, point_id: str | None) -> None:
        if uuid in self.vms:
            self.vms[uuid] = replace(self.vms[uuid], current_point=point_id)

    def next_sequence(self, uuid: str) -> int:
        known = self.vms.get(uuid)
        return min((0 if known is None else known.sequence) + 1, _GREATEST_SEQUENCE)

    def raise_sequence(self, uuid: str, number: int) -> None:
        self.vms[uuid] = replace(self.vms[uuid], sequence=max(self.vms[uuid].sequence, number))

    def uuids_named(self, text: str) -> tuple[str, ...]:
        """Return the UUIDs of the VMs that a person means: by UUID, by present name, else by a name a point has."""
        texts.require_fit(text)
        if text.lower() in self.vms:
            return (text.lower(),)
        present = {vm.uuid for vm in self.vms.values() if vm.name == text}
        former = {point.vm_uuid for point in self.points.values() if point.vm_name == text}
        return tuple(sorted(present or former))

    # -- points ------------------------------------------------------------------------------------------------

    def get(self, point_id: str) -> CatalogPoint | None:
        texts.require_fit(point_id)
        point = self.points.get(point_id)
        return None if point is None else self.judged(point)

    def judged(self, point: CatalogPoint) -> CatalogPoint:
        """Return a point with what is thought of its key now."""
        key = self.keys.get(point.signed_by or "")
        trust = trust_of(point.signed_by, None if key is None else key.trust)
        return replace(point, trust=trust, installation=None if key is None else key.installation)

    def add_point(self, point: CatalogPoint) -> None:
        kept = replace(point, labels=as_kept(point.labels), document=as_kept(point.document))
        self.points[point.id] = kept
        self.places[point.id] = 0

    def put_in_order(self, vm_uuid: str) -> None:
        """Give each point of a VM its place."""
        mine = [point for point in self.points.values() if point.vm_uuid == vm_uuid]
        found = places(Made(point.id, point.parent, point.created, point.sequence) for point in mine)
        self.places |= {point_id: place for place, point_id in enumerate(sorted(found, key=found.__getitem__), 1)}

    def put_last(self, point: CatalogPoint) -> None:
        """Give one point that was just added its place; it is the last one when its number is the greatest."""
        others = [other for other in self.points.values() if other.vm_uuid == point.vm_uuid and other.id != point.id]
        greatest = max((other.sequence for other in others if other.sequence is not None), default=None)
        if point.sequence is None or (greatest is not None and point.sequence <= greatest):
            self.put_in_order(point.vm_uuid)
        else:
            self.places[point.id] = max((self.places[other.id] for other in others), default=0) + 1

    def newest_first(self, vm_uuid: str) -> list[CatalogPoint]:
        mine = (self.judged(point) for point in self.points.values() if point.vm_uuid == vm_uuid)
        return sorted(mine, key=lambda point: self.places[point.id], reverse=True)

    def oldest_first(self, uuids: Iterable[str] | None) -> list[CatalogPoint]:
        """Return points, those of several VMs by clock, as far as none comes before an earlier one of its VM."""
        found: list[tuple[str, str, int, CatalogPoint]] = []
        for uuid in self.vms if uuids is None else uuids:
            clock = ""
            for point in reversed(self.newest_first(uuid)):
                clock = max(clock, point.created)
                found.append((clock, uuid, self.places[point.id], point))
        return [point for _, _, _, point in sorted(found, key=lambda row: row[:3])]

    def made_after(self, point: CatalogPoint) -> list[CatalogPoint]:
        """Return the points of a VM that were made after one of them, the last first."""
        place = self.places.get(point.id)
        later = self.newest_first(point.vm_uuid)
        return [other for other in later if place is not None and self.places[other.id] > place]

    def beginning_with(self, text: str, most: int) -> list[CatalogPoint]:
        return [point for point in self.oldest_first(None) if point.id.startswith(text)][:most]

    def candidates(self, vm_uuid: str) -> list[Candidate]:
        found = self.newest_first(vm_uuid)
        return [Candidate(each.id, each.created, each.is_safety, each.signed_by, each.trust) for each in found]

    # -- state versions ----------------------------------------------------------------------------------------

    def newest_state(self, vm_uuid: str, kind: str) -> CatalogState | None:
        mine = [state for state in self.states.values() if (state.vm_uuid, state.kind) == (vm_uuid, kind)]
        return max((state for state in mine if not state.conflict), key=lambda state: state.generation, default=None)

    def accept(self, state: CatalogState) -> None:
        """Accept a state version, or find that exactly it was accepted already. Raises CatalogError."""
        if state.is_known_as(self.states.get(state.id)):
            return
        lease = self.leases.get(state.vm_uuid)
        if lease is not None and not lease.allows(state.epoch):
            self._add_state(replace(state, conflict=True))
            return
        state.refuse_late(self.newest_state(state.vm_uuid, state.kind))
        self._add_state(state)

    def keep_late(self, state: CatalogState) -> None:
        """Add one that never becomes the current one, unless it is known. Raises CatalogError."""
        if not state.is_known_as(self.states.get(state.id)):
            self._add_state(replace(state, conflict=True))

    def adopt_state(self, state: CatalogState, holder: str, reason: str = "point") -> str | None:
        """Add one of whatever generation; return the id of the version that claimed it first, where there is one."""
        made_here = self._is_own(reason, holder)
        if state.is_known_as(self.states.get(state.id)):
            if made_here:
                self.states[state.id] = replace(self.states[state.id], made_here=True)
            return None
        claimed = (state.vm_uuid, state.kind, state.generation)
        first = next(
            (
                known.id
                for known in self.states.values()
                if (known.vm_uuid, known.kind, known.generation) == claimed and not known.conflict
            ),
            None,
        )
        if first is not None and self._gives_way(first, to=(reason, holder)):
            self.states[first] = replace(self.states[first], conflict=True)
            first = None
        late = first is not None or state.generation > HIGHEST_GENERATION
        self._add_state(replace(state, conflict=late, made_here=made_here))
        return first

    def _gives_way(self, version_id: str, *, to: tuple[str, str]) -> bool:
        holders = [holder for version, *holder in self.pins if version == version_id]
        if any(self._is_vouched_for(reason, holder) for reason, holder in holders):
            return False
        return self._is_vouched_for(*to)

    def _is_vouched_for(self, reason: str, holder: str) -> bool:
        if reason == "point":
            point = self.get(holder)
            return point is not None and point.is_vouched_for
        key = self.keys.get(self.pin_objects[holder].pin.signed_by or "") if reason == "pin" else None
        return reason == "snapshot" or (key is not None and key.trust.is_proved)

    def _is_own(self, reason: str, holder: str) -> bool:
        if reason == "point":
            point = self.get(holder)
            return point is not None and point.is_own
        key = self.keys.get(self.pin_objects[holder].pin.signed_by or "")
        return key is not None and key.trust is Trust.OWN

    def place_state(self, vm_uuid: str, kind: str, sha256: str | None) -> None:
        """Record what was put in place of a VM on purpose; None forgets it."""
        if sha256 is None:
            self.placed.pop((vm_uuid, kind), None)
            return
        if vm_uuid not in self.vms:
            raise Contradiction(f"no VM {vm_uuid}")
        self.placed[vm_uuid, kind] = (sha256, self._newest_generation(vm_uuid, kind))

    def placed_states(self, vm_uuid: str) -> dict[str, str]:
        """Return what still holds of it, by kind."""
        return {
            kind: sha256
            for (of, kind), (sha256, generation) in sorted(self.placed.items())
            if of == vm_uuid and not self._is_followed(of, kind, generation)
        }

    def _is_followed(self, vm_uuid: str, kind: str, generation: int) -> bool:
        """Return whether a newer version was accepted since: somebody vouches for it, and it repeats none unawares."""
        mine = [state for state in self.states.values() if (state.vm_uuid, state.kind) == (vm_uuid, kind)]
        counting = [state for state in mine if not state.conflict and self._may_count(state.id)]
        first = {state.sha256: state.generation for state in sorted(counting, key=lambda state: -state.generation)}
        return any(
            state.generation > generation
            and (state.because != Because.CHANGED or state.made_here or first[state.sha256] == state.generation)
            for state in counting
        )

    def _may_count(self, version_id: str) -> bool:
        holders = [holder for version, *holder in self.pins if version == version_id]
        return not holders or any(self._is_vouched_for(reason, holder) for reason, holder in holders)

    def _newest_generation(self, vm_uuid: str, kind: str) -> int:
        newest = self.newest_state(vm_uuid, kind)
        return 0 if newest is None else newest.generation

    def _add_state(self, state: CatalogState) -> None:
        if state.vm_uuid not in self.vms or state.generation <= 0:
            raise Contradiction(f"the state version {state.id}")
        self.states[state.id] = replace(state, epoch=None)

    def pinned(self, version_id: str) -> tuple[str, ...]:
        return tuple(sorted(holder for version, _, holder in self.pins if version == version_id))

    def disown(self, versions: Iterable[str]) -> None:
        """Let versions never count as the newest that came with what nobody vouches for, unless they are held."""
        for version in versions:
            if not self.pinned(version):
                self.states[version] = replace(self.states[version], conflict=True)

    def unpin(self, holder: str, reason: str) -> None:
        self.pins = {pin: None for pin in self.pins if pin[1:] != (reason, holder)}

    # -- snapshots ---------------------------------------------------------------------------------------------

    def snapshot_named(self, vm_uuid: str, name: str) -> CatalogSnapshot | None:
        mine = (each for each in self.snapshots.values() if (each.vm_uuid, each.name) == (vm_uuid, name))
        return next((self.with_states(snapshot) for snapshot in mine), None)

    def with_states(self, snapshot: CatalogSnapshot) -> CatalogSnapshot:
        """Return a snapshot with the versions that it keeps, by kind."""
        held = (self.states[version] for version, *holder in self.pins if holder == ["snapshot", snapshot.id])
        return replace(snapshot, states=tuple(sorted(held, key=lambda state: (state.kind, state.generation))))

    def remove_snapshot(self, snapshot_id: str) -> bool:
        self.unpin(snapshot_id, "snapshot")
        for each in list(self.pin_objects.values()):
            if each.pin.snapshot_id == snapshot_id:
                self.pin_objects[each.pin.id] = replace(each, pin=replace(each.pin, snapshot_name=None))
        self.numbers.pop(snapshot_id, None)
        return self.snapshots.pop(snapshot_id, None) is not None

    # -- pins of the repository --------------------------------------------------------------------------------

    def adopt_pins(self, found: Sequence[FoundPin]) -> tuple[str, ...]:
        """Add pins that are not known, with the versions that they name."""
        conflicts = []
        for each in sorted(found, key=lambda each: (each.pin.created, each.pin.id)):
            pin = each.pin
            self.passed_pins.pop(pin.id, None)
            if pin.id in self.pin_objects:
                continue
            self.see_vm(pin.vm_uuid, pin.vm_name, None, adopted=True)
            snapshot = each.snapshot
            of_snapshot = (None, None) if snapshot is None else (snapshot.id, snapshot.name)
            kept = replace(pin, snapshot_id=of_snapshot[0], snapshot_name=of_snapshot[1])
            self.pin_objects[pin.id] = replace(each, pin=kept)
            for state in each.states:
                try:
                    first = self.adopt_state(state, pin.id, "pin")
                except CatalogError as error:
                    conflicts.append(f"pin {pin.id}: {error.message}")
                    continue
                self.pins[state.id, "pin", pin.id] = None
                if first is not None:
                    conflicts.append(f"pin {pin.id}: generation {state.generation} was claimed first")
        self.recover_snapshots({each.pin.vm_uuid for each in found})
        return tuple(conflicts)

    def recover_snapshots(self, vm_uuids: Iterable[str]) -> None:
        """Record what is kept with snapshots that is known from pins alone, as far as those are proved."""
        for vm_uuid in sorted(vm_uuids):
            newest = {
                found.snapshot.id: (pin, found.snapshot)
                for pin, found in self.pins_of_vm(vm_uuid)
                if found.snapshot is not None and pin.snapshot_name is not None and pin.trust.is_proved
            }
            for pin, snapshot in newest.values():
                if snapshot.id in self.snapshots or self.snapshot_named(vm_uuid, snapshot.name) is not None:
                    continue
                number = self.next_sequence(vm_uuid)
                self.snapshots[snapshot.id] = replace(snapshot, created=pin.created, states=())
                self.numbers[snapshot.id] = number
                self.raise_sequence(vm_uuid, number)
                for version, *holder in tuple(self.pins):
                    if holder == ["pin", pin.id]:
                        self.pins[version, "snapshot", snapshot.id] = None

    def pins_of_vm(self, vm_uuid: str) -> list[tuple[CatalogPin, FoundPin]]:
        """Return the pins of a VM with what is thought of their keys now, the oldest first."""
        mine = [each for each in self.pin_objects.values() if each.pin.vm_uuid == vm_uuid]
        found = []
        for each in sorted(mine, key=lambda each: (each.pin.created, each.pin.id)):
            key = self.keys.get(each.pin.signed_by or "")
            versions = tuple(sorted(pin[0] for pin in self.pins if pin[1:] == ("pin", each.pin.id)))
            trust = trust_of(each.pin.signed_by, None if key is None else key.trust)
            found.append((replace(each.pin, versions=versions, trust=trust), each))
        return found

    def forget_pin(self, pin_id: str) -> bool:
        known = self.pin_objects.pop(pin_id, None)
        held = [version for version, *holder in self.pins if holder == ["pin", pin_id]]
        self.unpin(pin_id, "pin")
        key = None if known is None else self.keys.get(known.pin.signed_by or "")
        if known is not None and not trust_of(known.pin.signed_by, None if key is None else key.trust).is_proved:
            self.disown(held)
        return known is not None

    # -- points of others --------------------------------------------------------------------------------------

    def adopt(self, found: Sequence[Held]) -> Adopted:
        """Add points and the state versions they hold. What is known stays as it is."""
        new_vms: set[str] = set()
        new_points: set[str] = set()
        for point, _ in found:
            if self.see_vm(point.vm_uuid, point.vm_name, None, adopted=True):
                new_vms.add(point.vm_uuid)
            if point.id not in self.points:
                self.add_point(point)
                new_points.add(point.id)
            self.raise_sequence(point.vm_uuid, point.sequence or 0)
        self._place_adopted(dict.fromkeys(point.vm_uuid for point, _ in found), new_vms, new_points)
        states, conflicts = self._adopt_states(found)
        return Adopted(len(new_points), len(new_vms), states, conflicts)

    def _place_adopted(self, vms: Iterable[str], new_vms: set[str], new_points: set[str]) -> None:
        self.passed = {key: row for key, row in self.passed.items() if key not in self.points}
        for uuid in vms:
            if new_points:
                self.put_in_order(uuid)
            if uuid in new_vms:
                self.vms[uuid] = replace(self.vms[uuid], name=self.newest_first(uuid)[0].vm_name)
            else:
                self._lose_track(uuid, new_points)

    def _adopt_states(self, found: Sequence[Held]) -> tuple[int, tuple[str, ...]]:
        states, conflicts = 0, []
        # Of two versions that claim one generation, the one of the point that was made first is the current one.
        for point, held in sorted(found, key=lambda pair: (pair[0].vm_uuid, self.places[pair[0].id])):
            for state in held:
                try:
                    first = self.adopt_state(state, point.id)
                except CatalogError as error:
                    conflicts.append(f"point {point.id}: {error.message}")
                    continue
                states += 1
                self.pins[state.id, "point", point.id] = None
                if first is not None:
                    holders = ", ".join(self.pinned(first))
                    conflicts.append(f"point {point.id}: generation {state.generation} was claimed first by {holders}")
        return states, tuple(conflicts)

    def _lose_track(self, vm_uuid: str, new: set[str]) -> None:
        """Note that nobody knows where a VM is when new points of our own go on, on one host, from where it was."""
        current = self.points.get(self.vms[vm_uuid].current_point or "")
        if current is None or current.vm_uuid != vm_uuid:
            return
        line = {current.id}
        for point in reversed(self.newest_first(vm_uuid)):
            if point.parent in line and point.host == current.host and point.is_own:
                line.add(point.id)
        if line & new:
            self.set_current_point(vm_uuid, None)


def _require_fit(value: Any) -> None:
    if isinstance(value, Mapping):
        texts.require_fit(texts.dump(value))
    elif isinstance(value, tuple):
        for one in value:
            _require_fit(one)
    elif dataclasses.is_dataclass(value):
        for each in fields(value):
            _require_fit(getattr(value, each.name))
    else:
        texts.require_fit(value)


def as_kept(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping as it comes out of a column."""
    return texts.load(texts.dump(value))


def checked(key: KnownHostKey) -> KnownHostKey:
    if key.trust is Trust.UNSIGNED:
        raise Contradiction(f"a key cannot be {key.trust}")
    return key


class Contradiction(Exception):
    """A row names another that is not there, or says what none may: what a database's constraints refuse."""
