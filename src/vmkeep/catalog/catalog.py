"""The catalogue's port: what flows and commands ask of it, whatever keeps it.

``vmkeep.catalog.sql`` keeps it in SQL, in a file of SQLite or on PostgreSQL; ``vmkeep.catalog.memory`` is a complete
twin of that, without a file, for tests. Both pass ``tests/contract/catalog``. A catalogue is opened by its own class,
so that who only asks loads no database.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

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
from vmkeep.errors import VmkeepError

if TYPE_CHECKING:
    from vmkeep.custody.leases import Lease
    from vmkeep.custody.tombstones import Tombstone
    from vmkeep.identity.hosts import HostEvent, HostIdentity


class Catalog(Protocol):
    """What an installation knows. Safe to use from several threads.

    Any method may raise CatalogError (damaged, busy, contradicted, not reached), NoSpace, PermissionRefused or
    StoreError, and InvalidRequest for a text or a number that not every database can hold (``texts.require_fit``).
    """

    def refuse_writing(self, refusal: VmkeepError) -> None:
        """Answer every attempt to write with this error from now on."""
        ...

    def allow_writing(self) -> None:
        """End what ``refuse_writing`` began."""
        ...

    def copy_written(self) -> AbstractContextManager[None]:
        """Let a copy be written meanwhile although writing is refused: what it takes over is for this command alone."""
        ...

    def close(self) -> None: ...

    def faults(self) -> tuple[str, ...]:
        """Return what SQLite finds wrong with the file itself; empty for a sound one, and for a server that answers."""
        ...

    # -- the repository this catalogue belongs to --------------------------------------------------------------

    def repository(self) -> KnownRepository | None:
        """Return the repository used last; None before the first use."""
        ...

    def use_repository(self, repository_id: str, location: str) -> None:
        """Record which repository the points of this catalogue are in."""
        ...

    def see_keyring(self, repository_id: str, keyring: KnownKeyring) -> None:
        """Record the keyring that is in force in a repository that is known; of another one nothing."""
        ...

    # -- hosts that sign points ----------------------------------------------------------------------------------

    def see_host_key(self, key: KnownHostKey) -> bool:
        """Pin a key as it was met first; return whether it was not known. What is known stays as it is.

        Only of a key of one's own is the trust, and the machine on which it is used, brought up to date.
        """
        ...

    def host_keys(self) -> tuple[KnownHostKey, ...]:
        """Return all keys that were ever met, in that order."""
        ...

    def host_key(self, text: str) -> KnownHostKey:
        """Return the key that a fingerprint, or the beginning of one, means; raises InvalidRequest."""
        ...

    def trust_host(self, text: str, trust: Trust) -> KnownHostKey:
        """Trust or distrust a key from now on, also for the points that are known; return it as it is then.

        To trust a key of one's own, of which a copy was seen at work, says that the copy is gone. Raises InvalidRequest
        for any other key of one's own, and for one that was never met.
        """
        ...

    def retire_own_key(self, fingerprint: str) -> None:
        """Record that a key of one's own is not used any more: what it signed stays proved."""
        ...

    def note_copy(self, fingerprint: str, host: str) -> None:
        """Record that a copy of this home was seen at work on a host."""
        ...

    def points_of_host_keys(self) -> dict[str, int]:
        """Return how many points each key has signed, by fingerprint; unsigned ones stand under the empty text."""
        ...

    def is_signed_by_trusted_host(self, point_id: str) -> bool:
        """Return whether a point is signed by this installation, or by one whose key somebody here has trusted.

        The one answer to whether what a point says may reach into this host. The catalogue knows it of points that were
        recorded or taken over; of any other, of one without a signature, and of one whose key is unknown or distrusted
        it is False. That the point in the repository is still the one that was met is proved when it is read.
        """
        ...

    def makers(self) -> dict[str, dict[str, str | None]]:
        """Return who made each point, as its summary says it, by its id."""
        ...

    # -- VMs ---------------------------------------------------------------------------------------------------

    def see_host(self, uuid: str, name: str) -> None:
        """Record a host by UUID."""
        ...

    def see_vm(self, uuid: str, name: str, host_uuid: str | None = None) -> None:
        """Record that a VM was seen on a host, which must have been recorded if it is given."""
        ...

    def return_to(self, uuid: str, point_id: str | None) -> None:
        """Record that a VM is at an earlier point again, so that its next point descends from that one.

        None: it is as it was before its first point.
        """
        ...

    def lose_track(self, uuid: str) -> None:
        """Record that nobody knows which point a VM descends from."""
        ...

    def forget_vm(self, uuid: str, until: str) -> bool:
        """Note that a VM is gone for good, and until when versions of its state are kept (ISO 8601 in UTC).

        It holds until the VM is seen again. False for one that is not known.
        """
        ...

    def vm(self, uuid: str) -> CatalogVm | None: ...

    def vms(self) -> tuple[CatalogVm, ...]:
        """Return all VMs known, by name."""
        ...

    def vms_named(self, text: str) -> tuple[str, ...]:
        """Return the UUIDs that a name or UUID means; empty when the catalogue knows none."""
        ...

    # -- points ------------------------------------------------------------------------------------------------

    def record_point(self, point: CatalogPoint, states: Sequence[CatalogState] = ()) -> None:
        """Record a committed point and all state versions it holds: all in one transaction, or nothing.

        A state version that is known already is only pinned. Recording the same point again changes nothing, so
        that a step may be repeated. Raises CatalogError when the point is known with other content, or when a new
        version's generation is not above the newest one accepted.
        """
        ...

    def points(self, vm: str | None = None) -> tuple[CatalogPoint, ...]:
        """Return the points of all VMs, or of those that a name or UUID means; oldest first.

        Those of one VM are in the order in which they were made, those of several are mixed by their clocks.
        Raises VmNotFound for a name the catalogue does not know.
        """
        ...

    def summaries(self, vm: str | None = None) -> tuple[dict[str, Any], ...]:
        """Return what ``CatalogPoint.summary`` says of the same points, without reading their documents."""
        ...

    def point_ids(self) -> tuple[str, ...]:
        """Return the ids of all points, sorted."""
        ...

    def points_of_vm(self, uuid: str) -> tuple[CatalogPoint, ...]:
        """Return the points of one VM, the last made first; empty for a VM without points."""
        ...

    def outlines_of_vm(self, uuid: str) -> tuple[PointOutline, ...]:
        """Return ids and clocks of the points of one VM, the last made first."""
        ...

    def next_sequence(self, vm_uuid: str) -> int:
        """Return the order number of a VM's next point: greater than all that were seen here, also of deleted ones.

        It is nobody's before its point is recorded; who takes it holds the VM's lock.
        """
        ...

    def find_point(self, text: str) -> CatalogPoint:
        """Return the point that a full id, a unique beginning of one, VM@latest or VM@TIME means.

        VM@latest is the one that was made last, VM@TIME the last one whose clock says that time or an earlier one.
        Neither ever means a safety point: that holds the state that somebody wanted to leave; nor a point of a host
        that is distrusted. Raises PointNotFound, with the candidates when there are several, and ChoiceRequired when
        the newest one is not vouched for and an older one is.
        """
        ...

    def against_the_clock(self, text: str, found: CatalogPoint) -> tuple[str, ...]:
        """Return the points that were made before the one that VM@TIME means, with clocks that say a later time.

        Then the clocks are not in order, and the time that was named may not be what its clock showed. Empty for
        another text.
        """
        ...

    def newer_distrusted(self, point: CatalogPoint) -> tuple[str, ...]:
        """Return the ids of points of distrusted hosts that were made after one of their VM, the last first."""
        ...

    def point(self, point_id: str) -> CatalogPoint | None:
        """Return the point of an id; None when it is not known."""
        ...

    def digest(self, point_id: str) -> str | None:
        """Return the SHA-256 of a point's record, empty as long as it is not known; None when the point is not."""
        ...

    def note_digest(self, point_id: str, digest: str) -> None:
        """Note the digest of a record that agrees with what is known of its point; one that is known stays."""
        ...

    def newest_made(self, vm_uuid: str) -> CatalogPoint | None:
        """Return the point of a VM that was made last and is no safety point."""
        ...

    def newer_safety_points(self, point: CatalogPoint) -> tuple[str, ...]:
        """Return the ids of the safety points of a point's VM that were made after it, the last first."""
        ...

    def forget_point(self, point_id: str) -> bool:
        """Remove a point and its pins; False when it was not known. State versions stay known."""
        ...

    def newest_state(self, vm_uuid: str, kind: str) -> CatalogState | None:
        """Return the state version accepted last for a VM and a kind ("tpm", "nvram")."""
        ...

    def states_of_vm(self, vm_uuid: str) -> tuple[CatalogState, ...]:
        """Return all state versions ever accepted for a VM, of all kinds, newest first."""
        ...

    def accept_states(self, states: Sequence[CatalogState]) -> None:
        """Accept state versions that no point and no snapshot holds: all in one transaction, or none.

        Raises CatalogError for one whose generation is not above the newest accepted one of its VM and kind. Here, and
        wherever versions are recorded, one that was read under an earlier epoch of the VM's lease is a conflict.
        """
        ...

    def keep_late(self, states: Sequence[CatalogState]) -> None:
        """Add state versions that are kept and never count as the current one: all in one transaction, or none.

        Each is a conflict from then on; what is known already stays as it is. Raises CatalogError for one that is known
        with other content.
        """
        ...

    def place_states(self, vm_uuid: str, states: Mapping[str, str | None]) -> None:
        """Record what state was put in place of a VM on purpose: the SHA-256 by kind, empty for nothing.

        None forgets what was recorded. It holds until a newer version of that kind is accepted; one that only hosts
        hold that nobody trusts changes nothing.
        """
        ...

    def placed_states(self, vm_uuid: str) -> dict[str, str]:
        """Return what was put in place of a VM on purpose, by kind, as far as it still holds."""
        ...

    def pins(self, version_id: str) -> tuple[str, ...]:
        """Return the ids of all that hold a state version: points, snapshots, and pins of the repository."""
        ...

    def holders(self, vm_uuid: str) -> Mapping[str, tuple[str, ...]]:
        """Return the ids of the points and snapshots that hold each state version of a VM, by the version's id."""
        ...

    # -- pins of the repository ----------------------------------------------------------------------------------

    def adopt_pins(self, found: Sequence[FoundPin]) -> tuple[str, ...]:
        """Add pins of the repository with the versions that they name, in one transaction.

        Returns sentences about versions that contradict known ones. What is known already stays as it is. What is kept
        with a snapshot is taken over from its pin when who signed that one is trusted, now or later (``trust_host``).
        """
        ...

    def pin_ids(self) -> frozenset[str]:
        """Return the ids of the pins that were added."""
        ...

    def pins_of_vm(self, vm_uuid: str) -> tuple[CatalogPin, ...]:
        """Return the pins of a VM, the oldest first."""
        ...

    def forget_pin(self, pin_id: str) -> bool:
        """Remove a pin; False when it was not known. State versions, and what is kept with a snapshot, stay."""
        ...

    def passed_pins(self) -> Mapping[str, str]:
        """Return the VMs, by pin, of pins of the repository that were read and that nobody asked for here."""
        ...

    def pass_pins(self, passed: Mapping[str, str]) -> None:
        """Remember pins of the repository, each with its VM, so that they need not be read again."""
        ...

    # -- where state files lie -----------------------------------------------------------------------------------

    def note_state_files(self, host_uuid: str, found: Mapping[str, Sequence[StateFile]]) -> None:
        """Record what was found on a host that is known: for each VM, by its UUID, all its state files there.

        VMs that are not known are left out.
        """
        ...

    def state_files(self, vm_uuid: str) -> tuple[StateFile, ...]:
        """Return where state files of a VM lie, as they were found last, by host and kind."""
        ...

    def host_names(self) -> Mapping[str, str]:
        """Return the names of the hosts that were seen, by UUID."""
        ...

    # -- what keeps state from being captured --------------------------------------------------------------------

    def note_alert(self, vm_uuid: str, code: str, message: str) -> None:
        """Note that state of a VM could not be captured, with the error's code; the VM is known."""
        ...

    def clear_alerts(self, vm_uuid: str) -> bool:
        """Forget the alerts of a VM, of which all was captured; return whether there were any."""
        ...

    def alerts(self) -> tuple[StateAlert, ...]:
        """Return the alerts of all VMs."""
        ...

    # -- what was deleted on hosts, and what must still be -------------------------------------------------------

    def record_deletion(self, deletion: CatalogDeletion, tombstones: Sequence[Tombstone] = ()) -> None:
        """Record a removal, or a fact about one, with what could not be deleted: in one transaction.

        What is known already stays as it is, so that a step may be repeated.
        """
        ...

    def withdraw_deletion(self, deletion_id: str, origin: str) -> None:
        """Forget a removal that was undone, unless the repository has it, and all tombstones of its operation."""
        ...

    def note_deletion_stored(self, deletion_id: str, signed_by: str | None) -> None:
        """Record that the repository has a removal or a fact, and who signed it there."""
        ...

    def deletions(self, vm_uuid: str | None = None) -> tuple[CatalogDeletion, ...]:
        """Return the removals and the facts about them, of one VM or of all, the oldest first."""
        ...

    def unstored_deletions(self) -> tuple[CatalogDeletion, ...]:
        """Return those that the repository does not have yet, the oldest first."""
        ...

    def add_tombstones(self, tombstones: Sequence[Tombstone]) -> None:
        """Add what must still be deleted; one that is known stays as it is."""
        ...

    def tombstones(self, vm_uuid: str | None = None) -> tuple[Tombstone, ...]:
        """Return the tombstones of one VM or of all, also those that were settled, the oldest first."""
        ...

    def open_tombstones(self) -> tuple[Tombstone, ...]:
        """Return those on which something is still to be done, the oldest first."""
        ...

    def move_tombstone(self, known: Tombstone, to: Tombstone, fact: CatalogDeletion | None = None) -> None:
        """Put ``to`` in the place of ``known`` by compare-and-set, and record the fact with it.

        Raises CatalogError when it is not as it was known, or may not become that.
        """
        ...

    # -- which points are kept, and which are to go --------------------------------------------------------------

    def hide_point(self, removal: PointRemoval) -> None:
        """Record a removal of the repository in place of a known one, and forget its point: in one transaction.

        One that hides nothing is recorded alone.
        """
        ...

    def is_anything_marked(self) -> bool:
        """Return whether any removal or protection is known."""
        ...

    def end_removal(self, point_id: str) -> None:
        """Forget a removal: its point is gone, or is to come back."""
        ...

    def removals(self, vm_uuid: str | None = None) -> tuple[PointRemoval, ...]:
        """Return the removals of the points of one VM or of all, the oldest first."""
        ...

    def protect_point(self, protection: PointProtection) -> None:
        """Record a protection of the repository in place of a known one."""
        ...

    def end_protection(self, point_id: str) -> None:
        """Forget a protection."""
        ...

    def protections(self) -> Mapping[str, PointProtection]:
        """Return the protections, by the id of the point."""
        ...

    def note_soundness(self, harmed: Collection[str], sound: Collection[str]) -> None:
        """Note which points were found harmed, and which were proved sound since."""
        ...

    def harmed_points(self) -> Mapping[str, str]:
        """Return when points were found harmed that were not proved sound since, by their ids."""
        ...

    def set_policy(self, policy: Policy) -> None:
        """Record a policy in place of the one of its subject."""
        ...

    def drop_policy(self, subject: str) -> bool:
        """Forget a policy; False when there was none."""
        ...

    def policies(self) -> Mapping[str, Policy]:
        """Return the policies by their subjects, sorted by these."""
        ...

    # -- which host may run a VM -------------------------------------------------------------------------------

    def clock(self) -> str:
        """Return the present instant (ISO 8601 in UTC) by the clock of what keeps the catalogue: leases go by that."""
        ...

    def lease(self, vm_uuid: str) -> Lease | None:
        """Return the lease of a VM; None for one that never had one, of which any version counts."""
        ...

    def move_lease(self, known: Lease | None, to: Lease) -> None:
        """Put ``to`` in the place of ``known``, None for none, by compare-and-set on epoch and serial.

        VM and host are known. Raises CatalogError when it is not as it was known, or may not become that.
        """
        ...

    # -- who the hosts of a fleet are ----------------------------------------------------------------------------

    def host_identities(self) -> tuple[HostIdentity, ...]:
        """Return all hosts that are not forgotten, by name."""
        ...

    def host_identity(self, host_id: str) -> HostIdentity | None:
        """Return the host of an id, also a forgotten one."""
        ...

    def invited_host(self, invite: str) -> HostIdentity | None:
        """Return the host whose invite has this hash (64 hexadecimal digits)."""
        ...

    def move_host_identity(self, known: HostIdentity | None, to: HostIdentity, event: HostEvent) -> None:
        """Put an identity in the place of ``known`` unless that is another by now, and record what was done.

        Both or neither. Raises CatalogError, also for a name that another host has.
        """
        ...

    def host_events(self, host_id: str) -> tuple[HostEvent, ...]:
        """Return what was done about a host, oldest first."""
        ...

    # -- snapshots ---------------------------------------------------------------------------------------------

    def record_snapshot(self, snapshot: CatalogSnapshot) -> None:
        """Record a snapshot and accept and pin its state versions: all in one transaction, or nothing.

        One of the same VM and name that was made before is gone then, because libvirt has only one of a name. Recording
        the same one again changes nothing. Raises CatalogError when a new version's generation is not above the newest
        one accepted.
        """
        ...

    def snapshot(self, vm_uuid: str, name: str) -> CatalogSnapshot | None:
        """Return what is kept with a snapshot of a VM; None for one that was not made here."""
        ...

    def snapshot_by_id(self, snapshot_id: str) -> CatalogSnapshot | None:
        """Return what is kept with the snapshot that an operation made; None when it is not recorded."""
        ...

    def snapshots_of_vm(self, vm_uuid: str) -> tuple[CatalogSnapshot, ...]:
        """Return what is kept with each snapshot of a VM, oldest first."""
        ...

    def rename_snapshot(self, vm_uuid: str, name: str, new_name: str) -> bool:
        """Record that libvirt lists a snapshot under another name now; False when nothing is kept with it."""
        ...

    def forget_snapshot(self, snapshot_id: str) -> bool:
        """Remove a snapshot and its pins; False when it was not known. State versions stay known."""
        ...

    # -- a repository taken over ---------------------------------------------------------------------------------

    def adopt(self, points: Sequence[tuple[CatalogPoint, Sequence[CatalogState]]]) -> Adopted:
        """Add points that the repository holds, each with the state versions it holds, in one transaction.

        What is known already stays as it is, so adopting twice is the same as once.
        """
        ...

    def passed_points(self) -> tuple[PassedPoint, ...]:
        """Return the points of the repository that were read, and are of VMs that nobody asked for here."""
        ...

    def pass_points(self, passed: Sequence[PassedPoint]) -> None:
        """Remember points of the repository so that they need not be read again."""
        ...

    # -- operations --------------------------------------------------------------------------------------------

    def begin_operation(
        self, operation_id: str, kind: str, vm: str | None, owner: str, request: Mapping[str, Any]
    ) -> Operation:
        """Record a new operation as running, owned by an executor id."""
        ...

    def operation(self, operation_id: str) -> Operation:
        """Return an operation; raises CatalogError when there is none of that id."""
        ...

    def operations(self) -> tuple[Operation, ...]:
        """Return all operations that were ever begun, newest first."""
        ...

    def unfinished_operations(self) -> tuple[Operation, ...]:
        """Return the operations that have not ended, oldest first."""
        ...

    def move_operation(
        self, operation_id: str, owner: str, to: OperationState, error: Mapping[str, Any] | None = None
    ) -> Operation:
        """Change the state by compare-and-set; raises CatalogError when it may not follow or the owner changed."""
        ...

    def take_over_operation(self, operation_id: str, from_owner: str, to_owner: str) -> bool:
        """Make a dead owner's operation one's own; False when it ended or another process was first."""
        ...

    def report_progress(self, operation_id: str, stage: str, done_bytes: int, total_bytes: int) -> bool:
        """Note where an operation stands; return whether it was asked to stop."""
        ...

    def request_cancel(self, operation_id: str) -> bool:
        """Ask an operation to stop; False when it has ended already."""
        ...

    def cancel_requested(self, operation_id: str) -> bool: ...
