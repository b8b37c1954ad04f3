"""The state files of VMs as they are on the host, beside the versions of them that are kept. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vmkeep.catalog import Catalog, CatalogPoint, CatalogState
from vmkeep.commandline import command_line
from vmkeep.custody.standing import FoundState, JudgedState, KnownVersion, Standing, holder_to_restore, judge_state
from vmkeep.errors import InvalidRequest, VmNotFound
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import LookAtStates
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class StandingState:
    """A state file of a VM and how it stands. ``newest`` is the newest accepted version of it, if there is one."""

    vm: str
    vm_uuid: str
    running: bool
    found: FoundState
    judged: JudgedState
    newest: CatalogState | None

    @property
    def in_danger(self) -> bool:
        """Whether the VM's next start would be with another state than the newest known, or with a blank one."""
        return self.judged.standing in (Standing.SUPERSEDED, Standing.CONFLICT, Standing.MISSING)


@dataclass(frozen=True, slots=True)
class Standings:
    """What was found. ``problems`` are sentences about VMs of which not all could be told."""

    states: tuple[StandingState, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VersionKept:
    """A version of a state file. ``current``: the newest accepted one of its kind. ``held_by`` are ids of points and
    snapshots that keep it.
    """

    version: CatalogState
    current: bool
    held_by: tuple[str, ...]


def look_at_standings(catalog: Catalog, host: Host, vms: Sequence[str] = ()) -> Standings:
    """Return how the state files of VMs stand, by name; of all VMs of the host when none is named.

    Raises VmNotFound, and what the host raises.
    """
    states: list[StandingState] = []
    problems: list[str] = []
    for vm in host.ask(LookAtStates(tuple(vms))):
        if vm.problem is not None:
            problems.append(f"{vm.name}: {vm.problem}")
        placed = catalog.placed_states(vm.uuid)
        versions = catalog.states_of_vm(vm.uuid)
        for found in vm.files:
            mine = [version for version in versions if version.kind == found.kind]
            judged = judge_state(found, map(known_version, mine), placed.get(found.kind))
            newest = next((version for version in mine if not version.conflict), None)
            states.append(StandingState(vm.name, vm.uuid, vm.state != "off", found, judged, newest))
            if found.problem is not None:
                problems.append(f"{vm.name}: {found.path} could not be read: {found.problem}")
    return Standings(tuple(sorted(states, key=lambda state: (state.vm, state.found.kind))), tuple(problems))


def versions_kept(catalog: Catalog, vm: str, kind: str | None = None) -> tuple[VersionKept, ...]:
    """Return the versions that are known of a VM's state files, the newest of each kind first.

    ``vm`` is a name or a UUID, also of a VM that is gone from the host. Raises VmNotFound, and InvalidRequest for a
    name that several have.
    """
    uuids = catalog.vms_named(vm)
    if not uuids:
        raise VmNotFound(
            f"no version of a state file is known of a VM {vm!r}",
            vm=vm,
            hint="A point or a snapshot of it keeps the first. `vmkeep vm list` shows the VMs of the host.",
        )
    if len(uuids) > 1:
        raise InvalidRequest(
            f"several VMs are or were called {vm!r}: {', '.join(uuids)}", vm=vm, hint="Name the VM by its UUID."
        )
    versions = [version for version in catalog.states_of_vm(uuids[0]) if kind in (None, version.kind)]
    newest = {version.kind: version.id for version in reversed(versions) if not version.conflict}
    return tuple(
        VersionKept(version, newest.get(version.kind) == version.id, catalog.pins(version.id))
        for version in sorted(versions, key=lambda version: (version.kind, -version.generation, version.conflict))
    )


@dataclass(frozen=True, slots=True)
class HeldState:
    """A point that holds versions of state files, and what of it they are."""

    point: str
    only: tuple[str, ...]


def point_with_state(catalog: Catalog, vm: str, kind: str | None, generation: int | None) -> HeldState:
    """Return the point from which state of a VM is put back: the newest version of each kind, or the one that is named.

    Raises VmNotFound, and InvalidRequest where that is no one point.
    """
    if generation is not None and kind is None:
        raise InvalidRequest("versions are numbered for each kind", vm=vm, hint="Add --kind tpm or --kind nvram.")
    versions = versions_kept(catalog, vm, kind)
    wanted = [
        each
        for each in versions
        if (each.current if generation is None else each.version.generation == generation and not each.version.conflict)
    ]
    if not wanted:
        raise InvalidRequest(
            f"there is no version {generation} of the {kind} state of VM {vm!r}"
            if generation is not None
            else f"no version of the state of VM {vm!r} counts as its newest",
            vm=vm,
            hint=f"`{command_line('vmkeep state versions', vm)}` lists them.",
        )
    holders = [_points_with(catalog, each) for each in wanted]
    common = [point for point in holders[0] if all(point in others for others in holders[1:])]
    if common:
        return HeldState(common[0], tuple(each.version.kind for each in wanted))
    if all(holders):
        raise InvalidRequest(
            f"no one point holds the newest of each kind of state of VM {vm!r}",
            vm=vm,
            hint="Put them back one after the other: --kind tpm, then --kind nvram.",
        )
    lacking = next(each for each, points in zip(wanted, holders, strict=True) if not points)
    by = lacking.held_by
    what = f"version {lacking.version.generation} of the {lacking.version.kind} state of VM {vm!r}"
    raise InvalidRequest(
        f"no point holds {what}",
        vm=vm,
        hint=f"A snapshot does ({by[0]}): revert to it with `--only {lacking.version.kind}`."
        if by
        else f"`{command_line('vmkeep state versions', vm)}` shows what holds each version.",
    )


def _points_with(catalog: Catalog, kept: VersionKept) -> list[str]:
    """Return the points that hold a version, the newest first, and safety points last."""
    points = [point for point in catalog.points_of_vm(kept.version.vm_uuid) if point.id in kept.held_by]
    return [point.id for point in sorted(points, key=lambda point: point.is_safety)]


def remedy(catalog: Catalog, state: StandingState) -> str | None:
    """Return the command that puts the newest kept state back; None where nothing is to be done or no point has it."""
    if not state.in_danger:
        return None
    vm = catalog.vm(state.vm_uuid)
    current = None if vm is None else vm.current_point
    points = [
        _Holder(point.id, states_in(point), point.id == current, point.is_safety)
        for point in catalog.points_of_vm(state.vm_uuid)
    ]
    holder = holder_to_restore(points, state.found.kind)
    return None if holder is None else command_line("vmkeep restore", holder, options="--in-place --only state")


@dataclass(frozen=True, slots=True)
class _Holder:
    id: str
    states: Mapping[str, str]
    current: bool
    safety: bool


def known_version(state: CatalogState) -> KnownVersion:
    """Return a version as a file is judged by it."""
    return KnownVersion(state.kind, state.generation, state.sha256, state.conflict)


def states_in(point: CatalogPoint) -> dict[str, str]:
    """Return the hashes of the state files that a point holds, by kind."""
    return {str(state["kind"]): str(state["sha256"]) for state in point.document.get("states", ())}
