"""The pins of the repository brought in line with what the catalogue knows of a VM, and which versions are kept at all.

A version that a point names needs none. What belongs to a snapshot has one for the snapshot; of what nothing else
holds, those that the rule of retention keeps have one each. All of it can be done again at any time, and is, so what a
kill leaves undone is done by the next command. Contents stay in the repository until a prune finds them unneeded.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from vmkeep.catalog import Catalog, CatalogPin, CatalogSnapshot, CatalogState, FoundPin, Trust
from vmkeep.custody.retention import HeldVersion, kept_for_themselves
from vmkeep.errors import IntegrityError, VmkeepError
from vmkeep.flows.installation import catalog_states
from vmkeep.flows.removals import tpm_kept_until
from vmkeep.flows.services import Services
from vmkeep.flows.vm_states import versions_nobody_vouches_for
from vmkeep.host.tasks.survey import Progress
from vmkeep.logs import get_logger
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import PinnedSnapshot, PinRecord, Repository, StateRef

KEPT = "kept"
"""Why a version has a pin that nothing else holds."""
SNAPSHOT = "snapshot"
_log = get_logger(__name__)


def settle_pins(
    catalog: Catalog, repository: Repository, vm_uuid: str, rule: KeepRule, *, without: str | None = None
) -> None:
    """Put the pins that a VM's versions need and have not, and delete those that are not needed.

    ``without`` is a point that is about to be deleted: what it holds is kept before. One that is known and no longer
    stored, because another installation has deleted it, holds nothing either. Raises what the repository and the
    catalogue raise; then it is done by the next one.
    """
    vm = catalog.vm(vm_uuid)
    if vm is None:
        return
    pins = catalog.pins_of_vm(vm_uuid)
    snapshots = {snapshot.id: snapshot for snapshot in catalog.snapshots_of_vm(vm_uuid)}
    gone = {point.id for point in catalog.outlines_of_vm(vm_uuid)} - set(repository.point_ids())
    wanted = _kept(catalog, vm_uuid, rule, gone | {without})
    removed_until = tpm_kept_until(catalog, vm_uuid)
    states = catalog.states_of_vm(vm_uuid)
    terms = {state.id: vm.forgotten_until or (removed_until if state.kind == "tpm" else None) for state in states}
    have = {each for pin in pins if _is_kept(pin) for each in pin.versions if pin.until == terms.get(each)}
    named = {(pin.snapshot_id, pin.snapshot_name) for pin in pins if _is_ours(pin)}
    for snapshot in snapshots.values():
        if snapshot.states and (snapshot.id, snapshot.name) not in named:
            put_pin(catalog, repository, vm.name, SNAPSHOT, snapshot.states, snapshot=snapshot)
    for state in states:
        if state.id in wanted and state.id not in have and not _is_over(terms[state.id]):
            put_pin(catalog, repository, vm.name, KEPT, (state,), until=terms[state.id])
    for pin_id in _not_needed(catalog.pins_of_vm(vm_uuid), wanted, snapshots, terms):
        repository.pins.delete(pin_id)
        catalog.forget_pin(pin_id)


def settle_pins_of_vm(services: Services, vm_uuid: str) -> None:
    """Do so for a flow. What keeps it from that is told and fails nothing: the next command does it."""
    try:
        rule = services.keep_state_versions()
        services.with_repository(lambda repository: settle_pins(services.catalog, repository, vm_uuid, rule))
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
    )
    states = catalog_states(record)
    its = record.snapshot
    if its is None:
        return FoundPin(pin, states)
    snapshot = CatalogSnapshot(
        its.id, record.vm_uuid, its.name, its.creation_time, its.current_point, record.created, states
    )
    return FoundPin(pin, states, snapshot)


def _kept(catalog: Catalog, vm_uuid: str, rule: KeepRule, gone: Collection[str | None]) -> dict[str, str]:
    """Return why versions are kept for themselves, by id. ``gone`` are points that hold nothing, or soon will not.

    Those of hosts that nobody trusts are left out: whoever can write to the repository would push out the others. Nor
    does a point of such a host hold one: with it the version would go.
    """
    holders = catalog.holders(vm_uuid)
    placed = catalog.placed_states(vm_uuid)
    points = catalog.points_of_vm(vm_uuid)
    nothing = {*gone, *(point.id for point in points if not point.is_vouched_for)}
    doubtful = versions_nobody_vouches_for(points, catalog.pins_of_vm(vm_uuid))
    states = [state for state in catalog.states_of_vm(vm_uuid) if state.id not in doubtful]
    held = (
        HeldVersion(
            state.id,
            state.kind,
            state.created,
            state.conflict,
            any(each not in nothing for each in holders.get(state.id, ())),
        )
        for state in states
    )
    return kept_for_themselves(held, rule, [state.id for state in states if placed.get(state.kind) == state.sha256])


def put_pin(
    catalog: Catalog,
    repository: Repository,
    vm_name: str,
    why: str,
    states: Sequence[CatalogState],
    *,
    snapshot: CatalogSnapshot | None = None,
    until: str | None = None,
) -> None:
    """Put one pin for versions of a VM into the repository, and take it over into the catalogue.

    A version that the catalogue does not know is accepted with it, as a conflict when its generation is another's.
    """
    refs = tuple(_readable(repository, states))
    if not refs:
        return
    pinned = None
    if snapshot is not None:
        pinned = PinnedSnapshot(snapshot.id, snapshot.name, snapshot.creation_time, snapshot.current_point)
    record = PinRecord(
        id="",
        vm_uuid=states[0].vm_uuid,
        vm_name=vm_name,
        host=socket.gethostname(),
        created=states[0].created if snapshot is None else snapshot.created,
        why=why,
        states=refs,
        until=until,
        snapshot=pinned,
    )
    catalog.adopt_pins([found_pin(repository.pins.put(record))])


def _readable(repository: Repository, states: Iterable[CatalogState]) -> Iterator[StateRef]:
    """Yield what a pin says of versions, as far as they can still be read: of a lost one there is nothing to keep."""
    for state in states:
        try:
            yield repository.state(state.id)[0].ref()
        except IntegrityError as error:
            _log.warning("a state version cannot be pinned", version=state.id, error=error.message)


def _is_kept(pin: CatalogPin) -> bool:
    return pin.why == KEPT and pin.snapshot_id is None and (pin.trust.is_proved or pin.signed_by is None)


def _is_ours(pin: CatalogPin) -> bool:
    return pin.trust is Trust.OWN or pin.signed_by is None


def _is_over(until: str | None) -> bool:
    return until is not None and datetime.fromisoformat(until) < datetime.now(UTC)


def _not_needed(
    pins: Iterable[CatalogPin],
    wanted: Collection[str],
    snapshots: Mapping[str, CatalogSnapshot],
    terms: Mapping[str, str | None],
) -> Iterator[str]:
    """Yield the pins that go. Those that keep for their own sake have the ``terms`` of their versions.

    Of those of snapshots only this installation's own: another host that is trusted may have the VM's snapshot, which
    libvirt here does not.
    """
    kept: set[str] = set()
    for pin in pins:
        if pin.snapshot_id is not None:
            snapshot = snapshots.get(pin.snapshot_id)
            if _is_ours(pin) and (snapshot is None or snapshot.name != pin.snapshot_name):
                yield pin.id
        elif _is_kept(pin):
            needed = {each for each in pin.versions if each in wanted and pin.until == terms.get(each)}
            # Two commands may have put one each.
            if _is_over(pin.until) or needed <= kept:
                yield pin.id
            else:
                kept |= needed
