"""The images that VMs are on: their chains, and who uses which."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from vmkeep.definition import DefinedDisk, Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import VmkeepError, VmNotFound
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.logs import get_logger
from vmkeep.planning.bitmaps import Chain
from vmkeep.transfer.imagefile import describe_image, look_at
from vmkeep.transfer.imagelock import writer_of

_log = get_logger(__name__)
HOST_FILES: Final = (SourceKind.FILE, SourceKind.BLOCK)
"""What a disk can be on that is a file or a device of the host."""


def image_chains(definition: Definition) -> dict[str, Chain]:
    """Return the images of each disk that has some on this host, by target; disks that cannot be read are left out.

    Raises ToolMissing.
    """
    return describe_chains(definition)[0]


def top_images(definition: Definition) -> dict[str, Chain]:
    """Return the top image of each disk that has one on this host, by target: nothing that it names is opened."""
    return _described(definition, lambda disk: (look_at(str(disk.source), disk.image_format),))[0]


def describe_chains(definition: Definition) -> tuple[dict[str, Chain], dict[str, str]]:
    """Return the images of each disk that has some on this host, by target, and why the others could not be read."""
    return _described(definition, lambda disk: describe_image(str(disk.source), disk.image_format))


def _described(
    definition: Definition, describe: Callable[[DefinedDisk], Chain]
) -> tuple[dict[str, Chain], dict[str, str]]:
    chains, unread = {}, {}
    for disk in definition.disks:
        if disk.removable or disk.source is None:
            continue
        if disk.source_kind not in HOST_FILES:
            unread[disk.target] = "it is no file or device of this host"
            continue
        try:
            chains[disk.target] = describe(disk)
        except VmkeepError as error:
            # The plan refuses the disk when its size is not known either; here it only has no bitmaps.
            _log.info("image not described", disk=disk.target, error=error.message)
            unread[disk.target] = error.message
    return chains, unread


def writer_in_chain(chain: Chain) -> str | None:
    """Return what has an image of a VM that is off open for writing: what stands in the image is not all then."""
    return next((writer for layer in chain if (writer := writer_of(layer.path)) is not None), None)


def definitions_of_vms(hypervisor: Hypervisor, *, but: str = "") -> Iterator[tuple[Domain, Definition]]:
    """Yield each VM of this host with its definitions, the present one and that of its next start; ``but`` is a UUID.

    A VM that goes meanwhile is not among them, nor is one whose definition cannot be read: it is a machine of another
    kind. Every other failure is raised, because who asks must not take an image for nobody's.
    """
    for vm in hypervisor.domains():
        if vm.uuid == but:
            continue
        for inactive in (False, True):
            try:
                definition = with_volumes_found(parse_definition(vm.definition_xml(inactive=inactive)), hypervisor)
            except (VmNotFound, DefinitionError):
                continue
            yield vm, definition


def images_of_others(hypervisor: Hypervisor, vm_uuid: str) -> dict[str, str]:
    """Return every image that another VM of this host stands on, by its real path, with that VM's name."""
    used: dict[str, str] = {}
    for vm, definition in definitions_of_vms(hypervisor, but=vm_uuid):
        chains, _ = describe_chains(definition)
        paths = {layer.path for chain in chains.values() for layer in chain}
        paths |= {disk.source for disk in definition.disks if disk.source is not None}
        for path in paths:
            used.setdefault(os.path.realpath(path), vm.name)
    return used


def written_images(hypervisor: Hypervisor) -> dict[str, str]:
    """Return the images that VMs of this host write to, now or after their next start, with the VM's name."""
    return {
        os.path.realpath(disk.source): vm.name
        for vm, definition in definitions_of_vms(hypervisor)
        for disk in definition.disks
        if disk.source is not None and disk.source_kind in HOST_FILES and not disk.readonly
    }
