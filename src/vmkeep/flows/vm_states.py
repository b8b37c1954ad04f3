"""The state files of VMs as they are on the host, beside the versions of them that are kept. Nothing is changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from vmkeep.catalog import Catalog, CatalogPin, CatalogPoint, CatalogState, StateFile
from vmkeep.catalog.texts import now
from vmkeep.commandline import command_line
from vmkeep.custody.standing import FoundState, Grounds, JudgedState, KnownVersion, Standing, judge_state
from vmkeep.custody.states import NOT_SAID, Because, ChosenVersion, KnownState, NewVersion, repeated_unawares
from vmkeep.errors import InvalidRequest, VmkeepError, VmNotFound
from vmkeep.flows.secret_holders import kept_secrets
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import Identify, LookAtStates
from vmkeep.values import dataclass

KINDS = ("tpm", "nvram")
_NUMBER: Final = re.compile(r"[0-9]{1,7}")
_BEGINNING: Final = re.compile(r"[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class StandingState:
    """A state file of a VM and how it stands. ``newest`` is the version that counts as its newest, if one does.

    ``seen_at`` is when it was looked at, ISO 8601 in UTC.
    """

    vm: str
    vm_uuid: str
    running: bool
    found: FoundState
    judged: JudgedState
    newest: CatalogState | None
    seen_at: str

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
    """A version of a state file. ``current``: it counts as the newest one of its kind. ``held_by`` are ids of points
    and snapshots that keep it. ``kept``: it has a pin of its own in the repository. ``secret`` is the UUID of the
    secret that opens an encrypted TPM state, where its value is kept with the version. ``vouched`` is false of one that
    only hosts hold that nobody trusts; ``repeats``: its content is older here, and who made it did not know that.
    """

    version: CatalogState
    current: bool
    held_by: tuple[str, ...]
    kept: bool
    secret: str | None = None
    vouched: bool = True
    repeats: bool = False


def look_at_standings(catalog: Catalog, host: Host, vms: Sequence[str] = ()) -> Standings:
    """Return how the state files of VMs stand, by name; of all VMs of the host when none is named.

    Raises VmNotFound, and what the host raises.
    """
    states: list[StandingState] = []
    seen_at = now()
    problems: list[str] = []
    for vm in host.ask(LookAtStates(tuple(vms))):
        if vm.problem is not None:
            problems.append(f"{vm.name}: {vm.problem}")
        grounds, newest = grounds_of(catalog, vm.uuid), newest_states(catalog, vm.uuid)
        for found in vm.files:
            judged = judge_state(found, grounds)
            running, counts = vm.state != "off", newest.get(found.kind)
            states.append(StandingState(vm.name, vm.uuid, running, found, judged, counts, seen_at))
            if found.problem is not None:
                problems.append(f"{vm.name}: {found.path} could not be read: {found.problem}")
    _note_files(catalog, host, states)
    return Standings(tuple(sorted(states, key=lambda state: (state.vm, state.found.kind))), tuple(problems))


def _note_files(catalog: Catalog, host: Host, states: Sequence[StandingState]) -> None:
    """Remember what was found on the host; a home that cannot be written keeps nobody from looking."""
    found: dict[str, list[StateFile]] = {}
    with suppress(VmkeepError):
        identity = host.ask(Identify())
        for state in states:
            file = state.found
            if file.problem is None:
                found.setdefault(state.vm_uuid, []).append(
                    StateFile(
                        vm_uuid=state.vm_uuid,
                        host_uuid=identity.uuid,
                        kind="tpm" if file.kind == "tpm" else "nvram",
                        path=file.path,
                        sha256=file.sha256,
                        size_bytes=file.size_bytes,
                        standing=str(state.judged.standing),
                    )
                )
        catalog.see_host(identity.uuid, identity.name)
        catalog.note_state_files(identity.uuid, found)


def the_vm_named(catalog: Catalog, vm: str) -> str:
    """Return the UUID of the VM that the catalogue knows by a name or a UUID, also of one that is gone from the host.

    Raises VmNotFound, and InvalidRequest for a name that several have.
    """
    unknown = VmNotFound(
        f"no version of a state file is known of a VM {vm!r}",
        vm=vm,
        hint="A point or a snapshot of it keeps the first. `vmkeep vm list` shows the VMs of the host.",
    )
    return the_vm_known(catalog, vm, unknown)


def the_vm_known(catalog: Catalog, vm: str, unknown: VmNotFound) -> str:
    """Return the UUID as ``the_vm_named`` does; raises ``unknown`` for a VM that the catalogue does not know."""
    uuids = catalog.vms_named(vm)
    if not uuids:
        raise unknown
    if len(uuids) > 1:
        raise InvalidRequest(
            f"several VMs are or were called {vm!r}: {', '.join(uuids)}", vm=vm, hint="Name the VM by its UUID."
        )
    return uuids[0]


def versions_kept(catalog: Catalog, vm: str, kind: str | None = None) -> tuple[VersionKept, ...]:
    """Return the versions that are known of a VM's state files, the newest of each kind first.

    ``vm`` is a name or a UUID, also of a VM that is gone from the host. Raises VmNotFound, and InvalidRequest for a
    name that several have.
    """
    uuid = the_vm_named(catalog, vm)
    versions = [version for version in catalog.states_of_vm(uuid) if kind in (None, version.kind)]
    newest = newest_states(catalog, uuid)
    nobodys = versions_nobody_vouches_for(catalog.points_of_vm(uuid), catalog.pins_of_vm(uuid))
    repeated = doubtful_versions(catalog, uuid) - nobodys
    holders = catalog.holders(uuid)
    pinned = {each for pin in catalog.pins_of_vm(uuid) if pin.snapshot_id is None for each in pin.versions}
    secrets = {each.version_id: each.uuid for each in kept_secrets(catalog, uuid)}
    return tuple(
        VersionKept(
            version,
            newest.get(version.kind) == version,
            holders.get(version.id, ()),
            version.id in pinned,
            secrets.get(version.id) if version.kind == "tpm" else None,
            version.id not in nobodys,
            version.id in repeated,
        )
        for version in sorted(versions, key=lambda version: (version.kind, -version.generation, version.conflict))
    )


def versions_asked_for(catalog: Catalog, vm: str, kind: str | None, version: str | None) -> tuple[VersionKept, ...]:
    """Return the version of each kind of a VM's state that counts, or the one that is named.

    Raises VmNotFound, and InvalidRequest when there is none.
    """
    versions = versions_kept(catalog, vm, kind)
    if version is not None:
        if kind is None:
            raise InvalidRequest("versions are numbered for each kind", vm=vm, hint="Add --kind tpm or --kind nvram.")
        return (named_version(versions, version, vm, kind),)
    wanted = _counting(catalog, versions)
    if not wanted:
        raise InvalidRequest(
            f"no version of the state of VM {vm!r} counts as its newest",
            vm=vm,
            hint=f"`{command_line('vmkeep state versions', vm)}` lists them.",
        )
    return tuple(wanted)


def named_version(kept: Sequence[VersionKept], text: str, vm: str, kind: str) -> VersionKept:
    """Return the version that a number or the beginning of a hash means.

    Of two with one number that is the one which counts: a conflict is named by its hash. Raises InvalidRequest.
    """
    if _NUMBER.fullmatch(text):
        named = [each for each in kept if each.version.generation == int(text)]
        named = [each for each in named if not each.version.conflict] or named
    elif _BEGINNING.fullmatch(text.lower()):
        named = [each for each in kept if each.version.sha256.startswith(text.lower())]
    else:
        named = []
    # Versions with one content are the same to whoever names it by that.
    if len({each.version.sha256 for each in named}) == 1:
        return named[0]
    told = "several versions" if named else "no version"
    raise InvalidRequest(
        f"{text!r} means {told} of the {kind} state of VM {vm!r}",
        vm=vm,
        hint=f"`{command_line('vmkeep state versions', vm)}` lists them; name one by its number or its SHA-256.",
    )


def _counting(catalog: Catalog, versions: Sequence[VersionKept]) -> list[VersionKept]:
    """Return the version of each kind that counts: what was put in place on purpose since, else the newest that
    somebody vouches for.
    """
    accepted = [each for each in versions if each.vouched and not each.repeats and not each.version.conflict]
    placed = catalog.placed_states(accepted[0].version.vm_uuid) if accepted else {}
    counting: dict[str, VersionKept] = {}
    for each in accepted:
        kind = each.version.kind
        if kind not in counting or _is_placed(each, placed, counting[kind]):
            counting[kind] = each
    return list(counting.values())


def _is_placed(each: VersionKept, placed: Mapping[str, str], other: VersionKept) -> bool:
    wanted = placed.get(each.version.kind)
    return each.version.sha256 == wanted != other.version.sha256


def versions_of_point(catalog: Catalog, point: CatalogPoint, kind: str | None) -> tuple[CatalogState, ...]:
    """Return the versions that a point holds of its VM's state. Raises InvalidRequest where it holds none."""
    held = _states_of(point)
    versions = catalog.states_of_vm(point.vm_uuid)
    found = tuple(each for each in versions if each.id in held and kind in (None, each.kind))
    if not found:
        raise InvalidRequest(
            f"point {point.id} holds no {'state' if kind is None else f'{kind} state'} of its VM",
            vm=point.vm_name,
            hint=f"`{command_line('vmkeep state versions', point.vm_uuid)}` lists what is kept of it.",
        )
    return found


