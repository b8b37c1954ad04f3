"""What stands on the images that the deletion of a snapshot would change or remove.

To delete an external snapshot libvirt writes its overlay into the image below, and removes the overlay. libvirt 9.0
looks at the chain of the VM only (tried): after a revert other images stand on the same ones, those of a branch, and it
destroys them without a word. So it is asked here what does. And libvirt's records are kept such that it refuses by
itself: it deletes no snapshot whose overlay is not in the chain of the VM.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.definition import Definition
from vmkeep.errors import PermissionRefused, SnapshotNeeded
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.images import definitions_of_vms
from vmkeep.host.vm.moments import read_snapshot
from vmkeep.hypervisor import Domain, Hypervisor, snapshots_of
from vmkeep.moments import Snapshot, SnapshotLocation, format_snapshot
from vmkeep.planning.branches import Chain, ImageUser, is_harmed
from vmkeep.transfer.imagefile import OF_AN_IMAGE, names_in_chain

# Magic, version, offset of the backing file's name (QEMU, docs/interop/qcow2.txt).
_HEADER: Final = struct.Struct(">4sIQ")
_MAGIC: Final = b"QFI\xfb"


def refuse_dangerous_deletion(hypervisor: Hypervisor, domain: Domain, names: Collection[str]) -> None:
    """Raise SnapshotNeeded when to delete these snapshots would destroy something else; nothing is changed.

    What is named in ``names`` itself counts for nothing: it is deleted as well. Snapshots in the images themselves, and
    libvirt's record of any, can always go. Raises MomentNotFound and InvalidRequest for a snapshot that is not there or
    cannot be read.
    """
    listed = snapshots_of(domain)
    branches = _Branches(hypervisor, domain)
    for name in names:
        for target, overlay, below in branches.merged(listed.definition(name, secure=True)):
            if branches.skips_images(overlay, below):
                raise SnapshotNeeded(
                    f"snapshot {name!r} of VM {domain.name!r} cannot be deleted: libvirt's record of it names {below} "
                    f"for disk {target}, which is not the image that {overlay} stands on, and libvirt would merge all "
                    "between them",
                    vm=domain.name,
                    disk=target,
                    path=below,
                    hint=f"Put the record right first: `{command_line('vmkeep snapshot repair', domain.name)}`.",
                )
            present = branches.present.get(target, ())
            harmed = branches.harmed(names, os.path.realpath(overlay), below, present)
            forget = command_line("vmkeep snapshot delete", domain.name, name, options="--metadata")
            if harmed:
                what = ", ".join(sorted({user.what for user in harmed}))
                raise SnapshotNeeded(
                    f"snapshot {name!r} of VM {domain.name!r} cannot be deleted: {what} would be destroyed, because "
                    f"{below} would be written to or {overlay} removed",
                    vm=domain.name,
                    disk=target,
                    path=below,
                    hint="Delete what needs it first. libvirt's record of the snapshot alone can be removed at any "
                    f"time: `{forget}`; all images stay then.",
                )
            if present and branches.is_left(overlay, present):
                raise SnapshotNeeded(
                    f"snapshot {name!r} of VM {domain.name!r} cannot be deleted: since a revert the VM is on other "
                    f"images, and {overlay}, which it was on before, is in the way or would be removed",
                    vm=domain.name,
                    disk=target,
                    path=overlay,
                    hint="Delete the image files that the revert left, if nothing needs them, start the VM and delete "
                    f"the snapshot then. Or remove libvirt's record of it only: `{forget}`. All images stay then.",
                )


def guard_branches(hypervisor: Hypervisor, domain: Domain) -> None:
    """Let libvirt's records name overlays with which its own deletions are safe, for the images that the VM is on.

    Where the overlay in the VM's chain can be merged, the snapshot names that one; where something else stands on the
    image below, it names the overlay of that branch. The VM must have no checkpoints listed, or run: libvirt 9.0
    redefines no snapshot of a VM that is off and has some.
    """
    listed, branches = snapshots_of(domain), _Branches(hypervisor, domain)
    current = listed.current()
    for name, xml in listed.definitions(secure=True).items():
        snapshot, _ = read_snapshot(xml, domain)
        safe = {
            target: branches.safe_overlay(name, target, overlay, below)
            for target, overlay, below in branches.merged(xml)
        }
        disks = tuple(replace(disk, source=safe.get(disk.name, disk.source)) for disk in snapshot.disks)
        if disks != snapshot.disks:
            xml = format_snapshot(replace(snapshot, disks=disks), secure=True)
            listed.redefine(name, xml, state=snapshot.state, current=name == current)


class _Branches:
    """The images of one VM, and what stands on them. Each image is looked at once."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        self._hypervisor = hypervisor
        self._domain = domain
        self._known: dict[str, Chain] = {}
        self._users: list[ImageUser] = []
        self._directories: set[Path] = set()
        # Where the two differ, the images that it is on now count.
        defined = list(definitions_of_vms(hypervisor))
        own = [definition for vm, definition in defined if vm.uuid == domain.uuid]
        self.present = {target: chain for each in reversed(own) for target, chain in self._chains(each)}
        self._users += self._of_vms([(vm, definition) for vm, definition in defined if vm.uuid != domain.uuid])
        self._users += self._of_snapshots()

    def merged(self, xml: str) -> list[tuple[str, str, str]]:
        """Return (target, overlay, image below) of the disks that the deletion of an external snapshot merges."""
        snapshot, images = self._images(xml)
        return [
            (disk.name, disk.source, images[disk.name][0])
            for disk in snapshot.disks
            if disk.location is SnapshotLocation.EXTERNAL and disk.source is not None and disk.name in images
        ]

    def skips_images(self, overlay: str, below: str) -> bool:
        """Tell whether other images lie between an overlay and the one that its snapshot's record names."""
        return below in self._chain(overlay, "qcow2")[2:]

    def is_left(self, overlay: str, present: Chain) -> bool:
        """Tell whether an overlay is there that the VM is on no more.

        libvirt 9.0 refuses to delete its snapshot. 11.3 removes it, when nothing descends from the snapshot, and with
        it what the VM was before the revert (seen).
        """
        return os.path.realpath(overlay) not in present and os.path.lexists(overlay)

    def harmed(self, names: Collection[str], overlay: str, below: str, present: Chain) -> list[ImageUser]:
        """Return what the merge of an overlay harms, besides the snapshots of these names."""
        self._look_beside((overlay, below))
        return [
            user
            for user in self._users
            if user.snapshot not in names
            and not (user.is_file and user.chain[0] in (overlay, below))
            and is_harmed(user, overlay, below, present)
        ]

    def safe_overlay(self, name: str, target: str, recorded: str, below: str) -> str:
        """Return the overlay over ``below`` that a snapshot's record should name."""
        present = self.present.get(target, ())
        if below not in present[1:]:
            return recorded
        overlay = present[present.index(below) - 1]
        is_named = os.path.realpath(recorded) == overlay
        harmed = self.harmed((name,), overlay, below, present)
        if not harmed:
            return recorded if is_named else overlay
        chains = [user.chain for user in harmed if below in user.chain[1:]]
        branches = {chain[chain.index(below) - 1] for chain in chains} - {overlay}
        return min(branches) if is_named and branches else recorded

    def _images(self, xml: str) -> tuple[Snapshot, dict[str, Chain]]:
        """Return a snapshot and the images with its state, by target."""
        snapshot, then = read_snapshot(xml, self._domain)
        kept = {disk.name for disk in snapshot.disks if disk.location is not SnapshotLocation.NO}
        return snapshot, {
            disk.target: self._chain(disk.source, disk.image_format)
            for disk in with_volumes_found(then, self._hypervisor).disks
            if disk.target in kept and disk.source is not None
        }

    def _of_snapshots(self) -> Iterator[ImageUser]:
        for name, xml in snapshots_of(self._domain).definitions(secure=True).items():
            snapshot, images = self._images(xml)
            inside = {disk.name for disk in snapshot.disks if disk.location is SnapshotLocation.INTERNAL}
            for target, chain in images.items():
                yield ImageUser(f"snapshot {name}", chain, snapshot=name, inside=target in inside)

    def _of_vms(self, defined: Sequence[tuple[Domain, Definition]]) -> Iterator[ImageUser]:
        for vm, definition in defined:
            for target, chain in self._chains(definition):
                yield ImageUser(f"disk {target} of VM {vm.name}", chain)

    def _look_beside(self, images: Collection[str]) -> None:
        """Learn of the overlays that lie beside images: a revert leaves what the VM was on before."""
        for directory in sorted({Path(image).parent for image in images} - self._directories):
            self._directories.add(directory)
            with _seen(str(directory)), suppress(FileNotFoundError):
                for path in sorted(directory.iterdir()):
                    if path.is_file() and _is_overlay(path):
                        self._users.append(ImageUser(f"image {path}", self._chain(str(path), "qcow2"), is_file=True))

    def _chains(self, definition: Definition) -> Iterator[tuple[str, Chain]]:
        for disk in definition.disks:
            if disk.source is not None and not disk.removable:
                yield disk.target, self._chain(disk.source, disk.image_format)

    def _chain(self, path: str, image_format: str) -> Chain:
        key = f"{image_format}:{path}"
        if key not in self._known:
            try:
                self._known[key] = tuple(map(os.path.realpath, names_in_chain(path, image_format)))
            except PermissionRefused as error:
                raise _unseen(error.path or path) from error
            except OF_AN_IMAGE:
                self._known[key] = (os.path.realpath(path),)  # what it stood on is lost already
        return self._known[key]


@contextmanager
def _seen(path: str) -> Iterator[None]:
    """Raise PermissionRefused where this user may not look: what stands on the images cannot be told then."""
    try:
        yield
    except PermissionError as error:
        raise _unseen(error.filename or path) from error


def _unseen(path: str) -> PermissionRefused:
    return PermissionRefused(
        f"this user may not read {path}, so nobody can tell whether the deletion would destroy something",
        path=path,
        hint="Nothing was changed. Run it as root. libvirt's record alone can be removed with --metadata; all images "
        "stay then.",
    )


def _is_overlay(path: Path) -> bool:
    """Tell whether a file is a qcow2 image with a backing file, from the beginning of its header."""
    try:
        with _seen(str(path)), path.open("rb") as stream:
            magic, _version, backing = _HEADER.unpack(stream.read(_HEADER.size))
            return bool(magic == _MAGIC and backing != 0)
    except (OSError, struct.error):
        return False
