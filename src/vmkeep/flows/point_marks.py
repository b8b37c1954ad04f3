"""Points hidden by a mark, brought back, and carried out; and points that are protected from all that.

The mark in the repository is what counts. The catalogue forgets a point that is hidden, so that no list and no reader
meets it, and takes it over again as one that is found. Each of these can be done again, and is after a kill.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from vmkeep.catalog import Catalog, CatalogPoint, PointProtection, PointRemoval, Trust
from vmkeep.commandline import command_line
from vmkeep.errors import IntegrityError, ObjectMissing, PointNotFound, PointProtected, VmkeepError, VmNotFound
from vmkeep.flows.catch_up_on_pins import catch_up_on_pins
from vmkeep.flows.hosts import judged, meet_hosts
from vmkeep.flows.installation import catalog_point, catalog_states, known_from_catalogue
from vmkeep.flows.services import Services
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.unsettled import refuse_beside_unsettled
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.unfinished import RequireUnneeded
from vmkeep.planning.lineage import newest_first
from vmkeep.planning.point_retention import DEFAULT_GRACE, bases_in_use
from vmkeep.repository import Repository
from vmkeep.repository.marks import Mark


def hide_point(services: Services, point_id: str, grace_seconds: int, why: str) -> str | None:
    """Put the mark that hides a point; return when the store got it, None for a point that is in the catalogue only.

    What is to be kept of what it holds is kept before. Raises PointProtected, and VmBusy while a restore needs it.
    """
    catalog = services.catalog
    point = catalog.point(point_id)
    if point is not None:
        refuse_beside_unsettled(catalog, point.vm_name, point.vm_uuid)  # an undo may need what the point holds
    for each in services.on_each():
        each.host.ask(RequireUnneeded(point_id))
    services.with_repository(lambda repository: _refuse_protected(repository, point_id))
    if point is not None and point.is_vouched_for:
        _settle_pins(services, point.vm_uuid, without=point_id)
    if not services.with_repository(lambda repository: repository.holds_point(point_id)):
        _forget_lost(services, point_id)
        return None
    mark = Mark(point_id, socket.gethostname(), _now(), why, grace_seconds=grace_seconds)
    known = next((each for each in catalog.removals() if each.point_id == point_id), None)
    if point is not None:
        mark = replace(mark, vm_uuid=point.vm_uuid, vm_name=point.vm_name, taken=point.created)
    elif known is not None:  # it is hidden already
        mark = replace(mark, vm_uuid=known.vm_uuid, vm_name=known.vm_name, taken=known.taken)
    put = services.with_repository(lambda repository: repository.removals.put(mark))
    stored = services.with_repository(lambda repository: repository.removals.stored_at(point_id))
    if stored is None:
        raise ObjectMissing(f"the removal of point {point_id} is gone again", hint="Somebody brought it back just now.")
    catalog.hide_point(as_removal(put, stored, Trust.OWN))
    return _text(stored)


def _forget_lost(services: Services, point_id: str) -> None:
    """Forget a point that the repository does not hold, with the envelope that may be left of it."""
    _delete_stored(services, point_id)
    services.catalog.forget_point(point_id)
    services.catalog.end_removal(point_id)


def _delete_stored(services: Services, point_id: str) -> None:
    """Delete a point, its envelope and its removal, whatever of them is there.

    The point before its mark: a mark without a point is tidied by the next one, a point without comes back.
    """
    with suppress(PointNotFound):
        services.with_repository(lambda repository: repository.delete_point(point_id))
    services.with_repository(lambda repository: repository.removals.delete(point_id))


def as_removal(mark: Mark, stored: datetime, trust: Trust = Trust.UNSIGNED) -> PointRemoval:
    """Return the catalogue's row of a removal; ``trust`` is what is thought of who signed it, where that is known."""
    return PointRemoval(
        point_id=mark.id,
        host=mark.host,
        created=mark.created,
        stored_at=_text(stored),
        grace_seconds=mark.grace_seconds,
        why=mark.why,
        vm_uuid=mark.vm_uuid,
        vm_name=mark.vm_name,
        taken=mark.taken,
        signed_by=None if mark.signature is None else mark.signature.fingerprint,
        trust=trust,
    )


def as_protection(mark: Mark, stored: datetime) -> PointProtection:
    """Return the catalogue's row of a protection."""
    return PointProtection(
        point_id=mark.id,
        host=mark.host,
        created=mark.created,
        stored_at=_text(stored),
        why=mark.why,
        until=mark.until,
        signed_by=None if mark.signature is None else mark.signature.fingerprint,
    )


def goes_at(removal: PointRemoval) -> datetime:
    """Return the store's time from which on a hidden point may go.

    What another installation asks for waits for the usual grace at least, whatever it says: nobody can have a point
    removed here before somebody could see that.
    """
    grace = timedelta(seconds=removal.grace_seconds)
    if removal.trust is not Trust.OWN:
        grace = max(grace, DEFAULT_GRACE)
    return datetime.fromisoformat(removal.stored_at) + grace


# -- back again --------------------------------------------------------------------------------------------------


def bring_back(services: Services, point_id: str) -> CatalogPoint:
    """Delete a point's removal, and take the point over again. Raises PointNotFound for one that is gone."""
    record = services.with_repository(lambda repository: repository.point(point_id))
    services.with_repository(lambda repository: repository.removals.delete(point_id))
    catalog = services.catalog
    catalog.end_removal(point_id)
    point = catalog_point(record)
    meet_hosts(catalog, [point])
    catalog.adopt([(judged(catalog, [point])[0], catalog_states(record))])
    found = catalog.point(point_id)
    assert found is not None
    return found