def require_point_of(catalog: Catalog, point: CatalogPoint, vm: str) -> None:
    """Raise InvalidRequest unless a point is one of the VM that is named."""
    if point.vm_uuid not in catalog.vms_named(vm):
        raise InvalidRequest(
            f"point {point.id} is of VM {point.vm_name!r}, and not of {vm!r}",
            vm=vm,
            hint=f"`{command_line('vmkeep points', vm)}` lists those of {vm!r}.",
        )


def remedy(state: StandingState) -> str | None:
    """Return the command that puts back the version that counts; None where nothing is to be done."""
    if not state.in_danger:
        return None
    return command_line("vmkeep state restore", state.vm, options=f"--kind {state.found.kind}")


def is_tracked(catalog: Catalog, vm_uuid: str) -> bool:
    """Return whether it is known which point a VM descends from: not after its catalogue was lost.

    One that was seen here and has no point of this installation's descends from none. Without that a VM that is only
    captured would have no older versions, and one that somebody put back would become the newest; so it would when
    points of others counted, and whoever can write to the repository makes such.
    """
    vm = catalog.vm(vm_uuid)
    if vm is None or vm.is_tracked:
        return vm is not None
    return not vm.adopted and not any(point.is_own for point in catalog.points_of_vm(vm_uuid))


