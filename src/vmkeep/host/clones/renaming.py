"""Another name for a VM: libvirt's own call, and what that leaves behind.

libvirt 9.0 renames a VM with checkpoints, and lists none of them after its next start, because their files stay in the
folder of the old name. Of a VM with automatic firmware it names no file of UEFI variables: the next start takes that of
the new name, which is a blank one. Snapshots move along (all seen on 9.0).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vmkeep.definition import Definition
from vmkeep.errors import TargetExists, VmNotFound, VmRunning
from vmkeep.filesystem import file_errors
from vmkeep.host.clones.original import hold, let_go, require_persistent
from vmkeep.host.operation import Operation
from vmkeep.host.records.unended import refuse_while_pending
from vmkeep.host.restores.as_vm import refuse_taken_name, refuse_vm_name
from vmkeep.host.tasks.clones import GiveVmName, LookForRename, RenameLooked
from vmkeep.host.vm.definition import read_definition
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.moments import refuse_torn_checkpoints
from vmkeep.hypervisor import Domain, RunState
from vmkeep.paths import open_directory
from vmkeep.statefiles.location import StateRoots

__all__ = ["let_go", "look_for_rename", "rename_vm"]


def look_for_rename(operation: Operation, task: LookForRename) -> RenameLooked:
    """Hold the VM, and tell what depends on its name; see the task."""
    hypervisor = operation.connected()
    refuse_vm_name(task.name)
    domain = hypervisor.domain(task.vm)
    require_persistent(domain)
    hold(operation, domain, task.name, f"change of its name {operation.id}")
    try:
        refuse_taken_name(hypervisor, task.name, hint="Choose another one, or give that VM another name first.")
        require_off(domain)
        refuse_while_pending(operation.settings, domain.name, domain.uuid)
        refuse_torn_checkpoints(domain)
        definition = read_definition(domain.definition_xml(inactive=True), domain)
        before, after = _by_name(definition, hypervisor.uri, task.name)
        if after and os.path.lexists(after):
            raise TargetExists(
                f"{after} is there already, of an earlier VM: libvirt would take it for the UEFI variables of this one",
                vm=domain.name,
                path=after,
                hint="Move it away if nothing needs it, or choose another name.",
            )
        return RenameLooked(
            domain.uuid,
            domain.name,
            task.name,
            before,
            after,
            tuple(domain.checkpoint_definitions(secure=False).items()),
            tuple(_told(operation, definition, domain)),
        )
    except BaseException:
        let_go(operation)
        raise


def rename_vm(operation: Operation, task: GiveVmName) -> None:
    """Give the VM the other name; see the task."""
    looked = task.looked
    domain = operation.connected().find_uuid(looked.uuid)
    if domain is None:
        raise VmNotFound(f"VM {looked.before!r} was undefined while it got another name", vm=looked.before)
    if operation.holder is None:  # taken up after the process that held it was killed
        hold(operation, domain, looked.after, f"change of its name {operation.id}")
    new = looked.before if task.back else looked.after
    new_file, old_file = (looked.nvram, looked.nvram_after) if task.back else (looked.nvram_after, looked.nvram)
    if domain.name != new:
        if domain.state().run is not RunState.OFF:
            raise VmRunning(f"VM {domain.name!r} was started while it got another name", vm=domain.name)
        _link(old_file, new_file)
        for name in domain.checkpoint_names():
            domain.forget_checkpoint(name)
        domain.rename(new)
    there = domain.checkpoint_names()
    for name, text in looked.checkpoints:
        if name not in there:
            domain.redefine_checkpoint(text)
    _unlink(old_file, new_file)


def _by_name(definition: Definition, uri: str, name: str) -> tuple[str, str]:
    """Return the file of UEFI variables that libvirt finds by the VM's name, and the one for another name."""
    firmware = definition.firmware
    if not firmware.has_variables or firmware.nvram is not None:
        return "", ""
    roots = StateRoots.of(uri)
    return str(roots.nvram_file(definition.name)), str(roots.nvram_file(name))


def _link(old: str, new: str) -> None:
    """Let a file have both names, so that it is found whichever name its VM has."""
    if not old or not os.path.lexists(old):
        return
    with file_errors(Path(new)):
        folder = open_directory(Path(old).parent)
        try:
            with suppress(FileExistsError):  # by an attempt that was killed
                os.link(Path(old).name, Path(new).name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            os.fsync(folder)
        finally:
            os.close(folder)


def _unlink(old: str, new: str) -> None:
    """Take the old name from a file that has both."""
    if not old or not os.path.lexists(old) or not os.path.lexists(new):
        return
    with file_errors(Path(old)):
        folder = open_directory(Path(old).parent)
        try:
            one, other = (os.stat(Path(path).name, dir_fd=folder, follow_symlinks=False) for path in (old, new))
            if os.path.samestat(one, other):
                os.unlink(Path(old).name, dir_fd=folder)
                os.fsync(folder)
        finally:
            os.close(folder)


def _told(operation: Operation, definition: Definition, domain: Domain) -> list[str]:
    told = []
    if definition.firmware.nvram is not None:
        told.append(f"Its UEFI variables stay in {definition.firmware.nvram}, which its definition names.")
    if domain.name in operation.settings.vms:
        told.append(
            f'The settings of [vm."{domain.name}"] in vmkeep.toml are by that name: write the new one there, or the '
            f"UUID {domain.uuid}."
        )
    return told
