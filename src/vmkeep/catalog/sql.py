"""The catalogue in SQL. Each verb is one transaction; the queries stand in the modules beside this one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import Connection, insert, select, update

from vmkeep.catalog import (
    adoption,
    alert_queries,
    deletion_queries,
    file_queries,
    host_queries,
    models,
    operation_queries,
    pin_queries,
    point_queries,
    snapshot_queries,
    state_queries,
    texts,
    vm_queries,
)
from vmkeep.catalog.catalog import Catalog
from vmkeep.catalog.database import Database, SqliteFile
from vmkeep.catalog.operations import Operation, OperationState
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
)
from vmkeep.catalog.times import end_of_named_time
from vmkeep.errors import CatalogError, VmkeepError, VmNotFound

if TYPE_CHECKING:
    from vmkeep.custody.leases import Lease
    from vmkeep.custody.tombstones import Tombstone
    from vmkeep.identity.hosts import HostEvent, HostIdentity


class SqlCatalog(Catalog):
    """What an installation knows, in a file of SQLite or a database of PostgreSQL. Safe to use from several processes
    too.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # When the operations of this process began, by the clock and by the monotonic one.
        self._begun: dict[str, tuple[str, float]] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the catalogue file, making it or bringing its schema up to date if need be."""
        return cls(SqliteFile.open(path))

    @classmethod
    def connect(cls, url: str) -> Self:
        """Open the catalogue in a database of PostgreSQL, making its tables or bringing them up to date if need be.

        ``url`` and what is raised: see ``PostgresDatabase.connect``.
        """
        from vmkeep.catalog.postgres import PostgresDatabase  # who keeps a file needs no driver

        return cls(PostgresDatabase.connect(url))

    @classmethod
    def open_copy(cls, path: Path, *, of: Path) -> Self:
        """Open a copy of the catalogue ``of``, which errors name. What is written goes into the copy."""
        return cls(SqliteFile.open(path, copy_of=of))

    def refuse_writing(self, refusal: VmkeepError) -> None:
        self._database.refusal = refusal

    def allow_writing(self) -> None:
        self._database.refusal = None

    @contextlib.contextmanager
    def copy_written(self) -> Iterator[None]:
        refusal, self._database.refusal = self._database.refusal, None
        try:
            yield
        finally:
            self._database.refusal = refusal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def faults(self) -> tuple[str, ...]:
        return self._database.faults()

    # -- the repository this catalogue belongs to --------------------------------------------------------------

    def repository(self) -> KnownRepository | None:
        table = models.repositories
        with self._database.reading() as connection:
            row = connection.execute(select(table).order_by(table.c.since.desc(), table.c.id).limit(1)).first()
        if row is None:
            return None
        keyring = None if row.keyring is None else KnownKeyring.from_json(texts.load(row.keyring))
        return KnownRepository(row.id, row.location, row.since, keyring)

    def use_repository(self, repository_id: str, location: str) -> None:
        table = models.repositories
        row = {"location": location, "since": texts.now()}
        with self._database.writing() as connection:
            if connection.execute(update(table).where(table.c.id == repository_id).values(row)).rowcount == 0:
                connection.execute(insert(table).values(id=repository_id, **row))

    def see_keyring(self, repository_id: str, keyring: KnownKeyring) -> None:
        table = models.repositories
        with self._database.writing() as connection:
            text = texts.dump(keyring.as_json())
            connection.execute(update(table).where(table.c.id == repository_id).values(keyring=text))

    # -- hosts that sign points ----------------------------------------------------------------------------------

    def see_host_key(self, key: KnownHostKey) -> bool:
        with self._database.reading() as connection:
            if key.is_known_as(host_queries.by_fingerprint(connection, key.fingerprint)):
                return False
        with self._database.writing() as connection:
            return host_queries.see(connection, key)

    def host_keys(self) -> tuple[KnownHostKey, ...]:
        with self._database.reading() as connection:
            return host_queries.all_keys(connection)

    def host_key(self, text: str) -> KnownHostKey:
        with self._database.reading() as connection:
            return host_queries.named(connection, text)

    def trust_host(self, text: str, trust: Trust) -> KnownHostKey:
        with self._database.writing() as connection:
            key = host_queries.named(connection, text).trusted_as(trust)
            host_queries.set_trust(connection, key.fingerprint, key.trust)
            host_queries.note_copy(connection, key.fingerprint, key.copied_to)
            pin_queries.recover_snapshots(connection, (vm.uuid for vm in vm_queries.all_vms(connection)))
            return key

    def retire_own_key(self, fingerprint: str) -> None:
        with self._database.writing() as connection:
            host_queries.set_trust(connection, fingerprint, Trust.TRUSTED)
            host_queries.note_copy(connection, fingerprint, None)

    def note_copy(self, fingerprint: str, host: str) -> None:
        with self._database.writing() as connection:
            host_queries.note_copy(connection, fingerprint, host)

    def points_of_host_keys(self) -> dict[str, int]:
        with self._database.reading() as connection:
            return host_queries.points_of_each(connection)

    def is_signed_by_trusted_host(self, point_id: str) -> bool:
        with self._database.reading() as connection:
            point = point_queries.get(connection, point_id)
        return point is not None and point.trust.is_proved

    def makers(self) -> dict[str, dict[str, str | None]]:
        with self._database.reading() as connection:
            return point_queries.makers(connection)

    # -- VMs ---------------------------------------------------------------------------------------------------

    def see_host(self, uuid: str, name: str) -> None:
        with self._database.writing(uuid) as connection:
            vm_queries.see_host(connection, uuid, name)

    def see_vm(self, uuid: str, name: str, host_uuid: str | None = None) -> None:
        with self._database.writing(uuid.lower()) as connection:
            vm_queries.see_vm(connection, uuid.lower(), name, host_uuid, adopted=False)

    def return_to(self, uuid: str, point_id: str | None) -> None:
        with self._database.writing(uuid.lower()) as connection:
            vm_queries.set_current_point(connection, uuid.lower(), point_id or vm_queries.BEFORE_FIRST)

    def lose_track(self, uuid: str) -> None:
        with self._database.writing(uuid.lower()) as connection:
            vm_queries.set_current_point(connection, uuid.lower(), None)

    def forget_vm(self, uuid: str, until: str) -> bool:
        with self._database.writing() as connection:
            return vm_queries.forget(connection, uuid.lower(), until)

    def vm(self, uuid: str) -> CatalogVm | None:
        with self._database.reading() as connection:
            return vm_queries.vm(connection, uuid.lower())

    def vms(self) -> tuple[CatalogVm, ...]:
        with self._database.reading() as connection:
            return vm_queries.all_vms(connection)

    def vms_named(self, text: str) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return vm_queries.uuids_named(connection, text)

    # -- points ------------------------------------------------------------------------------------------------

    def record_point(self, point: CatalogPoint, states: Sequence[CatalogState] = ()) -> None:
        with self._database.writing(point.vm_uuid) as connection:
            known = point_queries.get(connection, point.id)
            if known is not None and not point.repeats(known):
                raise CatalogError(f"Point {point.id} is recorded already, with other content", vm=point.vm_name)
            vm_queries.see_vm(connection, point.vm_uuid, point.vm_name, None, adopted=False)
            for state in states:
                state_queries.accept(connection, state)
                state_queries.pin(connection, state.id, point.id)
            if known is None:
                point_queries.add(connection, point)
                point_queries.put_last(connection, point)
                vm_queries.raise_sequence(connection, point.vm_uuid, point.sequence or 0)
                vm_queries.set_current_point(connection, point.vm_uuid, point.id)

    def points(self, vm: str | None = None) -> tuple[CatalogPoint, ...]:
        with self._database.reading() as connection:
            return point_queries.oldest_first(connection, self._uuids(connection, vm))

    def summaries(self, vm: str | None = None) -> tuple[dict[str, Any], ...]:
        with self._database.reading() as connection:
            return point_queries.summaries(connection, self._uuids(connection, vm))

    def point_ids(self) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return point_queries.all_ids(connection)

    def points_of_vm(self, uuid: str) -> tuple[CatalogPoint, ...]:
        with self._database.reading() as connection:
            return point_queries.newest_first(connection, (uuid.lower(),))

    def outlines_of_vm(self, uuid: str) -> tuple[PointOutline, ...]:
        with self._database.reading() as connection:
            return point_queries.outlines(connection, uuid.lower())

    def next_sequence(self, vm_uuid: str) -> int:
        with self._database.reading() as connection:
            return vm_queries.next_sequence(connection, vm_uuid.lower())

    def find_point(self, text: str) -> CatalogPoint:
        from vmkeep.catalog.naming import find  # a point needs no name

        with self._database.reading() as connection:
            return find(point_queries.Kept(connection), text)

    def against_the_clock(self, text: str, found: CatalogPoint) -> tuple[str, ...]:
        until = end_of_named_time(text.rpartition("@")[2]) if "@" in text else None
        if until is None:
            return ()
        with self._database.reading() as connection:
            return point_queries.made_earlier_with_later_clocks(connection, found, until)

    def newer_distrusted(self, point: CatalogPoint) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return point_queries.newer_distrusted(connection, point)

    def point(self, point_id: str) -> CatalogPoint | None:
        with self._database.reading() as connection:
            return point_queries.get(connection, point_id)

    def digest(self, point_id: str) -> str | None:
        with self._database.reading() as connection:
            return point_queries.digest(connection, point_id)

    def note_digest(self, point_id: str, digest: str) -> None:
        with self._database.writing() as connection:
            point_queries.set_digest(connection, point_id, digest)

    def newest_made(self, vm_uuid: str) -> CatalogPoint | None:
        with self._database.reading() as connection:
            return point_queries.newest_made(connection, vm_uuid.lower())

    def newer_safety_points(self, point: CatalogPoint) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return point_queries.newer_safety_points(connection, point)

    def forget_point(self, point_id: str) -> bool:
        with self._database.writing() as connection:
            return self._forget_point(connection, point_id)

    @staticmethod
    def _forget_point(connection: Connection, point_id: str) -> bool:
        point = point_queries.get(connection, point_id)
        held = state_queries.held(connection, point_id, "point")
        state_queries.unpin(connection, point_id)
        if point is not None and not point.is_vouched_for:
            state_queries.disown(connection, held)
        return point_queries.remove(connection, point_id)

    def newest_state(self, vm_uuid: str, kind: str) -> CatalogState | None:
        with self._database.reading() as connection:
            return state_queries.newest_state(connection, vm_uuid.lower(), kind)

    def states_of_vm(self, vm_uuid: str) -> tuple[CatalogState, ...]:
        with self._database.reading() as connection:
            return state_queries.of_vm(connection, vm_uuid.lower())

    def accept_states(self, states: Sequence[CatalogState]) -> None:
        with self._database.writing(*{state.vm_uuid for state in states}) as connection:
            for state in states:
                state_queries.accept(connection, state)

    def keep_late(self, states: Sequence[CatalogState]) -> None:
        with self._database.writing() as connection:
            for state in states:
                state_queries.keep_late(connection, state)

    def place_states(self, vm_uuid: str, states: Mapping[str, str | None]) -> None:
        with self._database.writing(vm_uuid.lower()) as connection:
            state_queries.place(connection, vm_uuid.lower(), states)

    def placed_states(self, vm_uuid: str) -> dict[str, str]:
        with self._database.reading() as connection:
            return state_queries.placed(connection, vm_uuid.lower())

    def pins(self, version_id: str) -> tuple[str, ...]:
        with self._database.reading() as connection:
            return state_queries.pinned(connection, version_id)

    def holders(self, vm_uuid: str) -> dict[str, tuple[str, ...]]:
        with self._database.reading() as connection:
            return state_queries.holders(connection, vm_uuid.lower())

    # -- pins of the repository ----------------------------------------------------------------------------------

    def adopt_pins(self, found: Sequence[FoundPin]) -> tuple[str, ...]:
        with self._database.writing() as connection:
            return pin_queries.adopt(connection, found)

    def pin_ids(self) -> frozenset[str]:
        with self._database.reading() as connection:
            return pin_queries.all_ids(connection)

    def pins_of_vm(self, vm_uuid: str) -> tuple[CatalogPin, ...]:
        with self._database.reading() as connection:
            return pin_queries.of_vm(connection, vm_uuid.lower())

    def forget_pin(self, pin_id: str) -> bool:
        with self._database.writing() as connection:
            return pin_queries.forget(connection, pin_id)

    def passed_pins(self) -> dict[str, str]:
        with self._database.reading() as connection:
            return pin_queries.passed(connection)

    def pass_pins(self, passed: Mapping[str, str]) -> None:
        with self._database.writing() as connection:
            pin_queries.pass_by(connection, dict(passed))

    # -- where state files lie -----------------------------------------------------------------------------------

    def note_state_files(self, host_uuid: str, found: Mapping[str, Sequence[StateFile]]) -> None:
        with self._database.writing() as connection:
            for vm_uuid, files in found.items():
                if vm_queries.vm(connection, vm_uuid.lower()) is not None:
                    file_queries.note(connection, vm_uuid.lower(), host_uuid, files)

    def state_files(self, vm_uuid: str) -> tuple[StateFile, ...]:
        with self._database.reading() as connection:
            return file_queries.of_vm(connection, vm_uuid.lower())

    def host_names(self) -> dict[str, str]:
        with self._database.reading() as connection:
            return vm_queries.host_names(connection)

    # -- what keeps state from being captured --------------------------------------------------------------------

    def note_alert(self, vm_uuid: str, code: str, message: str) -> None:
        with self._database.writing(vm_uuid.lower()) as connection:
            alert_queries.note(connection, vm_uuid.lower(), code, message)

    def clear_alerts(self, vm_uuid: str) -> bool:
        with self._database.writing(vm_uuid.lower()) as connection:
            return alert_queries.clear(connection, vm_uuid.lower())

    def alerts(self) -> tuple[StateAlert, ...]:
        with self._database.reading() as connection:
            return alert_queries.every(connection)

    # -- what was deleted on hosts, and what must still be -------------------------------------------------------

    def record_deletion(self, deletion: CatalogDeletion, tombstones: Sequence[Tombstone] = ()) -> None:
        with self._database.writing(deletion.vm_uuid) as connection:
            deletion_queries.add(connection, deletion)
            deletion_queries.add_tombstones(connection, tombstones)

    def withdraw_deletion(self, deletion_id: str, origin: str) -> None:
        with self._database.writing() as connection:
            deletion_queries.withdraw(connection, deletion_id)
            deletion_queries.withdraw_tombstones(connection, origin)

    def note_deletion_stored(self, deletion_id: str, signed_by: str | None) -> None:
        with self._database.writing() as connection:
            deletion_queries.note_stored(connection, deletion_id, signed_by)

    def deletions(self, vm_uuid: str | None = None) -> tuple[CatalogDeletion, ...]:
        with self._database.reading() as connection:
            return deletion_queries.every(connection, None if vm_uuid is None else vm_uuid.lower())

    def unstored_deletions(self) -> tuple[CatalogDeletion, ...]:
        with self._database.reading() as connection:
            return deletion_queries.unstored(connection)

    def add_tombstones(self, tombstones: Sequence[Tombstone]) -> None:
        with self._database.writing(*{each.vm_uuid for each in tombstones}) as connection:
            deletion_queries.add_tombstones(connection, tombstones)

    def tombstones(self, vm_uuid: str | None = None) -> tuple[Tombstone, ...]:
        with self._database.reading() as connection:
            return deletion_queries.all_tombstones(connection, None if vm_uuid is None else vm_uuid.lower())

    def open_tombstones(self) -> tuple[Tombstone, ...]:
        with self._database.reading() as connection:
            return deletion_queries.open_tombstones(connection)

    def move_tombstone(self, known: Tombstone, to: Tombstone, fact: CatalogDeletion | None = None) -> None:
        with self._database.writing(known.vm_uuid) as connection:
            deletion_queries.move_tombstone(connection, known, to)
            if fact is not None:
                deletion_queries.add(connection, fact)

    # -- which points are kept, and which are to go --------------------------------------------------------------
    # Most commands ask for none of it, so the queries are loaded by those that do.

    def hide_point(self, removal: PointRemoval) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing(*filter(None, [removal.vm_uuid])) as connection:
            mark_queries.put_removal(connection, removal)
            if removal.hides:
                self._forget_point(connection, removal.point_id)

    def is_anything_marked(self) -> bool:
        with self._database.reading() as connection:
            tables = (models.point_removals, models.point_protections)
            return any(connection.execute(select(each.c.point_id).limit(1)).first() is not None for each in tables)

    def end_removal(self, point_id: str) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            mark_queries.end_removal(connection, point_id)

    def removals(self, vm_uuid: str | None = None) -> tuple[PointRemoval, ...]:
        from vmkeep.catalog import mark_queries

        with self._database.reading() as connection:
            return mark_queries.removals(connection, None if vm_uuid is None else vm_uuid.lower())

    def protect_point(self, protection: PointProtection) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            mark_queries.put_protection(connection, protection)

    def end_protection(self, point_id: str) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            mark_queries.end_protection(connection, point_id)

    def protections(self) -> Mapping[str, PointProtection]:
        from vmkeep.catalog import mark_queries

        with self._database.reading() as connection:
            return mark_queries.protections(connection)

    def note_soundness(self, harmed: Collection[str], sound: Collection[str]) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            mark_queries.note_soundness(connection, harmed, sound)

    def harmed_points(self) -> Mapping[str, str]:
        from vmkeep.catalog import mark_queries

        with self._database.reading() as connection:
            return mark_queries.harmed_points(connection)

    def set_policy(self, policy: Policy) -> None:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            mark_queries.set_policy(connection, policy)

    def drop_policy(self, subject: str) -> bool:
        from vmkeep.catalog import mark_queries

        with self._database.writing() as connection:
            return mark_queries.drop_policy(connection, subject)

    def policies(self) -> Mapping[str, Policy]:
        from vmkeep.catalog import mark_queries

        with self._database.reading() as connection:
            return mark_queries.policies(connection)

    # -- which host may run a VM -------------------------------------------------------------------------------

    # Loaded by whoever asks: there are no leases before there are several hosts.

    def clock(self) -> str:
        from vmkeep.catalog import lease_queries

        with self._database.reading() as connection:
            return lease_queries.clock(connection)

    def lease(self, vm_uuid: str) -> Lease | None:
        from vmkeep.catalog import lease_queries

        with self._database.reading() as connection:
            return lease_queries.get(connection, vm_uuid.lower())

    def move_lease(self, known: Lease | None, to: Lease) -> None:
        from vmkeep.catalog import lease_queries

        with self._database.writing(to.vm_uuid) as connection:
            lease_queries.move(connection, known, to)

    # -- who the hosts of a fleet are ----------------------------------------------------------------------------

    def host_identities(self) -> tuple[HostIdentity, ...]:
        from vmkeep.catalog import identity_queries

        with self._database.reading() as connection:
            return identity_queries.all_listed(connection)

    def host_identity(self, host_id: str) -> HostIdentity | None:
        from vmkeep.catalog import identity_queries

        with self._database.reading() as connection:
            return identity_queries.get(connection, host_id)

    def invited_host(self, invite: str) -> HostIdentity | None:
        from vmkeep.catalog import identity_queries

        with self._database.reading() as connection:
            return identity_queries.invited(connection, invite)

    def move_host_identity(self, known: HostIdentity | None, to: HostIdentity, event: HostEvent) -> None:
        from vmkeep.catalog import identity_queries

        with self._database.writing(to.id) as connection:
            identity_queries.move(connection, known, to, event)

    def host_events(self, host_id: str) -> tuple[HostEvent, ...]:
        from vmkeep.catalog import identity_queries

        with self._database.reading() as connection:
            return identity_queries.events(connection, host_id)

    # -- snapshots ---------------------------------------------------------------------------------------------

    def record_snapshot(self, snapshot: CatalogSnapshot) -> None:
        with self._database.writing(snapshot.vm_uuid) as connection:
            known = snapshot_queries.get(connection, snapshot.vm_uuid, snapshot.name)
            if known is not None and known.id == snapshot.id:
                return
            if known is not None:
                snapshot_queries.remove(connection, known.id)
            for state in snapshot.states:
                state_queries.accept(connection, state)
                state_queries.pin(connection, state.id, snapshot.id, "snapshot")
            number = vm_queries.next_sequence(connection, snapshot.vm_uuid)
            snapshot_queries.add(connection, snapshot, number)
            vm_queries.raise_sequence(connection, snapshot.vm_uuid, number)

    def snapshot(self, vm_uuid: str, name: str) -> CatalogSnapshot | None:
        with self._database.reading() as connection:
            return snapshot_queries.get(connection, vm_uuid.lower(), name)

    def snapshot_by_id(self, snapshot_id: str) -> CatalogSnapshot | None:
        with self._database.reading() as connection:
            return snapshot_queries.by_id(connection, snapshot_id)

    def snapshots_of_vm(self, vm_uuid: str) -> tuple[CatalogSnapshot, ...]:
        with self._database.reading() as connection:
            return snapshot_queries.of_vm(connection, vm_uuid.lower())

    def rename_snapshot(self, vm_uuid: str, name: str, new_name: str) -> bool:
        with self._database.writing(vm_uuid.lower()) as connection:
            return snapshot_queries.rename(connection, vm_uuid.lower(), name, new_name)

    def forget_snapshot(self, snapshot_id: str) -> bool:
        with self._database.writing() as connection:
            return snapshot_queries.remove(connection, snapshot_id)

    # -- a repository taken over ---------------------------------------------------------------------------------

    def adopt(self, points: Sequence[tuple[CatalogPoint, Sequence[CatalogState]]]) -> Adopted:
        with self._database.writing() as connection:
            return adoption.adopt(connection, points)

    def passed_points(self) -> tuple[PassedPoint, ...]:
        with self._database.reading() as connection:
            return adoption.passed(connection)

    def pass_points(self, passed: Sequence[PassedPoint]) -> None:
        with self._database.writing() as connection:
            adoption.pass_by(connection, passed)

    # -- operations --------------------------------------------------------------------------------------------

    def begin_operation(
        self, operation_id: str, kind: str, vm: str | None, owner: str, request: Mapping[str, Any]
    ) -> Operation:
        now = texts.now()
        state = OperationState.RUNNING
        operation = Operation(operation_id, kind, vm, owner, state, started=now, updated=now, request=dict(request))
        with self._database.writing(operation_id) as connection:
            operation_queries.add(connection, operation)
        self._begun[operation_id] = (now, time.monotonic())
        return operation

    def operation(self, operation_id: str) -> Operation:
        with self._database.reading() as connection:
            return operation_queries.get(connection, operation_id)

    def operations(self) -> tuple[Operation, ...]:
        with self._database.reading() as connection:
            return operation_queries.newest_first(connection)

    def unfinished_operations(self) -> tuple[Operation, ...]:
        with self._database.reading() as connection:
            return operation_queries.unfinished(connection)

    def move_operation(
        self, operation_id: str, owner: str, to: OperationState, error: Mapping[str, Any] | None = None
    ) -> Operation:
        begun = self._begun.get(operation_id)
        now = texts.now() if begun is None else texts.after(begun[0], time.monotonic() - begun[1])
        with self._database.writing(operation_id) as connection:
            return operation_queries.move(connection, operation_id, owner, to, error, now)

    def take_over_operation(self, operation_id: str, from_owner: str, to_owner: str) -> bool:
        with self._database.writing(operation_id) as connection:
            return operation_queries.take_over(connection, operation_id, from_owner, to_owner)

    def report_progress(self, operation_id: str, stage: str, done_bytes: int, total_bytes: int) -> bool:
        with self._database.writing(operation_id) as connection:
            return operation_queries.progress(connection, operation_id, stage, done_bytes, total_bytes)

    def request_cancel(self, operation_id: str) -> bool:
        with self._database.writing(operation_id) as connection:
            return operation_queries.request_cancel(connection, operation_id)

    def cancel_requested(self, operation_id: str) -> bool:
        with self._database.reading() as connection:
            return operation_queries.cancelled(connection, operation_id)

    @staticmethod
    def _uuids(connection: Any, vm: str | None) -> tuple[str, ...] | None:
        if vm is None:
            return None
        uuids = vm_queries.uuids_named(connection, vm)
        if not uuids:
            raise VmNotFound(
                f"No point was ever taken of a VM {vm!r}",
                vm=vm,
                hint="`vmkeep points` without a name shows all points.",
            )
        return uuids
