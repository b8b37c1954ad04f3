"""What a run of `vmkeep retain` would do: which policy each point belongs to, why it stays, and what is to be asked.

Nothing is changed here but that the catalogue catches up with the repository. The rule itself is pure
(``vmkeep.planning.point_retention``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from vmkeep.catalog import SAFETY_LABEL, Catalog, CatalogPoint, PointRemoval, Policy, Trust
from vmkeep.errors import IntegrityError, PointNotFound
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.installation import Premises, known_from_catalogue
from vmkeep.flows.patience import patiently
from vmkeep.flows.point_marks import goes_at
from vmkeep.flows.point_requests import PointsOfVm
from vmkeep.flows.policies import ALL_VMS, rule_of_policy, vm_with_points, zone_named
from vmkeep.host.tasks.survey import Progress
from vmkeep.planning.point_retention import (
    DEFAULT_GRACE,
    SAFETY_RULE,
    JudgedPoint,
    PointRule,
    Verdict,
    bases_in_use,
    judge,
    newest_sound,
    reasons_to_ask,
    rule_of,
    too_many,
)
from vmkeep.repository import Repository
from vmkeep.values import dataclass

_RETAIN: Final = "points.retain"
SAFETY_SUBJECT: Final = f"label:{SAFETY_LABEL}"


@dataclass(frozen=True, slots=True)
class RetentionOfVm:
    """What becomes of the points of one VM, the oldest first. ``policy`` is that of the VM, "" for none.

    ``due`` are hidden points of it that may be removed now, ``graces`` how long what goes is hidden, by policy. ``ask``
    says why somebody must say yes first, to what goes and to what is due that others hid. ``told`` are things to know.
    """

    vm: str
    vm_uuid: str
    policy: str
    verdicts: tuple[Verdict, ...]
    due: tuple[PointRemoval, ...]
    graces: Mapping[str, int]
    ask: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    @property
    def going(self) -> tuple[PointsOfVm, ...]:
        """What goes, by how long it is only hidden."""
        found: dict[int, tuple[str, ...]] = {}
        for verdict in self.verdicts:
            if not verdict.stays:
                grace = self.graces[verdict.point.rule]
                found[grace] = (*found.get(grace, ()), verdict.point.id)
        return tuple(PointsOfVm(self.vm, self.vm_uuid, points, grace) for grace, points in found.items())

    @property
    def own_due(self) -> tuple[str, ...]:
        """The hidden points that may be removed and that this installation itself has hidden."""
        return tuple(each.point_id for each in self.due if each.trust is Trust.OWN)


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """What becomes of the points of VMs. ``due`` are hidden points of no VM that is known, such as damaged ones."""

    vms: tuple[RetentionOfVm, ...]
    due: tuple[PointRemoval, ...] = ()
    told: tuple[str, ...] = ()


def plan_retention(premises: Premises, vms: Sequence[str], watch: Callable[[Progress], None]) -> RetentionPlan:
    """Return what a run would do for VMs that were named, or for all.

    Raises VmNotFound, InvalidRequest for a zone that this host does not know, and what the repository raises.
    """
    catalog = premises.catalog
    wanted = {vm_with_points(catalog, vm) for vm in vms}
    repository = premises.repository
    limit = premises.settings.stalled_after_seconds
    with catalog.copy_written():
        caught = patiently(lambda: catch_up(catalog, repository), limit, watch=watch)
    facts = patiently(lambda: _facts(catalog, repository), limit, watch=watch)
    due = [
        each for each in catalog.removals() if each.hides and each.point_id in facts.marked and _is_over(each, facts)
    ]
    known = {vm.uuid: vm.name for vm in catalog.vms()}
    chosen = [uuid for uuid in known if not vms or uuid in wanted]
    planned = tuple(
        _of_vm(catalog, repository, facts, uuid, known[uuid], [each for each in due if each.vm_uuid == uuid])
        for uuid in chosen
    )
    lone = tuple(each for each in due if each.vm_uuid not in known) if not vms else ()
    return RetentionPlan(planned, lone, caught.sentences())


@dataclass(frozen=True, slots=True)
class _Facts:
    """What is known of all VMs. ``stored`` and ``marked`` are times of points and of removals, ``now`` the store's."""

    now: datetime
    stored: Mapping[str, datetime]
    marked: Mapping[str, datetime]
    protected: Collection[str]
    harmed: Collection[str]
    policies: Mapping[str, Policy]
    rules: Mapping[str, PointRule]
    zones: Mapping[str, tzinfo]
    last_removals: Mapping[str, datetime]


