"""Deleting moments: one at a time, what descends from another before it, so that relations are whole at every moment.

libvirt's own deletion of a subtree is not atomic: a failure half-way leaves moments without parents, and the next walk
over descendants kills libvirtd 9.0.

When libvirt 9.0 removes the record of an external snapshot alone, it rewrites the records of all that descends from it
as if its overlay had been merged: they name the image below then, which is not theirs (seen; 11.3 leaves them). So
what hangs from a snapshot is first hung from that one's parent; nothing descends from it when it is forgotten, and
whoever dies in between leaves nothing that is not true.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.errors import (
    ChoiceRequired,
    DeletionStopped,
    HypervisorError,
    Interrupted,
    MomentNotFound,
    SnapshotNeeded,
    VmkeepError,
    VmOff,
)
from vmkeep.host.moments.local import WITH_CHECKPOINTS
from vmkeep.host.tasks.moments import DeleteMoments, MomentsChanged, moment_errors, named, to_be_deleted
from vmkeep.host.vm.moments import read_for_change
from vmkeep.hypervisor import Domain, DomainMoments, Hypervisor
from vmkeep.moments import MomentKind
from vmkeep.planning.names import is_base_name

# What libvirt 9.0 says of a snapshot whose overlay the VM is not on.
_NOT_IN_CHAIN: Final = "could not find base disk source in disk source chain"
# What libvirt 11.3 says of one whose images were merged by somebody else, as `virsh blockcommit` does.
_PARENT_MISSING: Final = "failed to find parent disk source in backing chain"
# What libvirt 11.3 says of one from which another hangs that was not made on its overlay.
_RECORD_MISSING: Final = "snapshot VM disk source and parent disk source are not the same"
# What libvirt 11.3 says of one from which two or more hang: it merges along one line only (qemuSnapshotDeleteValidate).
_MANY_CHILDREN: Final = "deletion of external disk snapshot with multiple children snapshots not supported"
# What both say of one into whose image another was being merged when QEMU or libvirtd ended.
_TARGET_OF_ANOTHER: Final = "was target of not completed snapshot delete"
# What both say of one that holds a disk which was taken away from the VM since.
_DISK_MISSING: Final = re.compile(r"disk '([^']*)' not found in domain")


def delete_moments(
    domain: Domain, order: DeleteMoments, hypervisor: Hypervisor, settings: Settings, stop: Callable[[], None]
) -> MomentsChanged:
    """Delete what is ordered and stop at the first that cannot be. Raises DeletionStopped when some are gone then."""
    register = DomainMoments(domain, order.kind)
    found = read_for_change(register)
    with moment_errors(order.kind, domain.name):
        names = to_be_deleted(found.tree(), order.name, order.mode)
    _demand_consent(order, names, domain.name)
    if order.kind is MomentKind.SNAPSHOT and not order.metadata_only:
        from vmkeep.host.snapshots.branches import guard_branches, refuse_dangerous_deletion

        refuse_dangerous_deletion(hypervisor, domain, names)
        if found.running or not domain.checkpoint_names():
            # What kept a record from naming the overlay that the VM is on may be gone since the last revert.
            guard_branches(hypervisor, domain)
    delete_one = _deleter(domain, order, register, hypervisor, settings, running=found.running)
    deleted: list[str] = []
    for name in names:
        try:
            stop()
            delete_one(name)
        except MomentNotFound:
            continue  # somebody else was faster
        except Interrupted as error:
            error.add_note(_so_far(order.kind, deleted, names))
            raise
        except VmkeepError as error:
            if not deleted:
                raise
            raise DeletionStopped(
                f"{error.message} ({_so_far(order.kind, deleted, names)})", vm=domain.name, hint=error.hint or None
            ) from error
        deleted.append(name)
    return MomentsChanged(vm=domain.name, uuid=domain.uuid, names=tuple(deleted))


def _demand_consent(order: DeleteMoments, names: tuple[str, ...], vm: str) -> None:
    if order.kind is not MomentKind.CHECKPOINT or order.metadata_only:
        return
    bases = [name for name in names if is_base_name(name) and name not in order.bases]
    if bases:
        raise ChoiceRequired(
            f"the next point of VM {vm!r} is read against {named(bases)}, and that would be deleted as well",
            vm=vm,
            hint="Give --yes if the next point may read the disks whole.",
        )


def _deleter(
    domain: Domain,
    order: DeleteMoments,
    register: DomainMoments,
    hypervisor: Hypervisor,
    settings: Settings,
    *,
    running: bool,
) -> Callable[[str], None]:
    """Return what deletes one moment of the VM as it is now."""
    if order.kind is MomentKind.SNAPSHOT:
        from vmkeep.host.vm.deletions import noted_deletion

        def delete_noted(name: str) -> None:
            with noted_deletion(settings.deletions_dir, domain, hypervisor, name, merges=not order.metadata_only):
                if order.metadata_only:
                    _forget_snapshot(register, name)
                else:
                    _delete_snapshot(register, domain.name, name)

        return delete_noted
    if order.metadata_only:
        return register.forget
    if running:
        return register.delete
    from vmkeep.host.checkpoints.stored import StoredBitmaps

    stored = StoredBitmaps(domain, hypervisor)

    def delete_stored(name: str) -> None:
        # Bitmaps first: of those of a checkpoint that is forgotten, nothing would know any more.
        stored.remove(name)
        register.forget(name)

    return delete_stored


def _forget_snapshot(register: DomainMoments, name: str) -> None:
    """Remove the record of a snapshot when nothing descends from it any more."""
    from vmkeep.host.moments.replay import Replay

    found = read_for_change(register, secure=True, domain=True)
    parent = next((moment.parent_name for moment in found.moments if moment.name == name), None)
    children = [moment for moment in found.moments if moment.parent_name == name]
    replay = Replay(register, found, lambda: None, validate=False)
    try:
        for child in children:
            replay.redefine(replace(child, parent_name=parent))
        register.forget(name)
    except BaseException as error:
        replay.take_back(error)
        if isinstance(error, HypervisorError) and not found.running and WITH_CHECKPOINTS in error.message:
            vm = register.domain.name
            start = command_line("virsh start", vm, options="--paused")
            raise VmOff(
                f"the record of snapshot {name!r} of VM {vm!r} cannot be removed alone while the VM is off and has "
                f"checkpoints: {named(child.name or '' for child in children)} hangs from it, and this libvirt would "
                "change what that says",
                vm=vm,
                hint=f"Start the VM first (`{start}` is enough), or remove the records of what hangs "
                "from it as well: --children.",
            ) from error
        raise


def _delete_snapshot(register: DomainMoments, vm: str, name: str) -> None:
    try:
        register.delete(name)
    except HypervisorError as error:
        forget = command_line("vmkeep snapshot delete", vm, name, options="--metadata")
        record_only = f"remove libvirt's record only: `{forget}`."
        if _NOT_IN_CHAIN in error.message:
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged: since a revert the VM is on other images, and what "
                "it was on before still stands on those of the snapshot",
                vm=vm,
                hint="Delete the image files that the revert left, if nothing needs them, start the VM and delete the "
                f"snapshot then. Or {record_only}",
            ) from error
        if _PARENT_MISSING in error.message:
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged: the VM is not on its images any more, or they were "
                "merged by something else",
                vm=vm,
                hint=f"`{command_line('vmkeep snapshot health', vm)}` says what each snapshot stands on. To "
                f"{record_only} All images stay then.",
            ) from error
        if _RECORD_MISSING in error.message:
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged by libvirt: the record of a snapshot between it and "
                "those that hang from it was removed, so their images do not follow each other in its records",
                vm=vm,
                hint=f"Delete what hangs from it first. Or {record_only} All images stay then, and `virsh blockcommit` "
                "merges overlays that the VM is on.",
            ) from error
        if _MANY_CHILDREN in error.message:
            children = [moment.name or "" for moment in read_for_change(register).moments if moment.parent_name == name]
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged: {named(children)} hang from it, and this libvirt "
                "merges one only from which one hangs at most",
                vm=vm,
                hint=f"Delete all but one of them first. Or {record_only} All images stay then.",
            ) from error
        if _TARGET_OF_ANOTHER in error.message:
            health = command_line("vmkeep snapshot health", vm)
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged yet: the deletion of one that hangs from it was "
                "begun and did not end",
                vm=vm,
                hint=f"Delete that one again first; `{health}` tells which. Or {record_only} All images stay then.",
            ) from error
        if (missing := _DISK_MISSING.search(error.message)) is not None:
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {vm!r} cannot be merged by libvirt: it holds the disk {missing[1]}, which "
                "the VM has no more",
                vm=vm,
                disk=missing[1],
                hint=f"Attach the disk again on the image that it was on. Or {record_only} All images stay then.",
            ) from error
        raise


def _so_far(kind: MomentKind, deleted: list[str], names: tuple[str, ...]) -> str:
    left = [name for name in names if name not in deleted]
    return f"deleted {kind}s: {named(deleted) or 'none'}; not deleted: {named(left) or 'none'}"
