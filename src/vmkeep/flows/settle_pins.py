"""The pins of the repository brought in line with what the catalogue knows of a VM, and which versions are kept at all.

A version that a point names needs none. What belongs to a snapshot has one for the snapshot; of what nothing else
holds, those that the rule of retention keeps have one each. What opens an encrypted TPM state goes along: the pin has
it in its envelope, and it is deleted with the pin. All of it can be done again at any time, and is, so what a kill
leaves undone is done by the next command. Contents stay in the repository until a prune finds them unneeded.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vmkeep.catalog import (
    Catalog,
    CatalogPin,
    CatalogSnapshot,
    CatalogState,
    FoundPin,
    HeldSecret,
    Trust,
)
from vmkeep.custody.retention import HeldVersion, kept_for_themselves
from vmkeep.custody.states import SealedSecret
from vmkeep.errors import IntegrityError, PermissionRefused, TargetExists, VmkeepError
from vmkeep.flows.installation import catalog_states
from vmkeep.flows.pin_secrets import PinSecrets
from vmkeep.flows.removals import tpm_kept_until
from vmkeep.flows.services import Services
from vmkeep.flows.vm_states import doubtful_versions, versions_nobody_vouches_for
from vmkeep.host.tasks.survey import Progress
from vmkeep.logs import get_logger
from vmkeep.repository import PinnedSnapshot, PinRecord, Repository, SecretRef, StateRef
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.planning.retention import KeepRule

KEPT = "kept"
"""Why a version has a pin that nothing else holds."""
SNAPSHOT = "snapshot"
KEY = "key"
"""Why the secret of a TPM that has no state yet has one."""
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Needed:
    """Which versions of a VM stay. ``wanted`` are kept for themselves, ``held`` by a point or a snapshot."""

    wanted: frozenset[str]
    held: frozenset[str]


def settle_pins(
    catalog: Catalog,
    repository: Repository,
    vm_uuid: str,
    rule: KeepRule,
    *,
    without: str | None = None,
    sealed: Sequence[SealedSecret] = (),
    tpm_until: str | None = None,
) -> None:
    """Put the pins that a VM's versions need and have not, and delete those that are not needed.

    ``without`` is a point that is about to be deleted: what it holds is kept before. One that is known and no longer
    stored, because another installation has deleted it, holds nothing either. ``sealed`` are the secrets that a host
    sealed for versions just now; those that nothing needs are deleted. ``tpm_until`` is the term of the TPM's versions
    by a removal that is about to be recorded. Raises what the repository and the catalogue raise; then it is done by
    the next one.
    """
    vm = catalog.vm(vm_uuid)
    if vm is None:
        return
    lost = {point.id for point in catalog.outlines_of_vm(vm_uuid)} - set(repository.point_ids())
    needed = needed_versions(catalog, vm_uuid, rule, lost | {without})
    secrets = PinSecrets(catalog, repository, vm_uuid, sealed, lost=lost, going={without})
    removed = frozenset(state.id for state in catalog.states_of_vm(vm_uuid) if state.kind == "tpm") & needed.wanted
    terms = dict.fromkeys(removed, tpm_until or tpm_kept_until(catalog, vm_uuid))
    settling = _Settling(catalog, repository, vm_uuid, vm.name, vm.forgotten_until, needed, secrets, terms)
    settling.pin_snapshots()
    settling.pin_versions()
    settling.pin_keys()
    settling.delete_unneeded()
    secrets.drop_unused()


def settle_pins_of_vm(
    services: Services, vm_uuid: str, sealed: Sequence[SealedSecret] = (), *, tpm_until: str | None = None
) -> None:
    """Do so for a flow. What keeps it from that is told and fails nothing: the next command does it."""
    try:
        rule = services.keep_state_versions()
        services.with_repository(
            lambda repository: settle_pins(
                services.catalog, repository, vm_uuid, rule, sealed=sealed, tpm_until=tpm_until
            )
        )
    except VmkeepError as error:
        told = f"warning: which versions of the state of VM {vm_uuid} are kept could not be noted in the repository"
        services.watch(Progress("pins", note=f"{told}: {error.message}"))


def found_pin(record: PinRecord) -> FoundPin:
    """Return the catalogue's rows for a pin of the repository."""
    pin = CatalogPin(
        id=record.id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        host=record.host,
        created=record.created,
        why=record.why,
        versions=tuple(sorted(state.version_id for state in record.states)),
        until=record.until,
        signed_by=None if record.signature is None else record.signature.fingerprint,
        secrets=tuple(HeldSecret(secret.usage, secret.uuid) for secret in record.secrets),
    )
    states = catalog_states(record)
    its = record.snapshot
    if its is None:
        return FoundPin(pin, states)
    snapshot = CatalogSnapshot(
        its.id, record.vm_uuid, its.name, its.creation_time, its.current_point, record.created, states
    )
    return FoundPin(pin, states, snapshot)


