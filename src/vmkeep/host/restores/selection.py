"""What of a point goes back over its VM: disks, UEFI variables and TPM together, or what was asked for.

Everything that forbids a restore in place is found here, before anything is changed. Where the parts end up of
different times, a warning says what that risks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.definition import DefinedDisk, Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import DiskUnsupported, HostFileMissing, InvalidRequest, StateUnsupported
from vmkeep.host.vm.keys import secret_of
from vmkeep.host.vm.states import ChosenState, StateSource, chosen_state
from vmkeep.repository import PointDisk, PointRecord
from vmkeep.transfer.imagefile import describe_image
from vmkeep.transfer.images import LUKS
from vmkeep.values import dataclass

DISKS: Final = "disks"
STATE: Final = "state"
STATE_KINDS: Final = ("nvram", "tpm")
KEEP_TPM: Final = "keep"
TPM_ALONE: Final = (
    "The TPM goes back and the disks stay: its counters are those of then, and what was sealed to it since then is "
    "lost. A disk sealed to it may ask for its recovery key."
)
VARIABLES_ALONE: Final = (
    "The UEFI variables go back and the TPM stays: keys that it binds to measurements of them may not open."
)
_MADE_FORMATS: Final = ("qcow2", "raw", LUKS)
NAMES: Final[Mapping[str, str]] = {"tpm": "TPM", "nvram": "UEFI variables"}


@dataclass(frozen=True, slots=True)
class ImageOnHost:
    """The image of a disk of the VM as it is now. ``size_bytes`` None: the file is not there.

    ``encrypted_below``: an image that it stands on is encrypted.
    """

    path: str
    format: str
    size_bytes: int | None
    block: bool
    data_file: bool = False
    encrypted_below: bool = False


@dataclass(frozen=True, slots=True)
class ChosenDisk:
    """A disk that goes back; ``made``: its image is made anew, as the one there is missing or of another size.

    ``secret`` names what opens it when it is encrypted.
    """

    target: str
    image: ImageOnHost
    made: bool
    secret: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What goes back. ``missing``: disks of the VM, chosen or not, whose image is gone."""

    disks: tuple[ChosenDisk, ...]
    states: tuple[ChosenState, ...]
    whole: bool
    missing: tuple[str, ...]
    warnings: tuple[str, ...]


def look_at_images(definition: Definition) -> dict[str, ImageOnHost]:
    """Return the images of the VM's disks on this host, by target; volumes must have been found already.

    A file that is not there is an answer. Raises HostFileMissing for a device or backing file that is not there, and
    what ``describe_image`` raises for an image that cannot be read.
    """
    found = {}
    for disk in definition.disks:
        if disk.removable or disk.source is None or disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
            continue
        block = disk.source_kind is SourceKind.BLOCK
        image_format = disk.image_format
        try:
            top, *below = describe_image(disk.source, image_format)
        except HostFileMissing as error:
            if block or error.path != os.path.normpath(disk.source):
                raise
            found[disk.target] = ImageOnHost(disk.source, image_format, None, block)
            continue
        found[disk.target] = ImageOnHost(
            disk.source,
            image_format,
            top.size_bytes,
            block,
            data_file=top.data_file is not None,
            encrypted_below=any(layer.encrypted for layer in below),
        )
    return found


def select(
    record: PointRecord,
    definition: Definition,
    images: Mapping[str, ImageOnHost],
    sources: Sequence[StateSource],
    only: Sequence[str],
    tpm: str,
) -> Selection:
    """Return what goes back. ``only`` holds "disks", "state", kinds of it, and targets; empty: all.

    ``definition``, ``images`` and ``sources`` are those of the VM as it is now. Raises InvalidRequest,
    DiskUnsupported, StateUnsupported or HostFileMissing for what cannot be done.
    """
    asked = asked_disks(record, only)
    were_encrypted = _encrypted_then(record)
    warnings: list[str] = []
    disks = []
    for stored in record.disks:
        if stored.target not in asked:
            continue
        present = definition.disk(stored.target)
        if present is None:
            raise InvalidRequest(
                f"the VM has no disk {stored.target} any more, and the point has one",
                vm=definition.name,
                disk=stored.target,
                hint="Name the disks that shall go back with --only, or restore the point as another VM: --as NAME.",
            )
        if present.readonly and stored.target not in only:
            warnings.append(f"Disk {stored.target} is read-only for the VM, so it is left as it is.")
            continue
        _refuse_encryption(present, images.get(stored.target), definition.name, then=stored.target in were_encrypted)
        disks.append(_choose_disk(stored, present, images.get(stored.target), definition.name))
    states = _choose_states(record, definition, sources, only, tpm, warnings)
    if not disks and not states:
        raise InvalidRequest(f"point {record.id} holds nothing of what was asked for", vm=definition.name)
    warnings += _told_of_disks(record, definition, disks, asked)
    warnings += _told_of_pairing(record, disks, states, asked)
    return Selection(
        disks=tuple(disks),
        states=tuple(states),
        whole=asked == {disk.target for disk in record.disks} and bool(disks),
        missing=tuple(target for target, image in images.items() if image.size_bytes is None),
        warnings=tuple(warnings),
    )


