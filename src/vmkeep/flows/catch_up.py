"""Let the catalogue catch up with the repository: take over points that it does not know of the VMs that count.

A home that was put back as it was earlier, and one beside which another installation keeps the same VMs, know less than
their repository. So what is to be restored is looked for, and what is made next is made, after this. It lists the names
of all points, and reads those that were never seen; what is of other VMs is noted, so that it is read once.

No flow of DBOS: taking over twice is the same as once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from vmkeep.catalog import Catalog, CatalogPoint, CatalogState, PassedPoint, Trust
from vmkeep.commandline import command_line
from vmkeep.errors import IntegrityError, PointNotFound
from vmkeep.flows.catch_up_on_deletions import catch_up_on_deletions
from vmkeep.flows.catch_up_on_pins import HoldsPins, catch_up_on_pins
from vmkeep.flows.gate import renew_gate
from vmkeep.flows.hosts import judged, meet_hosts, note_copies, told_of_host
from vmkeep.flows.installation import DamagedPoint, MetHost, catalog_point, catalog_states
from vmkeep.flows.services import Services
from vmkeep.host.tasks.survey import Progress
from vmkeep.logs import get_logger
from vmkeep.repository import PointRecord
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.flows.catch_up_on_marks import HeldMarks

_log = get_logger(__name__)
_AT_ONCE = 500  # points between two transactions: who is ended meanwhile does not begin anew
_NAMED = 8

Counts = Callable[[PassedPoint], bool]
"""Whether a point of the repository is of a VM that counts, besides those that the catalogue knows."""


class HoldsPoints(HoldsPins, Protocol):
    """The part of a repository that is asked."""

    def point_ids(self) -> list[str]: ...

    def marked(self) -> frozenset[str]: ...

    @property
    def removals(self) -> HeldMarks: ...

    @property
    def protections(self) -> HeldMarks: ...

    def point(self, point_id: str) -> PointRecord: ...


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What was taken over.

    ``pinned`` are VMs of which pins were taken over, that is state versions that no point names.
    ``remarkable`` are those of VMs that count, or that were seen on this host: nobody else should have made them.
    ``marks`` says what others want removed. ``damaged`` says what could not be, ``missing`` are known points that are
    not stored. ``hosts`` sign with keys that are new here; ``copies`` are points that a copy of this very home made
    elsewhere.
    """

    taken: tuple[CatalogPoint, ...] = ()
    pinned: frozenset[str] = frozenset()
    remarkable: tuple[CatalogPoint, ...] = ()
    damaged: tuple[DamagedPoint, ...] = ()
    marks: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    missing: frozenset[str] = frozenset()
    hosts: tuple[MetHost, ...] = ()
    copies: frozenset[str] = frozenset()

    def sentences(self) -> tuple[str, ...]:
        """Return what a person must hear."""
        told = [_took_over(points) for points in _by_origin(self.remarkable) if points[0].id not in self.copies]
        told += [_copied(points) for points in _by_origin(self.taken) if points[0].id in self.copies]
        told += map(told_of_host, self.hosts)
        told += [f"a point of the repository could not be taken over: {damaged.message}" for damaged in self.damaged]
        return (*told, *self.marks, *self.conflicts)


