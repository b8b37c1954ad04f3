"""Where the files of a restore may land: in folders that this host lets images be in, never where only a point says.

A point says where its VM's disks were. On the host that took it, that is where they belong; of a point that another
made it is a text that somebody wrote, and root would make files with content of his choice there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vmkeep.commandline import command_line, shell_word
from vmkeep.config import Settings
from vmkeep.definition import Definition, SourceKind
from vmkeep.errors import ChoiceRequired, HostFileMissing, IntegrityError, TargetExists
from vmkeep.filesystem import file_error
from vmkeep.host.restores.reach import OwnVm
from vmkeep.host.tasks.restores import DeliveredItem, HostParts, PrepareVm
from vmkeep.host.vm.images import definitions_of_vms
from vmkeep.hypervisor import Hypervisor
from vmkeep.paths import ForeignLink, open_directory
from vmkeep.repository import PointDisk, PointRecord
from vmkeep.statefiles.installation import foreign_link
from vmkeep.statefiles.location import StateRoots

_LIBVIRT_IMAGES: Final = Path("/var/lib/libvirt/images")
_SESSION_IMAGES: Final = Path("~/.local/share/libvirt/images")
_IMAGE_ENDINGS: Final = frozenset({".qcow2", ".img", ".raw", ".qcow", ".qed", ".vmdk", ".vdi", ".vhd", ".vhdx"})


def below(folder: Path, name: str) -> Path:
    """Return a place directly in a folder. Raises IntegrityError for a name that leads elsewhere."""
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise IntegrityError(
            f"{name!r} cannot be the name of a file in {folder}",
            path=str(folder),
            hint="Nothing was written. The point was not made by vmkeep as it stands, or --as names no VM.",
        )
    return folder / name


def disk_place(
    disk: PointDisk, request: PrepareVm, record: PointRecord, settings: Settings, hypervisor: Hypervisor
) -> Path:
    """Return where a disk goes: its own path for the original's name, a path of the new name otherwise.

    What was a device or a network disk becomes a file where images go. Raises ChoiceRequired for a folder that this
    host does not let images be in, HostFileMissing for one that is not there.
    """
    trusted = request.host_parts == HostParts.TRUSTED
    extension = image_format(disk)
    own = Path(os.path.normpath(disk.source))
    if not disk.source.startswith("/") or own.is_relative_to("/dev"):
        own = below(settings.images_dir, f"{record.vm_name}-{disk.target}.{extension}")
    if request.disks_dir is not None:
        folder = Path(request.disks_dir).absolute()
    else:
        folder = own.parent
        if not trusted and not _lets_images_in(folder, settings, hypervisor):
            raise _not_let_in(disk, record, request, folder)
    require_folder(folder, disk.target, request.name)
    # A name of the point's choice is an image's, or none at all: what reads a folder goes by names.
    if request.name == record.vm_name and (trusted or _is_image_name(own.name)):
        return below(folder, own.name)
    return below(folder, f"{request.name}-{disk.target}.{extension}")


def variables_place(original: Definition, name: str, roots: StateRoots, own_vm: OwnVm | None) -> Path:
    """Return the file for the UEFI variables: in libvirt's folder, or in that which the VM of that UUID here has.

    A definition with automatic firmware names no file (libvirt 9.0 leaves it out while the VM is off; 11.3 keeps it
    from the first start on); libvirt then takes the default, and keeps a file that is there.
    """
    default = below(roots.nvram, roots.nvram_file(name).name)
    nvram = None if own_vm is None else own_vm.definition.firmware.nvram
    if nvram is None or original.firmware.nvram is None or not Path(nvram).is_absolute():
        return default
    here = Path(nvram)
    if here.parent == roots.nvram or not here.parent.is_dir():
        return default
    return below(here.parent, default.name)


def refuse_images_of_vms(items: Collection[DeliveredItem], hypervisor: Hypervisor) -> None:
    """Raise TargetExists for a file that a VM of this host has as its disk: --force is for files, never for a VM."""
    there = {os.path.realpath(item.final): item for item in items if os.path.lexists(item.final)}
    for image, vm in _images_of_vms(hypervisor) if there else ():
        if os.path.realpath(image) in there:
            raise TargetExists(
                f"{image} is a disk of VM {vm!r}",
                vm=vm,
                path=str(image),
                hint="Nothing was written. Choose another directory with --disks-dir, or another name with --as.",
            )


def image_format(disk: PointDisk) -> str:
    """Return the format of a restored VM's image: raw stays raw, all else becomes qcow2.

    A raw disk may have to stay raw: libvirt lets VMs share no other one.
    """
    return "raw" if disk.format == "raw" else "qcow2"


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in _IMAGE_ENDINGS


def require_folder(folder: Path, target: str, vm: str) -> None:
    """Raise HostFileMissing for a folder that is not there, and what keeps root from writing into it."""
    if not folder.is_dir():
        raise HostFileMissing(
            f"the directory {folder} for disk {target} does not exist",
            vm=vm,
            disk=target,
            path=str(folder),
            hint="Make it, or choose another one with --disks-dir DIR.",
        )
    try:
        os.close(open_directory(folder))
    except ForeignLink as error:
        raise foreign_link(folder, error) from error
    except OSError as error:
        raise file_error(error, folder, "used") from error


def _not_let_in(disk: PointDisk, record: PointRecord, request: PrepareVm, folder: Path) -> ChoiceRequired:
    command = command_line("vmkeep restore", record.id, options=f"--as {shell_word(request.name)} --disks-dir DIR")
    return ChoiceRequired(
        f"the point wants disk {disk.target} in {folder}, where this host keeps no images",
        vm=request.name,
        disk=disk.target,
        path=str(folder),
        hint=f"Choose the directory yourself, also if it shall be {folder}: `{command}`. Known are the images "
        "directory, active storage pools, and where VMs of this host have their disks.",
    )


# -- what this host lets images be in ----------------------------------------------------------------------------


def _lets_images_in(folder: Path, settings: Settings, hypervisor: Hypervisor) -> bool:
    """Return whether a folder is one for images, by its true place: links on the way count for nothing."""
    true = Path(os.path.realpath(folder))
    if any(_holds(top, true) for top in _tops(settings, hypervisor)):
        return True
    return any(Path(os.path.realpath(image.parent)) == true for image, _ in _images_of_vms(hypervisor))


def _tops(settings: Settings, hypervisor: Hypervisor) -> Iterator[Path]:
    """Return the folders in which, and below which, images may be."""
    yield settings.images_dir
    if urlsplit(hypervisor.uri).path.rstrip("/").endswith("session"):
        yield _SESSION_IMAGES.expanduser()
    else:
        yield _LIBVIRT_IMAGES
    yield from map(Path, hypervisor.pool_folders())


def _holds(top: Path, true: Path) -> bool:
    place = Path(os.path.realpath(top))
    if place == Path("/") or not true.is_relative_to(place):
        return False
    return not any(part.startswith(".") for part in true.relative_to(place).parts)


def _images_of_vms(hypervisor: Hypervisor) -> Iterator[tuple[Path, str]]:
    """Return the images that VMs of this host have, with the VM's name."""
    for vm, definition in definitions_of_vms(hypervisor):
        for disk in definition.disks:
            if disk.source_kind is SourceKind.FILE and disk.source and not disk.removable:
                yield Path(disk.source), vm.name
