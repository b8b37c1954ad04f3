"""The definition of a VM as libvirt has it, and what is kept of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmkeep.definition import DefinedDisk, Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import HypervisorError, InvalidRequest
from vmkeep.host.vm.keys import secret_of
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.planning.images import ImageLayer


def with_volumes_found(live: Definition, hypervisor: Hypervisor) -> Definition:
    """Return the definition with the path of each disk that is a volume of an active storage pool."""
    disks = tuple(_volume_found(disk, hypervisor) for disk in live.disks)
    return replace(live, disks=disks)


def _volume_found(disk: DefinedDisk, hypervisor: Hypervisor) -> DefinedDisk:
    if disk.source_kind is not SourceKind.VOLUME or disk.source is None:
        return disk
    pool, _, volume = disk.source.partition("/")
    found = hypervisor.volume_path(pool, volume)
    if found is None:
        return disk
    path, is_block = found
    return replace(disk, source_kind=SourceKind.BLOCK if is_block else SourceKind.FILE, source=path)


def with_overlays_dropped(live: Definition, chains: Mapping[str, Sequence[ImageLayer]]) -> Definition:
    """Return the definition of a running VM with each transient disk as it will be when the VM stops.

    While it runs, libvirt names the overlay that QEMU writes to, and drops that overlay at the end.
    """
    disks = []
    for disk in live.disks:
        below = chains.get(disk.target, ())[1:2]
        if disk.transient and below:
            disk = replace(disk, source=below[0].path, format=below[0].format)
        disks.append(disk)
    return replace(live, disks=tuple(disks))


def definition_to_keep(
    domain: Domain, live: Definition, live_xml: str, hypervisor: Hypervisor
) -> tuple[str, list[str]]:
    """Return the definition that a restore makes, and warnings: the persistent one unless its disks are others."""
    if not domain.is_persistent():
        return live_xml, []
    inactive_xml = domain.definition_xml(inactive=True, secure=True)
    inactive = with_volumes_found(parse_definition(inactive_xml), hypervisor)
    kept = {(disk.target, disk.source, secret_of(disk)) for disk in inactive.disks if not disk.removable}
    runs = {(disk.target, disk.source, secret_of(disk)) for disk in live.disks if not disk.removable}
    if kept == runs:
        return inactive_xml, []
    return live_xml, ["The VM runs with other disks than its persistent definition has; the point keeps it as it runs."]


def definition_of(domain: Domain, hypervisor: Hypervisor) -> Definition:
    """Return the VM's definition as it stands, with its volumes found. Raises HypervisorError."""
    try:
        return with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
    except DefinitionError as error:
        raise HypervisorError(f"the definition of the VM cannot be read: {error}", vm=domain.name) from error


def read_definition(xml: str, domain: Domain) -> Definition:
    """Return the definition; raises InvalidRequest when it cannot be read."""
    try:
        return parse_definition(xml)
    except DefinitionError as error:
        raise InvalidRequest(f"the definition of VM {domain.name!r} cannot be read: {error}", vm=domain.name) from error
