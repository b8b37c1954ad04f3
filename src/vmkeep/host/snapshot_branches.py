"""What stands on the images that the deletion of a snapshot would change or remove.

To delete an external snapshot libvirt writes its overlay into the image below, and removes the overlay. libvirt 9.0
looks at the chain of the VM only (tried): after a revert other images stand on the same ones, those of a branch, and it
destroys them without a word. So it is asked here what does.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkeep.definition import DefinitionError, parse_definition
from vmkeep.errors import SnapshotNeeded, VmkeepError
from vmkeep.host.preparation import with_volumes_found
from vmkeep.host.snapshot_choice import read_snapshot
from vmkeep.hypervisor import Domain, Hypervisor, Reversion
from vmkeep.moments import SnapshotLocation
from vmkeep.transfer.imagefile import describe_image

_MAGIC: Final = b"QFI\xfb"


@dataclass(frozen=True, slots=True)
class ImageUser:
    """Something that needs an image as it is, and the images of its chain, the top one first."""

    what: str
    chain: tuple[str, ...]


def refuse_dangerous_deletion(hypervisor: Hypervisor, domain: Domain, names: Collection[str]) -> None:
    """Raise SnapshotNeeded when to delete these snapshots would destroy something else; nothing is changed.

    What is named in ``names`` itself counts for nothing: it is deleted as well. Snapshots in the images themselves, and
    libvirt's record of any, can always go. Raises MomentNotFound and InvalidRequest for a snapshot that is not there or
    cannot be read.
    """
    reversion = Reversion(domain)
    merged: list[tuple[str, str, str, str]] = []
    for name in names:
        snapshot, then = read_snapshot(reversion.snapshot_xml(name), domain)
        known = {disk.target: disk.source for disk in with_volumes_found(then, hypervisor).disks}
        for disk in snapshot.disks:
            below = known.get(disk.name)
            if disk.location is SnapshotLocation.EXTERNAL and disk.source is not None and below is not None:
                merged.append((name, disk.name, os.path.realpath(disk.source), os.path.realpath(below)))
    if not merged:
        return
    present = _present_chains(hypervisor, domain)
    users = [*_other_snapshots(hypervisor, domain, names), *_other_vms(hypervisor, domain)]
    users += _files_beside({path for _, _, overlay, below in merged for path in (overlay, below)})
    for name, target, overlay, below in merged:
        harmed = sorted({user.what for user in users if is_harmed(user, overlay, below, present.get(target, ()))})
        if harmed:
            raise SnapshotNeeded(
                f"snapshot {name!r} of VM {domain.name!r} cannot be deleted: {', '.join(harmed)} would be destroyed, "
                f"because {below} would be written to or {overlay} removed",
                vm=domain.name,
                disk=target,
                path=below,
                hint="Delete what needs it first. libvirt's record of the snapshot alone can be removed at any time: "
                f"`virsh snapshot-delete {domain.name} {name} --metadata`; all images stay then.",
            )


def is_harmed(user: ImageUser, overlay: str, below: str, present: tuple[str, ...]) -> bool:
    """Tell whether something that needs the images of its chain loses one of them.

    In the chain that the VM is on, libvirt writes the overlay into the image below: what stands on the overlay there
    is told of that, and so is a snapshot whose state is the overlay's. Elsewhere it can only remove the overlay.
    """
    top = user.chain[0]
    if overlay not in present:
        return overlay in user.chain
    if top in present:
        return top == below
    return overlay in user.chain or below in user.chain


def _present_chains(hypervisor: Hypervisor, domain: Domain) -> dict[str, tuple[str, ...]]:
    return {target: chain for inactive in (True, False) for target, chain in _chains(hypervisor, domain, inactive)}


def _chains(hypervisor: Hypervisor, domain: Domain, inactive: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    with suppress(VmkeepError, DefinitionError):  # gone just now, or a machine of another kind
        definition = with_volumes_found(parse_definition(domain.definition_xml(inactive=inactive)), hypervisor)
        for disk in definition.disks:
            if disk.source is not None and not disk.removable:
                yield disk.target, _chain(disk.source, disk.image_format)


def _other_vms(hypervisor: Hypervisor, domain: Domain) -> Iterator[ImageUser]:
    for vm in hypervisor.domains():
        if vm.uuid != domain.uuid:
            for inactive in (True, False):
                for target, chain in _chains(hypervisor, vm, inactive):
                    yield ImageUser(f"disk {target} of VM {vm.name}", chain)


def _other_snapshots(hypervisor: Hypervisor, domain: Domain, names: Collection[str]) -> Iterator[ImageUser]:
    for name, xml in Reversion(domain).snapshots().items():
        if name in names:
            continue
        snapshot, then = read_snapshot(xml, domain)
        kept = {disk.name for disk in snapshot.disks if disk.location is not SnapshotLocation.NO}
        for disk in with_volumes_found(then, hypervisor).disks:
            if disk.target in kept and disk.source is not None:
                yield ImageUser(f"snapshot {name}", _chain(disk.source, disk.image_format))


def _files_beside(images: Collection[str]) -> Iterator[ImageUser]:
    """Yield the qcow2 files beside the images that stand on one of them: a revert leaves what the VM was on before."""
    for directory in sorted({Path(image).parent for image in images}):
        with suppress(OSError):
            for path in sorted(directory.iterdir()):
                if path.is_file() and str(path) not in images and _is_qcow2(path):
                    chain = _chain(str(path), "qcow2")
                    if set(images).intersection(chain):
                        yield ImageUser(f"image {path}", chain)


def _is_qcow2(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _chain(path: str, image_format: str) -> tuple[str, ...]:
    try:
        return tuple(os.path.realpath(layer.path) for layer in describe_image(path, image_format))
    except VmkeepError:
        return (os.path.realpath(path),)  # what it stood on is lost already