def needed_versions(catalog: Catalog, vm_uuid: str, rule: KeepRule, gone: Collection[str | None]) -> Needed:
    """Return which versions stay. ``gone`` are points that hold nothing, or soon will not.

    Those of hosts that nobody trusts are left out: whoever can write to the repository would push out the others. Nor
    does a point of such a host hold one: with it the version would go.
    """
    holders = catalog.holders(vm_uuid)
    placed = catalog.placed_states(vm_uuid)
    points = catalog.points_of_vm(vm_uuid)
    nothing = {*gone, *(point.id for point in points if not point.is_vouched_for)}
    doubtful = versions_nobody_vouches_for(points, catalog.pins_of_vm(vm_uuid))
    # What counts elsewhere and not here is kept as a conflict is.
    repeated = doubtful_versions(catalog, vm_uuid, points) - doubtful
    states = [state for state in catalog.states_of_vm(vm_uuid) if state.id not in doubtful]
    versions = [
        HeldVersion(
            state.id,
            state.kind,
            state.created,
            state.conflict or state.id in repeated,
            any(each not in nothing for each in holders.get(state.id, ())),
        )
        for state in states
    ]
    wanted = kept_for_themselves(
        versions, rule, [state.id for state in states if placed.get(state.kind) == state.sha256]
    )
    return Needed(frozenset(wanted), frozenset(version.id for version in versions if version.held))


@dataclass(frozen=True, slots=True)
class _Settling:
    """The pins of one VM, put and deleted. ``until`` is the term of a VM that is forgotten, ``terms`` are those of
    versions of a TPM that was removed, as far as nothing but a pin of their own holds them.
    """

    catalog: Catalog
    repository: Repository
    vm_uuid: str
    vm_name: str
    until: str | None
    needed: Needed
    secrets: PinSecrets
    terms: Mapping[str, str | None]

    def pin_snapshots(self) -> None:
        """Put a pin for each snapshot that has none with its name."""
        named = {(pin.snapshot_id, pin.snapshot_name) for pin in self._pins() if _is_ours(pin)}
        for snapshot in self.catalog.snapshots_of_vm(self.vm_uuid):
            if snapshot.states and (snapshot.id, snapshot.name) not in named:
                sealed = self.secrets.for_snapshot(snapshot.states)
                self._put(SNAPSHOT, snapshot.states, sealed, snapshot=snapshot)

    def pin_versions(self) -> None:
        """Put a pin for each version that is kept for itself, and for one whose secret nothing else has that stays."""
        mine = [(pin, self._in_term(pin)) for pin in self._pins() if _is_kept(pin)]
        have = {version for _, versions in mine for version in versions}
        opened = {version for pin, versions in mine if pin.secrets for version in versions}
        for state in self.catalog.states_of_vm(self.vm_uuid):
            until = self._term(state.id)
            if state.id in opened or _is_over(until):
                continue
            if state.id in self.needed.wanted:
                sealed = self.secrets.for_version(state)
                if sealed is not None or state.id not in have:
                    self._put(KEPT, (state,), sealed, until=until)
            elif state.id in self.needed.held:
                sealed = self.secrets.for_held(state)
                if sealed is not None:
                    self._put(KEPT, (state,), sealed, until=until)

    def _term(self, version: str) -> str | None:
        """Return until when a version is kept for itself; None for good."""
        return self.until or self.terms.get(version)

    def _in_term(self, pin: CatalogPin) -> set[str]:
        """Return the versions of a pin that it keeps for as long as they are to be kept."""
        return {version for version in pin.versions if pin.until == self._term(version)}

    def pin_keys(self) -> None:
        """Put a pin for each secret that opens no version yet: those just made, and the last of a point that goes."""
        if _is_over(self.until):
            return
        for sealed in self.secrets.without_version(self.until):
            self._put(KEY, (), sealed, until=self.until)

    def delete_unneeded(self) -> None:
        """Delete the pins that nothing needs, each with its envelope: first in the repository."""
        snapshots = {snapshot.id: snapshot for snapshot in self.catalog.snapshots_of_vm(self.vm_uuid)}
        self._delete(tuple(self._not_needed(self._pins(), snapshots)))
        # By what is left now: a secret is not in what went just before.
        self._delete(pin.id for pin in self._pins() if _is_key(pin) and self._is_superfluous(pin))

    def _delete(self, pins: Iterable[str]) -> None:
        for pin_id in pins:
            try:
                self.repository.pins.delete(pin_id)
            except PermissionRefused:
                return  # a host may be allowed to add only; they keep more than is needed until who may delete does
            self.catalog.forget_pin(pin_id)

    def _is_superfluous(self, pin: CatalogPin) -> bool:
        return _is_over(pin.until) or pin.until != self.until or self.secrets.is_superfluous(pin)

    def _pins(self) -> tuple[CatalogPin, ...]:
        return self.catalog.pins_of_vm(self.vm_uuid)

    def _put(
        self,
        why: str,
        states: Sequence[CatalogState],
        sealed: SealedSecret | None,
        *,
        snapshot: CatalogSnapshot | None = None,
        until: str | None = None,
    ) -> None:
        put_pin(
            self.catalog,
            self.repository,
            self.vm_uuid,
            self.vm_name,
            why,
            states,
            snapshot=snapshot,
            until=until,
            sealed=sealed,
        )

    def _not_needed(self, pins: Sequence[CatalogPin], snapshots: Mapping[str, CatalogSnapshot]) -> Iterator[str]:
        """Yield the pins that go. Those that keep for their own sake have the term of the VM.

        Of those of snapshots only this installation's own: another host that is trusted may have the VM's snapshot,
        which libvirt here does not.
        """
        kept: set[str] = set()
        keyed = self.secrets.kept_elsewhere()
        # Those with secrets first: of two for one version the one that opens it stays.
        for pin in sorted(pins, key=lambda pin: not pin.secrets):
            if pin.snapshot_id is not None:
                snapshot = snapshots.get(pin.snapshot_id)
                if _is_ours(pin) and (snapshot is None or snapshot.name != pin.snapshot_name):
                    yield pin.id
            elif _is_kept(pin):
                fitting = self._in_term(pin)
                wanted = fitting & self.needed.wanted
                if pin.secrets:
                    wanted |= {each for each in fitting if each in self.needed.held and each not in keyed}
                # Two commands may have put one each.
                if _is_over(pin.until) or wanted <= kept:
                    yield pin.id
                else:
                    kept |= wanted