# -- carried out -------------------------------------------------------------------------------------------------


def carry_out_removal(services: Services, point_id: str) -> str | None:
    """Remove a hidden point, its envelope and its mark; return why it stays, None when it is gone.

    All is looked at once more: what was decided may be long past when a killed flow is finished.
    """
    catalog = services.catalog
    removal = next((each for each in catalog.removals() if each.point_id == point_id), None)
    if removal is None:
        return None  # an attempt that was killed was done, or somebody brought it back
    if not removal.hides:
        return "nobody who is trusted here has signed its removal"
    if services.with_repository(lambda repository: repository.removals.stored_at(point_id)) is None:
        return "somebody has brought it back"
    if services.with_repository(lambda repository: repository.store_time()) < goes_at(removal):
        return "its grace is not over"
    try:
        services.with_repository(lambda repository: _refuse_protected(repository, point_id))
        for each in services.on_each():
            each.host.ask(RequireUnneeded(point_id))
        if (why := _needed_as_base(services, point_id)) is not None:
            return why
        if removal.vm_uuid is not None:
            _settle_pins(services, removal.vm_uuid)
    except VmkeepError as error:
        return error.message
    _delete_stored(services, point_id)
    catalog.end_removal(point_id)
    return None


def _needed_as_base(services: Services, point_id: str) -> str | None:
    """Return why a hidden point stays as the base of a checkpoint; None when no disk is read against it any more."""
    try:
        record = services.with_repository(lambda repository: repository.point(point_id))
    except (IntegrityError, PointNotFound):
        return None  # nothing is read against what cannot be read
    visible = (known_from_catalogue(point) for point in services.catalog.points_of_vm(record.vm_uuid))
    if point_id not in bases_in_use(newest_first([*visible, known_from_catalogue(catalog_point(record))])):
        return None
    for each in services.on_each():
        with suppress(VmNotFound):
            each.host.ask(FindVm(record.vm_uuid))
            return f"VM {record.vm_name!r} still has its checkpoint; the VM's next point takes its place"
    return None


def _settle_pins(services: Services, vm_uuid: str, *, without: str | None = None) -> None:
    """Pin the versions of state files that are to be kept although a point that holds them goes."""
    rule = services.keep_state_versions()

    def settle(repository: Repository) -> None:
        # An attempt that was killed may have put pins that the catalogue does not know: none is put twice.
        catch_up_on_pins(services.catalog, repository, lambda uuid: uuid == vm_uuid)
        settle_pins(services.catalog, repository, vm_uuid, rule, without=without)

    services.with_repository(settle)


# -- protected ---------------------------------------------------------------------------------------------------


def protect_point(services: Services, point: CatalogPoint, until: str | None, why: str) -> None:
    """Put the mark that keeps a point, in place of the one it may have."""
    mark = Mark(
        id=point.id,
        host=socket.gethostname(),
        created=_now(),
        why=why,
        vm_uuid=point.vm_uuid,
        vm_name=point.vm_name,
        taken=point.created,
        until=until,
    )
    put = services.with_repository(lambda repository: repository.protections.put(mark))
    stored = services.with_repository(lambda repository: repository.protections.stored_at(point.id))
    if stored is not None:  # else somebody has ended it just now
        services.catalog.protect_point(as_protection(put, stored))


def unprotect_point(services: Services, point_id: str) -> bool:
    """Delete the mark that keeps a point; return whether there was one."""
    was = services.with_repository(lambda repository: repository.protections.delete(point_id))
    services.catalog.end_protection(point_id)
    return was


def _refuse_protected(repository: Repository, point_id: str) -> None:
    """Raise PointProtected for a point that is protected, also by a mark that cannot be read."""
    remedy = command_line("vmkeep point unprotect", point_id)
    try:
        mark = repository.protections.get(point_id)
    except ObjectMissing:
        return
    except IntegrityError as error:
        raise PointProtected(
            f"whether point {point_id} is protected cannot be told: {error.message}",
            path=error.path,
            hint=f"It counts as protected. `{remedy}` removes what cannot be read.",
        ) from error
    if mark.until is None or datetime.fromisoformat(mark.until) > repository.store_time():
        until = "" if mark.until is None else f" until {mark.until}"
        why = f" ({mark.why})" if mark.why else ""
        raise PointProtected(
            f"point {point_id} is protected{until}{why}, on host {mark.host} at {mark.created}",
            vm=mark.vm_name,
            hint=f"`{remedy}` ends that.",
        )


# -- what others did ---------------------------------------------------------------------------------------------


def told_of_hidden(catalog: Catalog, text: str, shortest: int) -> str | None:
    """Return what to say of a hidden point that an id, or the beginning of one, means."""
    wanted = text.lower()
    if len(wanted) < shortest or not catalog.is_anything_marked():
        return None
    found = [each for each in catalog.removals() if each.hides and each.point_id.startswith(wanted)]
    if len(found) != 1:
        return None
    removal = found[0]
    remedy = command_line("vmkeep point undelete", removal.point_id)
    return (
        f"It was deleted on host {removal.host} at {removal.created}, and is gone after "
        f"{goes_at(removal).isoformat(timespec='seconds')}; until then `{remedy}` brings it back."
    )


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _now() -> str:
    return _text(datetime.now(UTC))