def _facts(catalog: Catalog, repository: Repository) -> _Facts:
    policies = catalog.policies()
    rules = {name: rule_of_policy(policy) for name, policy in policies.items()}
    zones = {name: zone_named(policy.zone) for name, policy in policies.items()}
    now = repository.store_time()
    # A mark that cannot be read protects as well.
    unread = repository.protections.stored().keys() - catalog.protections().keys()
    held = {name for name, each in catalog.protections().items() if each.holds(now.isoformat(timespec="microseconds"))}
    return _Facts(
        now=now,
        stored=repository.stored_points(),
        marked=repository.removals.stored(),
        protected=held | unread,
        harmed=catalog.harmed_points(),
        policies=policies,
        rules={SAFETY_SUBJECT: SAFETY_RULE, **rules},
        zones={SAFETY_SUBJECT: UTC, **zones},
        last_removals=_last_removals(catalog),
    )


def _of_vm(
    catalog: Catalog, repository: Repository, facts: _Facts, uuid: str, name: str, due: Sequence[PointRemoval]
) -> RetentionOfVm:
    points = catalog.points_of_vm(uuid)
    bases = bases_in_use(known_from_catalogue(point) for point in points)
    # Who has no policy has nothing judged, so that its points need not be read.
    rules = {point.id: rule_of(point.labels, facts.policies, uuid, safety=SAFETY_LABEL) for point in points}
    asked = any(rules.values()) or bool(due)
    judged = [
        JudgedPoint(
            point.id,
            datetime.fromisoformat(point.created),
            facts.stored.get(point.id),
            proved=point.is_vouched_for,
            sound=point.id not in facts.harmed and (not asked or _is_readable(repository, facts, point)),
            protected=point.id in facts.protected,
            base=point.id in bases,
            safety=point.is_safety,
            rule=rules[point.id],
        )
        for point in points
    ]
    verdicts = judge(judged, facts.rules, facts.now, zones=facts.zones)
    policy = next((subject for subject in (f"vm:{uuid}", ALL_VMS) if subject in facts.policies), "")
    grace = facts.policies[policy].grace_seconds if policy else int(DEFAULT_GRACE.total_seconds())
    graces = {SAFETY_SUBJECT: grace, **{name: each.grace_seconds for name, each in facts.policies.items()}}
    ask = reasons_to_ask(verdicts, facts.now, facts.last_removals.get(uuid))
    others = [each for each in due if each.trust is not Trust.OWN]
    return RetentionOfVm(
        vm=name,
        vm_uuid=uuid,
        policy=policy,
        verdicts=verdicts[::-1],
        due=tuple(due),
        graces=graces,
        ask=(*ask, *_reasons_of_others(others, judged, facts.now)),
        told=_told(judged, facts, name),
    )


def _reasons_of_others(others: Sequence[PointRemoval], left: Sequence[JudgedPoint], now: datetime) -> tuple[str, ...]:
    """Return why somebody must say yes to the removal of points that other installations hid."""
    if not others:
        return ()
    hosts = ", ".join(sorted({each.host for each in others}))
    if too_many(len(others), len(others) + len(left)):
        return (f"{len(others)} points that {hosts} deleted would be removed, more than a third of all",)
    if newest_sound(left, now) is None:
        return (f"no sound point would be left after what {hosts} deleted is removed",)
    return ()


def _is_over(removal: PointRemoval, facts: _Facts) -> bool:
    return facts.now >= goes_at(removal)


def _is_readable(repository: Repository, facts: _Facts, point: CatalogPoint) -> bool:
    """Return whether the record of a point is there and can be proved."""
    if point.id not in facts.stored:
        return False
    try:
        repository.point(point.id)
    except (IntegrityError, PointNotFound):
        return False
    return True


def _told(points: Sequence[JudgedPoint], facts: _Facts, vm: str) -> tuple[str, ...]:
    told = []
    for point in points:
        if not point.rule:
            continue
        if point.is_suspect(facts.now):
            at = "never" if point.stored is None else point.stored.isoformat(timespec="seconds")
            told.append(
                f"point {point.id} of VM {vm!r} fills no slot and stays: its host's clock said "
                f"{point.made.isoformat(timespec='seconds')}, and the storage got it at {at}"
            )
        elif not point.proved:
            told.append(
                f"point {point.id} of VM {vm!r} fills no slot and stays: nobody who is trusted here has signed it"
            )
        elif not point.sound:
            told.append(f"point {point.id} of VM {vm!r} fills no slot: it was found harmed")
    return tuple(told)


def _last_removals(catalog: Catalog) -> dict[str, datetime]:
    """Return when points of each VM were removed last by their policies, by its UUID."""
    found: dict[str, datetime] = {}
    for operation in catalog.operations():
        if operation.kind != _RETAIN:
            continue
        for of_vm in operation.request.get("going", ()):
            if of_vm.get("points"):
                found.setdefault(str(of_vm.get("vm_uuid")), datetime.fromisoformat(operation.started))
    return found
