"""The file of a VM's UEFI variables: held, replaced, and put back.

libvirt may start a VM at any time, and QEMU opens the file by its name. So after a rename the VM is looked at again: a
QEMU that has the new file open runs with it, which is what was asked for; before one that has the file from before, or
none yet, that is put back under its name, and the operation fails.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import stat
import time
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import HostFileMissing, StateTorn, StateUnsupported, VmkeepError
from vmkeep.filesystem import file_error, file_errors
from vmkeep.host.nvram.contents import refuse_changed
from vmkeep.host.nvram.told import nvram_of
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.nvram import HoldForNvram, InstallNvram, LetNvramGo, NvramHeld, WithdrawNvram
from vmkeep.host.vm.definition import read_definition
from vmkeep.host.vm.firmware import template_of_vm
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.found_states import read_state_file
from vmkeep.host.vm.held import domain_of, hold, hold_off, let_go
from vmkeep.host.vm.openimages import open_images
from vmkeep.host.vm.states import read_state
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.repository.chosen import read_chosen
from vmkeep.statefiles.installation import keep_aside, make_folder, publish, remove, stage_file, withdraw
from vmkeep.xmltext import parse_xml

_DOING: Final = "change of its UEFI variables"
_START_SECONDS: Final = 5.0
"""How long a QEMU that libvirt is starting may take to open its variables: some tenths of a second were seen."""
_LOOK_SECONDS: Final = 0.1


def hold_for_nvram(operation: Operation, task: HoldForNvram) -> NvramHeld:
    """Hold the VM and tell of its UEFI variables; see the task. When this raises, the VM is not held."""
    hypervisor = operation.connected()
    domain = domain_of(hypervisor, task.vm_uuid)
    hold_off(operation, domain, _DOING)
    try:
        return _held(hypervisor, domain)
    except BaseException:
        let_go(operation)
        raise


def install_nvram(operation: Operation, task: InstallNvram) -> None:
    """Put a version in place; see the task."""
    hypervisor, held = operation.connected(), task.held
    domain = domain_of(hypervisor, held.vm_uuid)
    hold(operation, domain, _DOING)
    final = Path(held.path)
    staged, aside, marker = _names(final, operation)
    now = _hash_at(final)
    if now != task.version.sha256:
        if (now or _hash_at(aside) or "") != held.sha256:
            raise refuse_changed(held)
        require_off(domain)
        _, content = read_chosen(operation.repository(), held.vm_uuid, task.version)
        make_folder(final.parent, 0o755)
        _stage(staged, content, final if now else aside)
        publish(staged, final, aside=aside, marker=marker, force=True)
    _require_in_use_or_off(hypervisor, domain, held, operation)


def withdraw_nvram(operation: Operation, task: WithdrawNvram) -> None:
    """Put back what was replaced; see the task."""
    hypervisor, held = operation.connected(), task.held
    domain = hypervisor.find_uuid(held.vm_uuid)
    final = Path(held.path)
    staged, aside, marker = _names(final, operation)
    if domain is not None:
        hold(operation, domain, _DOING)
        if marker.exists() and not staged.exists():
            require_off(domain)
    withdraw(staged, final, aside=aside, marker=marker)


def let_nvram_go(operation: Operation, task: LetNvramGo) -> str:
    """End what was begun; see the task."""
    kept = ""
    if task.path:
        final = Path(task.path)
        _, aside, marker = _names(final, operation)
        lasting = final.with_name(f"{final.name}.replaced-{operation.id[:12]}")
        if task.keep and keep_aside(aside, lasting):
            kept = str(lasting)
        remove(aside)
        remove(marker)
    let_go(operation)
    return kept


def _held(hypervisor: Hypervisor, domain: Domain) -> NvramHeld:
    xml = domain.definition_xml(inactive=True)
    source = nvram_of(read_definition(xml, domain), hypervisor.uri)
    if source is None:
        raise StateUnsupported(
            f"VM {domain.name!r} has no UEFI variables: it starts by BIOS, or its firmware forgets them",
            vm=domain.name,
            hint=f"`{command_line('virsh dumpxml', domain.name)}` shows its firmware, below <os>.",
        )
    if source.format != "raw":
        raise StateUnsupported(
            f"the UEFI variables of VM {domain.name!r} are kept in a {source.format} image, which is not changed",
            vm=domain.name,
            path=str(source.path),
            hint="vmkeep keeps such an image and puts it back, but writes into raw ones only: define the VM with a raw "
            "one, made by `qemu-img convert -O raw`.",
        )
    template = template_of_vm(hypervisor, parse_xml(xml)) or ""
    path = str(source.path)
    try:
        state = read_state(source, domain.name)
    except HostFileMissing:
        return NvramHeld(domain.uuid, domain.name, path, template=template)
    except StateTorn:
        with file_errors(source.path, "read"):
            content = read_state_file(source.path, "nvram") or b""
        digest = hashlib.sha256(content).hexdigest()
        return NvramHeld(domain.uuid, domain.name, path, digest, len(content), template=template)
    size = len(state.content)
    return NvramHeld(domain.uuid, domain.name, path, state.sha256, size, whole=True, template=template)


def _names(final: Path, operation: Operation) -> tuple[Path, Path, Path]:
    """Return the names for what is staged, what is kept for an undo, and the mark of what was published.

    They are those of operations, which nobody takes for orphans (custody/orphans.py).
    """
    staged = final.with_name(f".{final.name}.{operation.id[:12]}.partial")
    return staged, staged.with_suffix(".replaced"), staged.with_suffix(".published")


def _hash_at(path: Path) -> str | None:
    with file_errors(path, "read"):
        content = read_state_file(path, "nvram")
    return None if content is None else hashlib.sha256(content).hexdigest()


def _stage(staged: Path, content: bytes, before: Path) -> None:
    """Write the new file with owner and mode of the one that it replaces; libvirt gives a new one its owner."""
    try:
        about = before.lstat()
    except FileNotFoundError:
        stage_file(staged, content)
        return
    except OSError as error:
        raise file_error(error, before) from error
    owner, group = _names_of(about)
    stage_file(staged, content, owner=owner, group=group, mode=stat.S_IMODE(about.st_mode) & 0o666)


def _names_of(about: os.stat_result) -> tuple[str | None, str | None]:
    """Return user and group of a file, both None where either has no name or they are ours."""
    if (about.st_uid, about.st_gid) == (os.geteuid(), os.getegid()):
        return None, None
    try:
        return pwd.getpwuid(about.st_uid).pw_name, grp.getgrgid(about.st_gid).gr_name
    except KeyError:
        return None, None


def _require_in_use_or_off(hypervisor: Hypervisor, domain: Domain, held: NvramHeld, operation: Operation) -> None:
    """Put the file from before back, and raise, when a QEMU was started just before with that one, or with none yet."""
    try:
        require_off(domain)
    except VmkeepError:
        final = Path(held.path)
        staged, aside, marker = _names(final, operation)
        if not _takes_new(hypervisor, domain, final, aside):
            withdraw(staged, final, aside=aside, marker=marker)
            raise


def _takes_new(hypervisor: Hypervisor, domain: Domain, final: Path, aside: Path) -> bool:
    """Return whether the QEMU of a VM that was started meanwhile has the new file open."""
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        opened = open_images(domain.name, domain.uuid, hypervisor.uri)
        if opened is not None and opened.has(str(final)):
            return True
        if opened is not None and aside.exists() and opened.has(str(aside)):
            return False
        if domain.state().run is RunState.OFF:
            break
        time.sleep(_LOOK_SECONDS)
    return False
