"""Put kept versions of state files back in place of what a VM has. What lies there is kept as a version first."""

from __future__ import annotations

from collections.abc import Sequence

from vmkeep.catalog import CatalogState
from vmkeep.commandline import command_line
from vmkeep.errors import StateTorn, VmNotFound, VmRunning
from vmkeep.flows.capture_states import keep_before_replacing
from vmkeep.flows.gate import place_states
from vmkeep.flows.installation import Premises
from vmkeep.flows.parked import unplace_states
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.flows.requests import RestoreStates, StatesRestored
from vmkeep.flows.secret_holders import secret_of_versions
from vmkeep.flows.vm_states import chosen_of
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.restores import ParkForStates, PublishRestore, PutBack, ReleaseVm, StageRestore, StatesParked
from vmkeep.host.tasks.survey import LookAtStates, StatesOfVm


@flow("state.restore", after_crash=AfterCrash.FINISH, undos_alone=True)
def restore_states(plan: Plan, request: RestoreStates) -> StatesRestored:
    """Replace state files of a VM that is off. See docs/internals/flows.md.

    What a repeated step does is decided by the journal on the host, not by the steps that DBOS recorded.
    """
    parked = plan.step(park, plan, request, undo=lambda parked: put_back(plan, parked))
    plan.step(stage, plan)
    plan.step(publish, plan)
    placed = {version.kind: version.sha256 for version in request.versions}
    plan.step(
        place_states,
        plan,
        parked.vm_uuid,
        placed,
        undo=lambda before: unplace_states(plan, parked.vm_uuid, before),
    )
    left = plan.step(release, plan, parked)
    plan.services.catalog.clear_alerts(parked.vm_uuid)  # of what was no good there
    kinds = tuple(version.kind for version in request.versions)
    return StatesRestored(parked.vm_name, parked.vm_uuid, kinds, (*parked.warnings, *left))


def park(plan: Plan, request: RestoreStates) -> StatesParked:
    """Keep the VM from starting; from here on the journal on the host knows what to do."""
    task = ParkForStates(plan.operation, request.vm_uuid, request.versions, request.found, request.secret)
    return plan.services.on_host(plan.operation, task)


def put_back(plan: Plan, parked: StatesParked) -> None:
    """Undo everything: the VM has the state files that it had."""
    plan.services.on_host(plan.operation, PutBack(plan.operation, parked.vm_uuid))


def stage(plan: Plan) -> None:
    """Write the versions beside their places, after those of a TPM were seen to load."""
    plan.services.on_host(plan.operation, StageRestore(plan.operation))


def publish(plan: Plan) -> None:
    """Rename them into place."""
    plan.services.on_host(plan.operation, PublishRestore(plan.operation))


def release(plan: Plan, parked: StatesParked) -> tuple[str, ...]:
    """Let the VM start again, and remove what was kept for an undo."""
    return plan.services.on_host(plan.operation, ReleaseVm(plan.operation, parked.vm_uuid))


# -- before ----------------------------------------------------------------------------------------------------


def require_replaceable(host: Host, versions: Sequence[CatalogState]) -> StatesOfVm:
    """Return what lies on the host of the VM of these versions. Raises VmNotFound, and VmRunning unless it is off."""
    vm_uuid = versions[0].vm_uuid
    try:
        (found,) = host.ask(LookAtStates((vm_uuid,)))
    except VmNotFound as error:
        raise VmNotFound(
            f"the VM {vm_uuid} is not on this host, so there is nothing to put its state back to",
            vm=vm_uuid,
            hint="A point of it makes it again (`vmkeep restore --help`); `vmkeep state export` writes its state to a "
            "file.",
        ) from error
    if found.state != "off":
        raise VmRunning(
            f"VM {found.name!r} is {found.state}, and its state can be put back only while it is off",
            vm=found.name,
            hint="Shut it down, and run the command again.",
        )
    return found


def request_for(premises: Premises, host: Host, versions: Sequence[CatalogState]) -> RestoreStates:
    """Keep what the VM has now, and return the request that puts these versions in its place.

    Raises as ``require_replaceable`` and ``keep_before_replacing``.
    """
    seen = require_replaceable(host, versions)
    kinds = tuple(version.kind for version in versions)
    keep_before_replacing(premises, host, seen.uuid, seen.name, kinds)
    found = _found(premises, require_replaceable(host, versions), kinds)
    chosen = tuple(map(chosen_of, versions))
    secret = secret_of_versions(premises.catalog, lambda: premises.repository, versions)
    return RestoreStates(seen.name, seen.uuid, chosen, found, secret)


def _found(premises: Premises, seen: StatesOfVm, kinds: Sequence[str]) -> tuple[tuple[str, str], ...]:
    kept = {version.sha256 for version in premises.catalog.states_of_vm(seen.uuid)}
    files = [each for each in seen.files if each.kind in kinds]
    for each in files:
        if each.problem is not None or (each.sha256 is not None and each.sha256 not in kept):
            why = each.problem or "it is being written"
            raise StateTorn(
                f"what VM {seen.name!r} has as its {each.kind} state could not be kept, so it was not replaced: {why}",
                vm=seen.name,
                path=each.path,
                hint="Look at that file, move it away if it is worth nothing, and run the command again.",
            )
    return tuple((each.kind, each.sha256 or "") for each in files)


def way_back(request: RestoreStates) -> tuple[str, ...]:
    """Return the commands that put back what was there; none for what was not, or was the same."""
    chosen = {version.kind: version.sha256 for version in request.versions}
    return tuple(
        command_line("vmkeep state restore", request.vm, options=f"--kind {kind} --version {sha256[:16]}")
        for kind, sha256 in request.found
        if sha256 and sha256 != chosen.get(kind)
    )
