"""A host looked at by `vmkeep doctor`: libvirt, tools, directories, what was left behind, and each VM.

Looking changes nothing. What a finding's ``mend`` says is carried out by ``mend``, one by one; whatever concerns a
VM under that VM's lock, which the caller holds.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.definition import Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import HypervisorHangs, InvalidRequest, NoSpace, PermissionRefused, VmkeepError
from vmkeep.filesystem import HOME_ROOM_BYTES, OF_STORAGE, require_room, size_text
from vmkeep.host.checkup import leftovers
from vmkeep.host.checkup.vm import check_vm, mend_vm, merge_astray
from vmkeep.host.gate.installation import GatePlace
from vmkeep.host.records.sockets import LONGEST_PATH_BYTES
from vmkeep.host.tasks.checkup import (
    CheckupRequest,
    CloseScratch,
    DefineSecret,
    EndJob,
    Finding,
    FindingCode,
    MakePrivate,
    Mend,
    MendCheckpoint,
    MergeOverlay,
    Operations,
    PutAsideBack,
    RemoveLeft,
    RemoveLock,
)
from vmkeep.host.vm.orphans import count_orphans
from vmkeep.host.vm.secrets import put_secret_back
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.hypervisor.answers import impatient
from vmkeep.mounts import mount_of
from vmkeep.repository import Repository
from vmkeep.statefiles.location import StateRoots

# The backup API with checkpoints: docs of virDomainBackupBegin, and the incremental backup of QEMU that it needs.
_LEAST_LIBVIRT: Final = (7, 2, 0)
_LEAST_QEMU: Final = (4, 2, 0)
_TOOLS: Final = {"qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "setpriv": "util-linux"}
_LONGEST_SOCKET: Final = "0123456789ab/nbd"
_LIBVIRT_SECONDS: Final = 10.0
_LEAST_BYTES: Final = 1 << 30
_LEAST_SHARE: Final = 0.05
_GROUP_AND_OTHERS_ENTER: Final = 0o011


def check_host(settings: Settings, connect: Callable[[], Hypervisor], request: CheckupRequest) -> tuple[Finding, ...]:
    """Return everything that there is to say of the host and of the VMs asked for. Raises VmNotFound."""
    findings: list[Finding] = []
    operations = leftovers.living_operations(settings, request.operations or ())
    pending = dict(leftovers.pending_restores(settings))
    if not request.vms_only:
        findings += [*_tools(), *_directories(settings), *leftovers.open_to_others(settings)]
        findings += [*leftovers.interrupted_jobs(settings), *pending.values(), *leftovers.stale_locks(settings)]
        findings += [*leftovers.unrecorded_snapshots(settings), *_gate(settings)]
    domains = _look_at_libvirt(settings, connect, request, operations, frozenset(pending), findings)
    if not request.vms_only:
        directories = {*_state_directories(settings), *_file_directories(domains), *map(Path, request.directories)}
        findings += _space(settings, directories)
        if request.operations is not None:
            findings += leftovers.left_files(directories, operations)
            findings += leftovers.left_sockets(settings, operations)
    return tuple(findings)


def _gate(settings: Settings) -> Iterator[Finding]:
    problem = GatePlace(settings).status().problem
    if problem is not None:
        message = f"the gate does not do its work, and VMs start with whatever state they have: {problem}"
        yield Finding(FindingCode.GATE_BROKEN, message, remedy="vmkeep hook install")


def mend(connect: Callable[[], Hypervisor], repository: Callable[[], Repository], order: Mend) -> str:
    """Do what a finding says and return a sentence about it. Raises what stood in the way."""
    match order:
        case RemoveLeft():
            return leftovers.remove_left(order)
        case PutAsideBack():
            return leftovers.put_back(order)
        case RemoveLock():
            return leftovers.remove_lock(order)
        case MakePrivate():
            return leftovers.make_private(order)
        case MergeOverlay():
            hypervisor = connect()
            return merge_astray(hypervisor.domain(order.vm_uuid), hypervisor, order)
        case EndJob() | CloseScratch() | MendCheckpoint():
            hypervisor = connect()
            return mend_vm(hypervisor.domain(order.vm_uuid), hypervisor, order)
        case DefineSecret():
            return put_secret_back(connect(), repository(), order.point, order.pin, order.secret)
        case _:
            raise AssertionError(f"a host cannot mend {order}")


def _look_at_libvirt(
    settings: Settings,
    connect: Callable[[], Hypervisor],
    request: CheckupRequest,
    operations: Operations,
    parked: frozenset[str],
    findings: list[Finding],
) -> tuple[Domain, ...]:
    """Add what there is to say of libvirt and its VMs, also when it falls silent meanwhile; return all VMs."""
    domains: tuple[Domain, ...] = ()
    with impatient(min(_LIBVIRT_SECONDS, settings.stalled_after_seconds)):
        try:
            hypervisor = connect()
            versions = hypervisor.versions()
        except InvalidRequest:
            raise
        except VmkeepError as error:
            findings.append(_libvirt_away(error, settings))
            return domains
        try:
            domains = hypervisor.domains()
            if not request.vms_only:
                findings += [*_versions(*versions), *_settings_of_no_vm(settings, domains)]
                findings += _orphans(hypervisor, settings)
            # One by one, so that what was found before it fell silent is kept.
            for found in _vms(hypervisor, settings, request, operations, domains, parked):
                findings.append(found)
        except HypervisorHangs as error:
            findings.append(_libvirt_away(error, settings))
    return domains


def _libvirt_away(error: VmkeepError, settings: Settings) -> Finding:
    code, remedy = FindingCode.LIBVIRT_UNREACHABLE, "systemctl start libvirtd"
    if isinstance(error, PermissionRefused):
        code, remedy = FindingCode.LIBVIRT_REFUSED, "sudo vmkeep doctor"
    elif isinstance(error, HypervisorHangs):
        # Restarted in the middle of a backup's beginning, libvirtd 9.0 keeps that job: look before.
        remedy = "systemctl status libvirtd"
    return Finding(code, f"{error}; the VMs were not looked at", remedy=remedy, path=settings.uri)


# -- the VMs -----------------------------------------------------------------------------------------------------


def _vms(
    hypervisor: Hypervisor,
    settings: Settings,
    request: CheckupRequest,
    operations: Operations,
    domains: tuple[Domain, ...],
    parked: frozenset[str],
) -> Iterator[Finding]:
    chosen = [hypervisor.domain(name) for name in request.vms] if request.vms else domains
    shared = _shared_images(domains)
    for domain in chosen:
        is_parked = domain.uuid in parked
        yield from check_vm(domain, hypervisor, settings, request, operations, shared=shared, parked=is_parked)


def _settings_of_no_vm(settings: Settings, domains: tuple[Domain, ...]) -> Iterator[Finding]:
    known = {name for domain in domains for name in (domain.name, domain.uuid)}
    path = str(settings.settings_path)
    for name in settings.vms:
        if name not in known:
            message = f"it has settings for a VM {name!r}, which this host has not"
            yield Finding(FindingCode.SETTING_UNUSED, message, remedy=f"Correct [vm] in {path}.", path=path)


def _orphans(hypervisor: Hypervisor, settings: Settings) -> Iterator[Finding]:
    try:
        states, secrets = count_orphans(hypervisor, settings)
    except InvalidRequest:
        return  # not the libvirt of this machine
    told = [f"TPM states and UEFI variables: {states}"] if states else []
    told += [f"secrets of TPMs: {secrets}"] if secrets else []
    if told:
        message = f"state on this host belongs to no VM ({', '.join(told)})"
        yield Finding(FindingCode.ORPHANED_STATE, message, remedy="vmkeep orphans list")


def _shared_images(domains: tuple[Domain, ...]) -> frozenset[str]:
    """Return the paths of images that more than one VM has, running or not."""
    users = Counter(path for domain in domains for path in {*_image_paths(domain)})
    return frozenset(path for path, number in users.items() if number > 1)


def _image_paths(domain: Domain) -> Iterator[str]:
    for definition in _definitions(domain):
        for disk in definition.disks:
            if disk.source is not None and disk.source_kind in (SourceKind.FILE, SourceKind.BLOCK):
                yield disk.source


def _definitions(domain: Domain) -> Iterator[Definition]:
    """Yield the VM's definitions: as it runs, and as it will start."""
    for inactive in (False, True):
        try:
            yield parse_definition(domain.definition_xml(inactive=inactive))
        except (VmkeepError, DefinitionError):
            continue  # gone, or told of by its own look