def new_state(vm_uuid: str, version: NewVersion) -> CatalogState:
    """Return the catalogue's row for a version of a VM that a host put into the repository."""
    return CatalogState(
        version.id,
        vm_uuid,
        "tpm" if version.kind == "tpm" else "nvram",
        version.generation,
        version.sha256,
        version.size_bytes,
        version.created,
        because=version.because,
    )


def grounds_of(catalog: Catalog, vm_uuid: str) -> Grounds:
    """Return what the state files of a VM are judged by."""
    doubtful = doubtful_versions(catalog, vm_uuid)
    versions = (
        KnownVersion(each.kind, each.generation, each.sha256, each.conflict, each.id not in doubtful)
        for each in catalog.states_of_vm(vm_uuid)
    )
    return Grounds(tuple(versions), catalog.placed_states(vm_uuid), is_tracked(catalog, vm_uuid))


def newest_states(catalog: Catalog, vm_uuid: str) -> dict[str, CatalogState]:
    """Return the version of each kind that counts as the newest one of a VM: somebody vouches for it."""
    doubtful = doubtful_versions(catalog, vm_uuid)
    versions = [each for each in catalog.states_of_vm(vm_uuid) if not each.conflict and each.id not in doubtful]
    return {each.kind: each for each in reversed(versions)}