def catch_up(catalog: Catalog, repository: HoldsPoints, counts: Counts = lambda _point: False) -> CaughtUp:
    """Take over points of VMs that the catalogue knows, and of those that count.

    Raises what listing the repository raises: then nothing is known of what it holds.
    """
    stored = frozenset(repository.point_ids())
    marks = hide_marked(catalog, repository)
    # Read in this order: an operation that has ended since has recorded its point, or has deleted it.
    under_way = {operation.id for operation in catalog.unfinished_operations()}
    passed = {point.id: point for point in catalog.passed_points()}
    known = frozenset(catalog.point_ids())
    # After the known ones: a point that another process hides meanwhile is in one of the two.
    unknown = stored - known - under_way - hidden_points(catalog)
    vms = {vm.uuid for vm in catalog.vms()}
    wanted = [point.id for point in passed.values() if point.id in unknown and (point.vm_uuid in vms or counts(point))]
    strange = sorted(unknown - passed.keys())
    caught = CaughtUp(missing=known - stored - under_way, marks=marks)
    for ids in _portions((*wanted, *strange)):
        caught = _take(catalog, repository, counts, ids, caught)
    if new := {point.vm_uuid for point in caught.taken} - vms:
        # What one point brought in counts from now on, and so do its others.
        rest = [point.id for point in catalog.passed_points() if point.vm_uuid in new and point.id in stored]
        for ids in _portions(rest):
            caught = _take(catalog, repository, lambda point: point.vm_uuid in new, ids, caught)
    if caught.taken:
        _log.info("caught up", points=len(caught.taken), read=len(strange) + len(wanted))
    return _with_pins(catalog, repository, counts, caught)


def hide_marked(catalog: Catalog, repository: HoldsPoints) -> tuple[str, ...]:
    """Take over which points are to be removed, and which are protected; return what is to be told."""
    if not (repository.marked() or catalog.is_anything_marked()):
        return ()
    from vmkeep.flows.catch_up_on_marks import catch_up_on_marks

    return catch_up_on_marks(catalog, repository)


def hidden_points(catalog: Catalog) -> frozenset[str]:
    """Return the points that the repository may hold and that no list shows, because they are to be removed."""
    if not catalog.is_anything_marked():
        return frozenset()
    return frozenset(removal.point_id for removal in catalog.removals() if removal.hides)


def catch_up_on_vm(services: Services, vm_uuid: str) -> None:
    """Take over what is not known of a VM, for a flow that makes something of it.

    It is said at once: nobody else would say it when the flow fails later.
    """

    def counts(point: PassedPoint) -> bool:
        return point.vm_uuid == vm_uuid

    caught = services.with_repository(lambda repository: catch_up(services.catalog, repository, counts))
    # Another installation may have removed its TPM: the versions have a term then.
    unread = services.with_repository(lambda repository: catch_up_on_deletions(services.catalog, repository))
    if caught.taken or vm_uuid in caught.pinned:
        renew_gate(services, vm_uuid)
    gone = [point.id for point in services.catalog.outlines_of_vm(vm_uuid) if point.id in caught.missing]
    for sentence in (*caught.sentences(), *unread, *map(_not_stored, gone)):
        services.watch(Progress("looking into the repository", note=f"warning: {sentence}"))


def _take(catalog: Catalog, repository: HoldsPoints, counts: Counts, ids: Sequence[str], caught: CaughtUp) -> CaughtUp:
    taken: list[CatalogPoint] = []
    states: list[tuple[CatalogState, ...]] = []
    passed: list[PassedPoint] = []
    damaged: list[DamagedPoint] = []
    vms = {vm.uuid: vm for vm in catalog.vms()}
    for point_id in ids:
        try:
            record = repository.point(point_id)
        except PointNotFound:
            continue  # deleted meanwhile
        except IntegrityError as error:
            damaged.append(DamagedPoint(point_id, error.message))
            continue
        about = PassedPoint(record.id, record.vm_uuid, record.vm_name)
        if record.vm_uuid in vms or counts(about):
            # Without the definition, which has megabytes when somebody likes to.
            taken.append(catalog_point(record))
            states.append(catalog_states(record))
        else:
            passed.append(about)
    catalog.pass_points(passed)
    # Before the points, so that each is known with what is thought of its host.
    hosts, copies = meet_hosts(catalog, taken), note_copies(catalog, taken)
    taken = judged(catalog, taken)
    adopted = catalog.adopt(list(zip(taken, states, strict=True)))
    remarkable = [
        point
        for point in taken
        if point.vm_uuid not in vms
        or not vms[point.vm_uuid].adopted
        or counts(PassedPoint(point.id, point.vm_uuid, point.vm_name))
    ]
    return CaughtUp(
        taken=(*caught.taken, *taken),
        remarkable=(*caught.remarkable, *remarkable),
        damaged=(*caught.damaged, *damaged),
        marks=caught.marks,
        conflicts=(*caught.conflicts, *adopted.conflicts),
        missing=caught.missing,
        hosts=(*caught.hosts, *hosts),
        copies=caught.copies | copies,
    )