def _file_directories(domains: tuple[Domain, ...]) -> set[Path]:
    """Return the directories of the VMs' images and state files."""
    paths = {path for domain in domains for path in _image_paths(domain)}
    for domain in domains:
        for definition in _definitions(domain):
            tpm = definition.tpm.source if definition.tpm is not None else None
            paths |= {path for path in (definition.firmware.nvram, tpm) if path is not None}
    return {Path(path).parent for path in paths if path.startswith("/") and not path.startswith("/dev/")}


def _state_directories(settings: Settings) -> Iterator[Path]:
    roots = StateRoots.of(settings.uri)
    yield from (roots.swtpm, roots.nvram, settings.images_dir)
    if settings.scratch_dir is not None:
        yield settings.scratch_dir


# -- the host ----------------------------------------------------------------------------------------------------


def _versions(libvirt: int, qemu: int) -> Iterator[Finding]:
    found, emulator = _version(libvirt), _version(qemu)
    yield Finding(FindingCode.VERSIONS, f"libvirt {_dotted(found)}, QEMU {_dotted(emulator)}")
    if found < _LEAST_LIBVIRT:
        message = f"libvirt {_dotted(found)} is too old: vmkeep needs {_dotted(_LEAST_LIBVIRT)} or newer"
        yield Finding(FindingCode.LIBVIRT_TOO_OLD, message, remedy="apt-get install libvirt-daemon-system")
    if emulator < _LEAST_QEMU:
        message = f"QEMU {_dotted(emulator)} is too old: vmkeep needs {_dotted(_LEAST_QEMU)} or newer"
        yield Finding(FindingCode.QEMU_TOO_OLD, message, remedy="apt-get install qemu-system-x86")