def doubtful_versions(catalog: Catalog, vm_uuid: str, history: Sequence[CatalogPoint] | None = None) -> frozenset[str]:
    """Return the ids of a VM's state versions that say nothing about a content, whatever their number.

    Only points and pins of hosts hold them that nobody trusts, or one that is trusted repeated with them what is older
    here, and did not know it. ``history`` are the VM's points, for whoever has them.
    """
    points = catalog.points_of_vm(vm_uuid) if history is None else history
    doubtful = versions_nobody_vouches_for(points, catalog.pins_of_vm(vm_uuid))
    accepted = [each for each in catalog.states_of_vm(vm_uuid) if not each.conflict and each.id not in doubtful]
    return frozenset(doubtful | repeated_unawares(accepted))


def _states_of(point: CatalogPoint) -> set[str]:
    return {str(state["version_id"]) for state in point.document.get("states", ())}


def chosen_of(state: CatalogState) -> ChosenVersion:
    """Return a version as it is asked for in the repository: by its id, and with the content that was accepted."""
    return ChosenVersion(state.kind, state.id, state.sha256)


def states_in(point: CatalogPoint) -> dict[str, str]:
    """Return the hashes of the state files that a point holds, by kind."""
    return {str(state["kind"]): str(state["sha256"]) for state in point.document.get("states", ())}


def versions_nobody_vouches_for(points: Iterable[CatalogPoint], pins: Iterable[CatalogPin]) -> set[str]:
    """Return the ids of state versions that only points and pins of hosts hold that nobody trusts."""
    vouched: set[str] = set()
    doubtful: set[str] = set()
    for point in points:
        (vouched if point.is_vouched_for else doubtful).update(_states_of(point))
    for pin in pins:
        (vouched if pin.is_vouched_for else doubtful).update(pin.versions)
    return doubtful - vouched


# Of a VM whose state changes with each hourly point, the last six weeks.
_MOST_OLDER_STATES = 1_000


def known_states(catalog: Catalog, vm_uuid: str, history: Sequence[CatalogPoint]) -> tuple[KnownState, ...]:
    """Return the versions that state files of a VM may equal, the newest accepted one of each kind first.

    What was put in place on purpose, and of a VM of which nobody knows where it is all but the newest, is among them
    with the word that it is a new version when it is met (``again``). Behind them is the newest that nobody vouches for
    where its number is the highest: it is told for that alone. File names are told where a point still has them.
    """
    files: dict[str, str] = {}
    for point in history:
        for state in point.document.get("states", ()):
            files.setdefault(state["version_id"], state["file"])
    placed = catalog.placed_states(vm_uuid)
    doubtful = doubtful_versions(catalog, vm_uuid, history)
    tracked = is_tracked(catalog, vm_uuid)
    versions = [each for each in catalog.states_of_vm(vm_uuid) if not each.conflict]
    found: list[KnownState] = []
    for kind in KINDS:
        mine = [each for each in versions if each.kind == kind]
        vouched = [each for each in mine if each.id not in doubtful]
        meant = placed.get(kind)
        older = [each for each in vouched[1:] if each.sha256 != meant][:_MOST_OLDER_STATES]
        highest = [each for each in mine[:1] if each.id in doubtful]
        found += [
            KnownState(
                state.kind,
                state.id,
                state.generation,
                state.sha256,
                state.size_bytes,
                files.get(state.id, ""),
                state.id not in doubtful,
                state.because,
                NOT_SAID if tracked or state in vouched[:1] else str(Because.RETURNED),
            )
            for state in (*vouched[:1], *older, *highest)
        ]
        if mine and meant and meant not in {each.sha256 for each in vouched[:1]}:
            found.append(KnownState(kind, "", 0, meant, 0, "", again=str(Because.PLACED)))
    return tuple(found)
