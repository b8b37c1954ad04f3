"""The overlays of a snapshot that libvirt does not list: whether the guest is on them, and the VM put right.

libvirtd that is killed in the middle of a snapshot may leave each disk in one of these:

- QEMU writes to the overlay and libvirt says that the disk is on the image below: the overlay is merged back, while
  the guest runs, and removed;
- libvirt says that the VM runs on the overlay and will be on the image below at its next start: it is defined to be on
  the overlay then as well;
- the VM was stopped meanwhile, and is defined on the image below: when nothing was written to that since, the VM is
  defined to be on the overlay, which holds what its guest wrote last;
- it was started on the image below since: both hold what the guest wrote, and nobody but its owner can choose;
- QEMU has an overlay open that nothing uses, or nobody has: it is removed when it is empty.

Only overlays that the plan of the snapshot names are looked at. One that was there before (``reused``) is not removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.definition import Definition, parse_definition
from vmkeep.definition.repointing import Placed, restand
from vmkeep.errors import VmBusy, WritesAstray
from vmkeep.filesystem import file_error, make_private_file, sync_directory
from vmkeep.host.records.snapshot import KeptOverlay, SnapshotRecord
from vmkeep.host.vm.astray import refuse_lost
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.merging import merge_overlay, remove_closed
from vmkeep.host.vm.openimages import OpenImages, open_images
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.transfer.imagefile import describe_image, holds_data
from vmkeep.transfer.imagelock import writer_of
from vmkeep.values import dataclass

_MERGED: Final = "merged-"
_HEADER_BYTES: Final = 4096


def settle_overlays(
    hypervisor: Hypervisor, domain: Domain, keepsake: SnapshotRecord, place: Path, stop: Callable[[], None]
) -> tuple[str, ...]:
    """Put the disks right, and return sentences about what was done. The caller holds the VM's lock.

    Raises WritesAstray for what only the VM's owner can decide, VmBusy, HypervisorError; what was done stays done, and
    the next call goes on.
    """
    if not keepsake.overlays:
        return ()
    settling = _Settling(hypervisor, domain, keepsake, place, stop)
    run = domain.state().run
    if run is RunState.OTHER or domain.has_job():
        raise VmBusy(f"libvirt is at another operation on VM {domain.name!r}", vm=domain.name)
    if run is not RunState.OFF:
        return settling.running()
    refuse_lost(domain)
    return settling.stopped()


@dataclass(frozen=True, slots=True)
class _Settling:
    hypervisor: Hypervisor
    domain: Domain
    keepsake: SnapshotRecord
    place: Path
    stop: Callable[[], None]

    def running(self) -> tuple[str, ...]:
        opened = open_images(self.domain.name, self.domain.uuid, self.hypervisor.uri)
        if opened is None:
            return ()  # nothing can be told of it here
        live, next_time = self._definition(), self._next_definition()
        told: list[str] = []
        moved: list[KeptOverlay] = []
        for disk in self.keepsake.overlays:
            source = _source(live, disk.target)
            if source is None:
                continue
            if _same(source, disk.overlay):
                if next_time is not None and _is_on(next_time, disk.target, disk.image):
                    moved.append(disk)
            elif _same(source, disk.image):
                told += self._of_running(disk, opened)
        return (*told, *self._define_on(moved, "runs on"))

    def _of_running(self, disk: KeptOverlay, opened: OpenImages) -> list[str]:
        """Settle a disk that libvirt says is on the image below."""
        if opened.has(disk.overlay):
            merge_overlay(
                self.domain,
                disk.target,
                disk.image,
                disk.overlay,
                uri=self.hypervisor.uri,
                stop=self.stop,
                merged=lambda: self._mark(disk),
            )
            merged = self._marker(disk).exists()
            self._dispose(disk)
            if not merged:
                return []  # nothing used it
            told = f"disk {disk.target} was on {disk.overlay}, of which libvirt did not know: "
            return [f"{told}it was merged into {disk.image} while the VM ran"]
        self._dispose(disk)
        return []

    def stopped(self) -> tuple[str, ...]:
        moved = []
        definition = self._definition()
        for disk in self.keepsake.overlays:
            if not _is_on(definition, disk.target, disk.image) or not Path(disk.overlay).exists():
                continue
            if not self._is_empty(disk) and _written(disk.overlay) >= _written(disk.image):
                moved.append(disk)
            else:
                self._dispose(disk)
        return self._define_on(moved, "was on")

    def _dispose(self, disk: KeptOverlay) -> None:
        """Remove an overlay that nobody has open and that holds nothing of its own. Raises WritesAstray for data."""
        if not Path(disk.overlay).exists():
            return
        if not self._is_empty(disk):
            raise WritesAstray(
                f"disk {disk.target}: the guest wrote to {disk.overlay} before the VM was stopped, and was started on "
                f"{disk.image} since: each holds what the other one lacks",
                vm=self.domain.name,
                disk=disk.target,
                path=disk.overlay,
                hint=f"`{command_line('qemu-nbd --read-only', disk.overlay)}` shows what it holds. When nothing of it "
                f"is needed any more: `{command_line('rm --', disk.overlay)}`.",
            )
        if (writer := writer_of(disk.overlay)) is not None:
            raise VmBusy(f"{disk.overlay} is written to by {writer}", vm=self.domain.name, path=disk.overlay)
        self._remove(disk)

    def _is_empty(self, disk: KeptOverlay) -> bool:
        """Return whether all that the overlay holds is in the image below as well."""
        return self._marker(disk).exists() or not _has_data(disk.overlay)

    def _remove(self, disk: KeptOverlay) -> None:
        if self.keepsake.reused:
            return
        remove_closed(self.domain, disk.overlay, self.hypervisor.uri)

    def _marker(self, disk: KeptOverlay) -> Path:
        return self.place / f"{_MERGED}{disk.target}"

    def _mark(self, disk: KeptOverlay) -> None:
        """Note durably that the image holds all of the overlay."""
        try:
            make_private_file(self._marker(disk))
            sync_directory(self.place)
        except OSError as error:
            raise file_error(error, self._marker(disk)) from error

    def _define_on(self, moved: list[KeptOverlay], verb: str) -> tuple[str, ...]:
        """Define the VM to be on these overlays at its next start."""
        if not moved:
            return ()
        xml = self.domain.definition_xml(inactive=True, secure=True)
        for disk in moved:
            xml = restand(xml, disk.target, Placed(disk.overlay, disk.overlay_format))
        self.hypervisor.define(xml, self.domain.name)
        return tuple(
            f"the VM {verb} {disk.overlay} (disk {disk.target}), and would have been started on {disk.image}: it is "
            "defined to be on the former now"
            for disk in moved
        )

    def _definition(self) -> Definition:
        return with_volumes_found(parse_definition(self.domain.definition_xml()), self.hypervisor)

    def _next_definition(self) -> Definition | None:
        if not self.domain.is_persistent():
            return None
        return with_volumes_found(parse_definition(self.domain.definition_xml(inactive=True)), self.hypervisor)


def _source(definition: Definition, target: str) -> str | None:
    disk = definition.disk(target)
    return None if disk is None else disk.source


def _is_on(definition: Definition, target: str, image: str) -> bool:
    source = _source(definition, target)
    return source is not None and _same(source, image)


def _has_data(overlay: str) -> bool:
    try:
        with Path(overlay).open("rb") as stream:
            if not any(stream.read(_HEADER_BYTES)):
                return False  # made and not formatted yet; nothing is written to one before it is
    except OSError as error:
        raise file_error(error, Path(overlay)) from error
    (top,) = describe_image(overlay, "qcow2", chain=False)
    return holds_data(top)


def _written(path: str) -> float:
    return Path(path).stat().st_mtime


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
