"""What forbids a revert besides the snapshot itself: what the VM does, whose bitmaps it has, what was kept."""

from __future__ import annotations

from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.definition import SourceKind
from vmkeep.errors import ChoiceRequired, IntegrityError, StateUnsupported, VmNotFound, VmRunning
from vmkeep.host.records.restore import refuse_while_pending
from vmkeep.host.reverts.choice import RevertPlan, choose
from vmkeep.host.tasks.reverts import CheckRevert, RevertChecked, StopForRevert
from vmkeep.host.vm.astray import refuse_astray
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.deletions import refuse_torn
from vmkeep.host.vm.fitness import refuse_in_transition, refuse_jobs, require_off
from vmkeep.host.vm.images import image_chains
from vmkeep.hypervisor import Domain, Hypervisor, RunState, snapshots_of
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.repository import Repository
from vmkeep.transfer.tools import require_tools


def check_revert(
    hypervisor: Hypervisor, repository: Repository, settings: Settings, request: CheckRevert
) -> RevertChecked:
    """Refuse what cannot be done, before anything is changed; the VM may run where it will be stopped."""
    domain = hypervisor.domain(request.vm)
    refuse_while_pending(settings, domain.name, domain.uuid)
    require_tools("qemu-img", "qemu-nbd", "setpriv", doing=f"change the disks of {domain.name}")
    xml = snapshots_of(domain).definition(request.choice.snapshot, secure=True)
    refuse_torn(settings.deletions_dir, domain, xml)
    running = _refuse_state(domain, stop=request.stop)
    present = domain.definition_xml(inactive=True, secure=True)
    definition = with_volumes_found(read_definition(present, domain), hypervisor)
    if running:
        live = with_volumes_found(read_definition(domain.definition_xml(), domain), hypervisor)
        refuse_astray(domain, live, hypervisor, settings)
    reversal = choose(hypervisor, domain, definition, xml, request.choice, request.known)
    if reversal.internal and not request.choice.drop_checkpoints:
        refuse_foreign_bitmaps(domain, reversal, checkpoint_prefix(repository.id))
    _require_states(repository, reversal, domain.name)
    chains = image_chains(definition)
    formers = () if reversal.internal else tuple(image.former for image in reversal.images)
    return RevertChecked(
        vm_uuid=domain.uuid,
        vm_name=domain.name,
        running=running,
        creation_time=reversal.snapshot.creation_time,
        kept=reversal.kept,
        disks=tuple(image.target for image in reversal.images),
        states=tuple(state.kind for state in reversal.states),
        memory=reversal.with_memory,
        missing=tuple(
            disk.target
            for disk in definition.disks
            if disk.source_kind is SourceKind.FILE and not disk.removable and disk.target not in chains
        ),
        left=formers,
        warnings=reversal.warnings,
    )


def stop_for_revert(hypervisor: Hypervisor, settings: Settings, request: StopForRevert) -> None:
    """Pull the plug of the VM. Raises VmBusy beside a job."""
    domain = hypervisor.domain(request.vm_uuid)
    refuse_while_pending(settings, domain.name, domain.uuid)
    if domain.state().run is not RunState.OFF:
        refuse_jobs(domain)
        domain.power_off()


def _refuse_state(domain: Domain, *, stop: bool) -> bool:
    """Return whether the VM runs; raises unless it is off, or runs and may be stopped."""
    run = domain.state().run
    refuse_in_transition(run, domain.name)
    if not domain.is_persistent():
        raise VmNotFound(
            f"VM {domain.name!r} is transient: it is gone when it stops, and its snapshots with it",
            vm=domain.name,
            hint=f"Make it persistent first: `{command_line('virsh dumpxml', domain.name)} > FILE`, then "
            "`virsh define FILE`.",
        )
    if run is RunState.OFF:
        require_off(domain)
        return False
    refuse_jobs(domain)
    if not stop:
        raise VmRunning(
            f"VM {domain.name!r} is not off",
            vm=domain.name,
            hint="Shut it down, or give --stop: its plug is pulled then, because what it does now is dropped anyway.",
        )
    return True


def refuse_foreign_bitmaps(domain: Domain, reversal: RevertPlan, prefix: str) -> None:
    """Raise ChoiceRequired for bitmaps of others in images with an internal snapshot that goes back."""
    names = {bitmap.name for image in reversal.images for bitmap in image.base.bitmaps} | domain.checkpoint_names()
    foreign = sorted(name for name in names if not name.startswith(prefix))
    if foreign:
        raise ChoiceRequired(
            f"VM {domain.name!r} has checkpoints or bitmaps of another tool ({', '.join(foreign)}), and QEMU reverts "
            "no image that has any",
            vm=domain.name,
            hint="--drop-checkpoints removes them: the next backup of that tool must be a full one then.",
        )


def _require_states(repository: Repository, reversal: RevertPlan, vm: str) -> None:
    """Read the state files from the repository once: what is damaged there must be found before anything changes."""
    for chosen, known in zip(reversal.states, reversal.versions, strict=True):
        version, _ = repository.state(known.version_id)
        if version.sha256 != known.sha256:
            raise IntegrityError(
                f"the {known.kind} state in the repository is not the one that was kept with the snapshot", vm=vm
            )
        if chosen.kind == "tpm" and Path(version.file).name != Path(chosen.file).name:
            raise StateUnsupported(
                f"the TPM of the VM is of another version now: {chosen.file}, at the snapshot {version.file}",
                vm=vm,
                hint="--tpm keep leaves the present TPM.",
            )