def put_pin(
    catalog: Catalog,
    repository: Repository,
    vm_uuid: str,
    vm_name: str,
    why: str,
    states: Sequence[CatalogState],
    *,
    snapshot: CatalogSnapshot | None = None,
    until: str | None = None,
    sealed: SealedSecret | None = None,
) -> None:
    """Put one pin for versions of a VM into the repository, and take it over into the catalogue.

    ``sealed`` is what was sealed into its envelope before. A version that the catalogue does not know is accepted with
    it, as a conflict when its generation is another's.
    """
    refs = tuple(_readable(repository, states))
    if not refs and (states or sealed is None):
        return
    pinned = None
    if snapshot is not None:
        pinned = PinnedSnapshot(snapshot.id, snapshot.name, snapshot.creation_time, snapshot.current_point)
    created = datetime.now(UTC).isoformat(timespec="microseconds")
    if states:
        created = states[0].created if snapshot is None else snapshot.created
    record = PinRecord(
        id="" if sealed is None else sealed.pin_id,
        vm_uuid=vm_uuid,
        vm_name=vm_name,
        host=socket.gethostname(),
        created=created,
        why=why,
        states=refs,
        until=until,
        snapshot=pinned,
        secrets=() if sealed is None else (SecretRef(sealed.usage, sealed.uuid),),
    )
    try:
        record = repository.pins.put(record)
    except TargetExists:
        record = repository.pins.get(record.id)  # an attempt that was killed put it
    catalog.adopt_pins([found_pin(record)])


def _readable(repository: Repository, states: Iterable[CatalogState]) -> Iterator[StateRef]:
    """Yield what a pin says of versions, as far as they can still be read: of a lost one there is nothing to keep."""
    for state in states:
        try:
            yield replace(repository.state(state.id)[0].ref(), because=state.because)
        except IntegrityError as error:
            _log.warning("a state version cannot be pinned", version=state.id, error=error.message)


def _is_kept(pin: CatalogPin) -> bool:
    return pin.why == KEPT and pin.snapshot_id is None and _may_go(pin)


def _is_key(pin: CatalogPin) -> bool:
    return pin.why == KEY and not pin.versions and _may_go(pin)


def _may_go(pin: CatalogPin) -> bool:
    return pin.trust.is_proved or pin.signed_by is None


def _is_ours(pin: CatalogPin) -> bool:
    return pin.trust is Trust.OWN or pin.signed_by is None


def _is_over(until: str | None) -> bool:
    return until is not None and datetime.fromisoformat(until) < datetime.now(UTC)
