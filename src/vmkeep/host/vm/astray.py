"""A running VM whose QEMU writes to other images than libvirt says: what it writes is in no point, and lost at its end.

libvirtd that is killed between QEMU's change of an image (a snapshot, the end of a commit or copy) and its own record
of it leaves this, whoever asked for the change. It then shows the image below, and lists no snapshot. QEMU 7.2 with
libvirt 9.0 and 10.0 with 11.3 were seen so.

A disk is called astray when QEMU has its image

- not open at all, or
- not open for writing, and open for writing an image that no disk of the definition is on.

An image that is open for reading only is not enough: QEMU opens those of a VM that was started from a memory, or
migrated in, for writing when the VM goes on. Disks on which a block job works are left out, and it is looked twice,
because a pivot changes both things one after the other.

A VM is called lost when libvirt says that it is off and its QEMU runs. libvirt 9.0 leaves that when libvirtd is killed
in the pivot of a block job: it writes a record of the running VM then that it cannot read at its next start ("unknown
mirror job type").
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmkeep.commandline import command_line
from vmkeep.config import Settings
from vmkeep.definition import Definition, SourceKind, parse_definition
from vmkeep.errors import HypervisorError, VmkeepError, VmNotFound, WritesAstray
from vmkeep.host.records.unended import keepsakes
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.openimages import OpenImage, OpenImages, file_id, open_images
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.transfer.imagefile import describe_image

if TYPE_CHECKING:
    from vmkeep.host.records.snapshot import SnapshotRecord
from vmkeep.values import dataclass

_QCOW2: Final = b"QFI\xfb"
# Where memory of a guest may be a file; hugetlbfs is mounted where the distribution likes it.
_MEMORY: Final = ("/memfd:", "/dev/shm/", "/dev/hugepages", "/libvirt/qemu/ram/")  # noqa: S108  nothing is made there
# A QEMU whose VM libvirt has just called off closes its images within milliseconds.
_ENDING_SECONDS: Final = 0.5
_STEP_SECONDS: Final = 0.05
LOST_REMEDY: Final = (
    "libvirt could not read its record of the running VM when libvirtd was started. Do not start the VM: see "
    "writes-astray in docs/operations.md for how libvirt gets it back."
)


@dataclass(frozen=True, slots=True)
class AstrayDisk:
    """A disk of which QEMU does not write to ``image``, which the definition names.

    ``overlay`` is what it writes to when that stands on ``image``. ``written`` are all images that it writes to and
    that no disk of the definition is on.
    """

    target: str
    image: str
    image_format: str
    overlay: str | None
    written: tuple[str, ...] = ()

    def __str__(self) -> str:
        others = self.overlay or ", ".join(self.written)
        if not others:
            return f"disk {self.target}: libvirt says that it is on {self.image}, which QEMU does not have open"
        return f"disk {self.target}: QEMU writes to {others}, and libvirt says that it is on {self.image}"


def astray_disks(domain: Domain, definition: Definition, hypervisor: Hypervisor) -> tuple[AstrayDisk, ...]:
    """Return the disks of a running VM that are astray; ``definition`` is its live one, with volumes found.

    None are told of where QEMU's files cannot be seen (``open_images``).
    """
    first = _look(domain, definition, hypervisor)
    if not first:
        return ()
    try:
        busy = domain.block_jobs()
        again = with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
        second = _look(domain, again, hypervisor)
    except VmNotFound:
        return ()  # it ended
    except HypervisorError:
        if domain.state().run is not RunState.OFF:
            raise  # whether it is astray is not known then, and that must not pass for being right
        return ()
    return tuple(disk for disk in second if disk in first and disk.target not in busy)


def refuse_astray(
    domain: Domain, definition: Definition, hypervisor: Hypervisor, settings: Settings, *, besides: str = ""
) -> None:
    """Raise WritesAstray when QEMU of a running VM writes to other images than libvirt says.

    ``besides`` is an operation whose own snapshot is under way.
    """
    astray = astray_disks(domain, definition, hypervisor)
    if astray:
        fix = command_line("vmkeep doctor", options="--fix")
        raise WritesAstray(
            "; ".join(map(str, astray)),
            vm=domain.name,
            disk=astray[0].target,
            path=astray[0].overlay or astray[0].image,
            hint=f"Nothing was changed. `{fix}` merges the overlay back while the VM runs. Do not stop the VM before."
            if all(disk.overlay is not None for disk in astray)
            else "Nothing was changed. Before the VM is stopped, read `vmkeep doctor` and docs/operations.md "
            "(writes-astray).",
        )
    _refuse_unsettled(domain, definition, hypervisor, settings, besides)


def lost_vm(domain: Domain) -> str | None:
    """Return, for people, that libvirt says that the VM is off while its QEMU runs; None when that is not so."""
    opened = open_images(domain.name, domain.uuid, domain.uri)
    deadline = time.monotonic() + _ENDING_SECONDS
    while opened is not None and time.monotonic() < deadline:  # it may be ending just now
        if domain.state().run is not RunState.OFF:
            return None
        time.sleep(_STEP_SECONDS)
        opened = open_images(domain.name, domain.uuid, domain.uri)
    if opened is None or domain.state().run is not RunState.OFF:
        return None
    written = sorted({image.path for image in opened.images if image.writable and image.readable})
    return (
        f"libvirt says that VM {domain.name!r} is off, and its QEMU (process {opened.process}) runs and may write to "
        f"{', '.join(written)}"
    )


def refuse_lost(domain: Domain) -> None:
    """Raise WritesAstray when libvirt says that the VM is off and its QEMU runs: its images are no state of it."""
    lost = lost_vm(domain)
    if lost is not None:
        raise WritesAstray(lost, vm=domain.name, hint=f"Nothing was changed. {LOST_REMEDY}")


def _refuse_unsettled(
    domain: Domain, definition: Definition, hypervisor: Hypervisor, settings: Settings, besides: str
) -> None:
    """Refuse while QEMU has an overlay of an interrupted snapshot of ours open that libvirt does not know.

    While such a one is merged QEMU writes to the image below it as well, so that it does not look astray.
    """
    for kept in _unsettled(domain.uuid, settings, besides):
        named = {disk.source for disk in definition.disks}
        opened = open_images(domain.name, domain.uuid, hypervisor.uri)
        for overlay in kept.overlays:
            if opened is not None and overlay.overlay not in named and opened.writes(overlay.overlay):
                raise WritesAstray(
                    f"disk {overlay.target}: an interrupted snapshot ({kept.name}) left QEMU with {overlay.overlay}, "
                    "which libvirt does not know of",
                    vm=domain.name,
                    disk=overlay.target,
                    path=overlay.overlay,
                )


def _unsettled(vm_uuid: str, settings: Settings, besides: str) -> Iterator[SnapshotRecord]:
    for place in keepsakes(settings.snapshots_dir):
        if place.name == besides:
            continue
        from vmkeep.host.records.snapshot import SnapshotRecord  # for a rare case

        try:
            kept = SnapshotRecord.load(place)
        except (OSError, ValueError):
            continue  # told of by doctor
        if kept.vm_uuid == vm_uuid:
            yield kept


def _look(domain: Domain, definition: Definition, hypervisor: Hypervisor) -> tuple[AstrayDisk, ...]:
    if domain.state().run not in (RunState.RUNNING, RunState.PAUSED):
        return ()
    opened = open_images(domain.name, domain.uuid, hypervisor.uri)
    return () if opened is None else compare(definition, opened)


def compare(definition: Definition, opened: OpenImages) -> tuple[AstrayDisk, ...]:
    """Return the disks that are astray by what QEMU has open."""
    suspects = []
    for disk in definition.disks:
        if disk.removable or disk.readonly or disk.source is None:
            continue
        if disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK) or opened.writes(disk.source):
            continue
        suspects.append((disk, disk.source))
    if not suspects:
        return ()
    strangers = tuple(_strangers(definition, opened))
    found = []
    for disk, source in suspects:
        overlay = _overlay_of(source, strangers)
        if strangers or not opened.has(source):
            written = _below(source, disk.image_format, strangers) or {image.path for image in strangers}
            found.append(AstrayDisk(disk.target, source, disk.image_format, overlay, tuple(sorted(written))))
    return tuple(found)


def _below(source: str, image_format: str, strangers: Collection[OpenImage]) -> set[str]:
    """Return those that ``source`` stands on: after a commit and its pivot QEMU writes to that, and to no other.

    Others may be open for writing as well, where commits of other disks are under way.
    """
    with suppress(VmkeepError):
        below = {file_id(layer.path) for layer in describe_image(source, image_format)[1:]}
        return {image.path for image in strangers if image.file_id in below}
    return set()


def _strangers(definition: Definition, opened: OpenImages) -> Iterator[OpenImage]:
    """Yield the images open for writing that no disk of the definition is on."""
    named = {file_id(disk.source) for disk in definition.disks if disk.source is not None}
    if definition.firmware.nvram is not None:
        named.add(file_id(definition.firmware.nvram))
    for image in opened.images:
        stranger = image.writable and image.readable and image.file_id not in named
        if stranger and not any(part in image.path for part in _MEMORY):
            yield image


def _is_qcow2(image: OpenImage) -> bool:
    try:
        with Path(image.way).open("rb") as stream:
            return stream.read(len(_QCOW2)) == _QCOW2
    except OSError:
        return False


def _overlay_of(source: str, strangers: Collection[OpenImage]) -> str | None:
    """Return the image that stands on ``source``, or on others that do, and that nothing stands on."""
    wanted = file_id(source)
    best: tuple[int, str] | None = None
    for image in filter(_is_qcow2, strangers):
        try:
            below = [file_id(layer.path) for layer in describe_image(image.path, "qcow2")[1:]]
        except VmkeepError:
            continue
        if wanted in below and (best is None or below.index(wanted) > best[0]):
            best = (below.index(wanted), image.path)
    return None if best is None else best[1]