def asked_disks(record: PointRecord, only: Sequence[str]) -> set[str]:
    """Return the targets of a point's disks that ``--only`` means. Raises InvalidRequest for one that it has not."""
    targets = {disk.target for disk in record.disks}
    for name in only:
        if name not in (DISKS, STATE, *STATE_KINDS) and name not in targets:
            raise InvalidRequest(
                f"point {record.id} has no disk {name!r}",
                vm=record.vm_name,
                disk=name,
                hint=f"--only takes disks, state, nvram, tpm, or one of: {', '.join(sorted(targets)) or '(no disks)'}.",
            )
    return targets if not only or DISKS in only else targets & set(only)


def asked_states(only: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of state that ``--only`` means."""
    return STATE_KINDS if not only or STATE in only else tuple(kind for kind in STATE_KINDS if kind in only)


def _choose_disk(stored: PointDisk, present: DefinedDisk, image: ImageOnHost | None, vm: str) -> ChosenDisk:
    target = stored.target
    leave_out = "Name the other disks with --only, or restore the point as another VM with --as NAME."
    if image is None:
        raise DiskUnsupported(
            f"disk {target} ({present.source_type}) is neither a file nor a block device of this host",
            vm=vm,
            disk=target,
            hint=leave_out,
        )
    if image.size_bytes == stored.stored.size_bytes:
        return ChosenDisk(target, image, made=False, secret=secret_of(present))
    if image.block:
        raise DiskUnsupported(
            f"disk {target} ({image.path}) has {image.size_bytes} bytes, and in the point {stored.stored.size_bytes}",
            vm=vm,
            disk=target,
            path=image.path,
            hint=f"Give the device that size. {leave_out}",
        )
    if image.format not in _MADE_FORMATS or image.data_file:
        kind = f"{image.format} image{' with a data file' if image.data_file else ''}"
        raise DiskUnsupported(
            f"the {kind} of disk {target} would have to be made anew, which vmkeep does not do",
            vm=vm,
            disk=target,
            path=image.path,
            hint=leave_out,
        )
    if not Path(image.path).parent.is_dir():
        raise HostFileMissing(
            f"the directory of disk {target}, {Path(image.path).parent}, is not there", vm=vm, path=image.path
        )
    return ChosenDisk(target, image, made=True, secret=secret_of(present))


def _encrypted_then(record: PointRecord) -> set[str]:
    """Return which disks were encrypted when the point was taken."""
    try:
        then = parse_definition(record.definition)
    except DefinitionError:
        return set()
    return {disk.target for disk in then.disks if disk.encryption is not None}


def _refuse_encryption(present: DefinedDisk, image: ImageOnHost | None, vm: str, *, then: bool) -> None:
    """Refuse to write to an image that cannot be opened, or would hold in plain text what was encrypted."""
    target = present.target
    if present.encryption is not None and present.encryption.secret is None:
        raise DiskUnsupported(
            f"disk {target} is encrypted in another way than by QEMU with LUKS and one passphrase",
            vm=vm,
            disk=target,
            hint="Name the other disks with --only.",
        )
    if image is not None and image.encrypted_below:
        raise DiskUnsupported(
            f"disk {target} stands on an encrypted image, which vmkeep cannot open while the VM is off",
            vm=vm,
            disk=target,
            path=image.path,
            hint="Name the other disks with --only, or restore the point as another VM with --as NAME.",
        )
    if then and present.encryption is None:
        raise DiskUnsupported(
            f"disk {target} was encrypted when the point was taken and is not now: its content would become plain",
            vm=vm,
            disk=target,
            hint="Name the other disks with --only, restore the point as another VM with --as NAME, or write plain "
            "images with --output DIR --decrypt.",
        )


def _choose_states(
    record: PointRecord,
    definition: Definition,
    sources: Sequence[StateSource],
    only: Sequence[str],
    tpm: str,
    warnings: list[str],
) -> list[ChosenState]:
    kinds = [kind for kind in asked_states(only) if not (kind == "tpm" and tpm == KEEP_TPM)]
    if not kinds:
        return []
    if tuple(only) == ("tpm",) and definition.tpm is None:
        raise without_tpm(definition, "VERSION")
    held = {state.kind: state for state in record.states}
    present = {source.kind: source for source in sources}
    chosen = []
    for kind in kinds:
        if kind in held and kind not in present:
            warnings.append(f"The point holds {NAMES[kind]}, which the VM does not have any more: they are left out.")
        elif kind in present and kind not in held:
            warnings.append(f"The point holds no {NAMES[kind]}; those that the VM has stay.")
        elif kind in held:
            source = present[kind]
            if held[kind].file != source.file:
                raise StateUnsupported(
                    f"the TPM of the VM is of another version now: {source.file}, in the point {held[kind].file}",
                    vm=definition.name,
                    hint="--tpm keep leaves the present TPM.",
                )
            chosen.append(chosen_state(source))
    _check_firmware(record, definition, chosen)
    return chosen


def without_tpm(definition: Definition, version: str) -> InvalidRequest:
    """Return the error for a VM without the TPM that a state is to go back into; ``version`` names that state."""
    added = command_line("vmkeep tpm add", definition.name, options=f"--from {version}")
    listed = command_line("vmkeep state versions", definition.name, options="--kind tpm")
    return InvalidRequest(
        f"VM {definition.name!r} has no TPM that state could go back into",
        vm=definition.name,
        hint=f"`{added}` gives it one with a state that is kept, of a version or a point; `{listed}` lists the "
        "versions.",
    )


def _check_firmware(record: PointRecord, definition: Definition, chosen: Sequence[ChosenState]) -> None:
    try:
        then = parse_definition(record.definition)
    except DefinitionError:
        return  # it is not needed for anything here
    goes_back = any(state.kind == "nvram" for state in chosen)
    if goes_back and then.firmware.nvram_format != definition.firmware.nvram_format:
        raise StateUnsupported(
            f"the UEFI variables of the point are {then.firmware.nvram_format}, and the VM's are "
            f"{definition.firmware.nvram_format} now",
            vm=definition.name,
            hint="--only disks leaves UEFI variables and TPM.",
        )


def _told_of_disks(
    record: PointRecord, definition: Definition, disks: Sequence[ChosenDisk], asked: set[str]
) -> list[str]:
    told = []
    if asked:
        in_point = {disk.target for disk in record.disks}
        reasons = {disk.target: disk.reason for disk in record.excluded}
        for disk in definition.disks:
            if disk.removable or disk.source_kind is SourceKind.NONE or disk.target in in_point:
                continue
            why = f" ({reasons[disk.target]})" if disk.target in reasons else ""
            told.append(f"Disk {disk.target} is not in the point{why}, so it is left as it is.")
    for chosen in disks:
        present = definition.disk(chosen.target)
        if present is not None and present.shareable:
            told.append(f"Disk {chosen.target} is shareable: other VMs that use it go back with it.")
        if chosen.made:
            was = "missing" if chosen.image.size_bytes is None else "of another size"
            told.append(f"The image of disk {chosen.target} was {was}, so it was made anew: {chosen.image.path}")
    return told


def _told_of_pairing(
    record: PointRecord, disks: Sequence[ChosenDisk], states: Sequence[ChosenState], asked: set[str]
) -> list[str]:
    """Say what it risks when disks, UEFI variables and TPM are of different times afterwards."""
    told = []
    back = {state.kind for state in states}
    held = {state.kind for state in record.states}
    if disks and "tpm" in held - back:
        told.append(
            "The TPM stays as it is and the disks go back: what was sealed to the TPM after the point is not on them, "
            "and what the disks have sealed must still open with the present TPM. Keep the recovery key at hand."
        )
    if disks and "nvram" in held - back:
        told.append(
            "The UEFI variables stay as they are and the disks go back: boot entries, Secure Boot keys and the "
            "measurements that a TPM binds to may not fit the disks."
        )
    if "tpm" in back and not disks:
        told.append(TPM_ALONE)
    if "nvram" in back and "tpm" in held - back:
        told.append(VARIABLES_ALONE)
    left = sorted({disk.target for disk in record.disks} - {disk.target for disk in disks} if asked else set())
    if disks and left:
        told.append(
            f"{', '.join(left)} stay{'s' if len(left) == 1 else ''} as now: the VM's disks are of different times."
        )
    return told