def _with_pins(catalog: Catalog, repository: HoldsPoints, counts: Counts, caught: CaughtUp) -> CaughtUp:
    """Take over the pins of the same VMs: state versions that no point names."""
    vms = {vm.uuid for vm in catalog.vms()}
    pins = catch_up_on_pins(catalog, repository, lambda uuid: uuid in vms or counts(PassedPoint("", uuid, "")))
    return replace(
        caught,
        pinned=pins.taken,
        conflicts=(*caught.conflicts, *pins.told),
        hosts=(*caught.hosts, *pins.hosts),
    )


def _portions(ids: Iterable[str]) -> Iterator[list[str]]:
    left = iter(ids)
    while portion := list(islice(left, _AT_ONCE)):
        yield portion


# -- what is said ------------------------------------------------------------------------------------------------


def _by_origin(points: Iterable[CatalogPoint]) -> list[list[CatalogPoint]]:
    """Return the points by VM and by who made them: two installations may call their hosts the same."""
    found: dict[tuple[str, str, str | None], list[CatalogPoint]] = {}
    for point in points:
        found.setdefault((point.vm_uuid, point.host, point.signed_by), []).append(point)
    return list(found.values())


def _took_over(points: Sequence[CatalogPoint]) -> str:
    first = points[0]
    if first.trust is Trust.OWN:
        origin = "by this installation, before it was put back as it was earlier, or by a copy of it"
    elif first.trust is Trust.UNSIGNED:
        origin = "by another installation, or before this one was put back as it was earlier, and not signed"
    else:
        known = "" if first.trust.is_proved else f", whose key is {first.trust} here"
        origin = f"by another installation, {first.installation}{known}"
    return (
        f"took over {_many(points)} of VM {first.vm_name!r} from the repository, made on host {first.host} "
        f"{origin}: {_named(points)}"
    )


def _copied(points: Sequence[CatalogPoint]) -> str:
    return (
        f"a copy of this very home is at work on another machine, host {points[0].host}: it signed {_many(points)} of "
        f"VM {points[0].vm_name!r} as this installation, {_named(points)}. Run `vmkeep host renew` on one of the two"
    )


def _many(points: Sequence[CatalogPoint]) -> str:
    return "a point" if len(points) == 1 else f"{len(points)} points"


def _named(points: Sequence[CatalogPoint]) -> str:
    ids = [point.id for point in points[:_NAMED]]
    more = len(points) - len(ids)
    return ", ".join(ids) + (f" and {more} more" if more else "")


def _not_stored(point_id: str) -> str:
    forget = command_line("vmkeep point delete", point_id, options="--yes")
    return (
        f"the repository does not hold the point {point_id}, which this installation knows: it was deleted by another "
        f"installation, or not all of the repository is there; `{forget}` lets this one forget it"
    )


def missing_point(point: CatalogPoint, location: str) -> PointNotFound:
    """Return the error for the last point of a VM that the repository does not hold."""
    forget = command_line("vmkeep point delete", point.id, options="--yes")
    return PointNotFound(
        f"the last point of VM {point.vm_name!r} that this installation knows, {point.id}, is not in the repository: "
        "it was deleted by another installation, or not all of the repository is there",
        vm=point.vm_name,
        path=f"{location}/points/{point.id}",
        hint=f"`{command_line('vmkeep points', point.vm_name)}` lists the others; name one by its id. If it was "
        f"deleted, `{forget}` lets this installation forget it.",
    )