def _version(number: int) -> tuple[int, int, int]:
    return number // 1_000_000, number // 1_000 % 1_000, number % 1_000


def _dotted(version: tuple[int, int, int]) -> str:
    return ".".join(map(str, version))


def _tools() -> Iterator[Finding]:
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            message = f"the program {tool} is not installed"
            yield Finding(FindingCode.TOOL_MISSING, message, remedy=command_line("apt-get install", package), path=tool)


def _directories(settings: Settings) -> Iterator[Finding]:
    yield from _home(settings)
    run_dir = settings.run_dir
    if not _can_be_made(run_dir):
        message = "the directory of the sockets cannot be made or written by this user"
        yield Finding(FindingCode.RUN_DIR_UNUSABLE, message, remedy="sudo vmkeep doctor", path=str(run_dir))
    elif run_dir.is_dir() and os.geteuid() == 0 and not run_dir.stat().st_mode & _GROUP_AND_OTHERS_ENTER:
        message = "QEMU, which runs as another user, cannot enter the directory of the sockets"
        yield Finding(
            FindingCode.RUN_DIR_UNUSABLE, message, remedy=command_line("chmod 711", run_dir), path=str(run_dir)
        )
    length = len(os.fsencode(run_dir / _LONGEST_SOCKET))
    if length > LONGEST_PATH_BYTES:
        message = f"a socket in run_dir would have a path of {length} bytes, and {LONGEST_PATH_BYTES} is the most"
        remedy = f"Set run_dir in {settings.settings_path} to a shorter path"
        yield Finding(FindingCode.SOCKET_PATH_TOO_LONG, message, remedy=remedy, path=str(run_dir))
    scratch_dir = settings.scratch_dir
    if scratch_dir is not None and not (scratch_dir.is_dir() and _usable(scratch_dir)):
        message = "scratch_dir of the settings is not a directory that can be written"
        yield Finding(
            FindingCode.SCRATCH_DIR_UNUSABLE,
            message,
            remedy=command_line("mkdir -p", scratch_dir),
            path=str(scratch_dir),
        )


def _home(settings: Settings) -> Iterator[Finding]:
    """Try whether something could be written to vmkeep's home; nothing stays there."""
    home = settings.home
    if not os.access(home, os.F_OK):
        return
    try:
        require_room(home, HOME_ROOM_BYTES)
    except OF_STORAGE as error:
        message = f"vmkeep's home cannot be written: {error.message}; points can be listed, verified and restored"
        refused = isinstance(error, PermissionRefused) and not os.access(home, os.W_OK) and os.geteuid() != 0
        remedy = "sudo vmkeep doctor" if refused else _home_remedy(error, home)
        yield Finding(FindingCode.HOME_UNUSABLE, message, remedy=remedy, path=str(home))


def _home_remedy(error: VmkeepError, home: Path) -> str:
    if isinstance(error, NoSpace):
        return command_line("df -h", home) + "; " + command_line("df -i", home)
    if isinstance(error, PermissionRefused):
        return command_line("mount -o remount,rw", mount_of(home))
    return "dmesg"


def _usable(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.R_OK | os.W_OK | os.X_OK)


def _can_be_made(directory: Path) -> bool:
    nearest = next((each for each in (directory, *directory.parents) if os.access(each, os.F_OK)), directory)
    return _usable(nearest)


def _space(settings: Settings, directories: set[Path]) -> Iterator[Finding]:
    """Yield a finding for each file system that is nearly full, once."""
    repository = () if "://" in settings.repository else (Path(settings.repository),)
    seen: set[int] = set()
    for directory in (settings.home, *repository, *sorted(directories)):
        try:
            device, about = directory.stat().st_dev, os.statvfs(directory)
        except OSError:
            continue
        free, total = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
        if device in seen or total == 0 or (free >= _LEAST_BYTES and free >= total * _LEAST_SHARE):
            continue
        seen.add(device)
        message = f"only {size_text(free)} of {size_text(total)} are free here"
        yield Finding(FindingCode.SPACE_LOW, message, remedy=command_line("df -h", directory), path=str(directory))
