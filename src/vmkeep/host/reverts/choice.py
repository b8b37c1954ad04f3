"""What of a libvirt snapshot goes back over its VM: disks, memory, UEFI variables and TPM together, or what was asked.

Everything that forbids a revert is found here, before anything is changed. The state of an external snapshot is in the
images that the VM was on when it was made, as the definition in the snapshot names them. The VM gets new overlays over
them, and they are never written to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.custody.states import KnownState
from vmkeep.definition import DefinedDisk, Definition, SourceKind
from vmkeep.definition.repointing import sliced_disks
from vmkeep.errors import (
    ChoiceRequired,
    DiskUnsupported,
    HostFileMissing,
    InvalidRequest,
    StateUnsupported,
    VmkeepError,
)
from vmkeep.host.restores.selection import DISKS, KEEP_TPM, STATE, STATE_KINDS, asked_states
from vmkeep.host.tasks.reverts import KnownSnapshot, RevertChoice
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.images import HOST_FILES, written_images
from vmkeep.host.vm.moments import read_snapshot
from vmkeep.host.vm.states import ChosenState, StateSource, chosen_state, state_sources
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.moments import Snapshot, SnapshotLocation, SnapshotState
from vmkeep.planning.images import ImageLayer
from vmkeep.planning.snapshot_health import image_of_overlay
from vmkeep.statefiles.location import StateRoots
from vmkeep.transfer.imagefile import describe_image, internal_snapshots
from vmkeep.values import dataclass

_NAMES: Final[Mapping[str, str]] = {"tpm": "TPM", "nvram": "UEFI variables"}


@dataclass(frozen=True, slots=True)
class ChosenImage:
    """A disk that goes back. ``base`` is the image with its state, ``former`` the path of the one that it is on now.

    For an internal snapshot both are the same image.
    """

    target: str
    base: ImageLayer
    former: str


@dataclass(frozen=True, slots=True)
class RevertPlan:
    """What goes back. ``memory`` is the file with the memory, ``with_memory``: it is put back, wherever it is.

    ``versions`` are the state versions of ``states``. ``whole``: all disks of the snapshot are among ``images``.
    """

    snapshot: Snapshot
    internal: bool
    images: tuple[ChosenImage, ...]
    memory: str
    with_memory: bool
    states: tuple[ChosenState, ...]
    versions: tuple[KnownState, ...]
    kept: bool
    whole: bool
    warnings: tuple[str, ...]

    @property
    def disk_only(self) -> bool:
        """Whether libvirt wants to be told that the snapshot holds disks only."""
        return self.snapshot.state is SnapshotState.DISK_SNAPSHOT


def choose(
    hypervisor: Hypervisor,
    domain: Domain,
    definition: Definition,
    xml: str,
    choice: RevertChoice,
    known: KnownSnapshot | None,
) -> RevertPlan:
    """Return what goes back. ``definition`` is the VM's as it is now, ``xml`` the snapshot's.

    Raises InvalidRequest, ChoiceRequired, DiskUnsupported, StateUnsupported or HostFileMissing.
    """
    snapshot, then = read_snapshot(xml, domain)
    then = with_volumes_found(then, hypervisor)
    return _Choosing(hypervisor, domain, definition, snapshot, then, choice, known).reversal()


class _Choosing:
    def __init__(
        self,
        hypervisor: Hypervisor,
        domain: Domain,
        definition: Definition,
        snapshot: Snapshot,
        then: Definition,
        choice: RevertChoice,
        known: KnownSnapshot | None,
    ) -> None:
        self._hypervisor = hypervisor
        self._domain = domain
        self._now = definition
        self._snapshot = snapshot
        self._then = then
        self._choice = choice
        # libvirt has one snapshot of a name at a time; an earlier one of it is told from this by its time.
        fits = known is not None and known.creation_time == snapshot.creation_time
        self._known = known if fits else None
        self._warnings: list[str] = []
        self._written: dict[str, str] | None = None
        self._sliced = sliced_disks(snapshot.domain or "")
        self._held = {state.kind: state for state in self._known.states} if self._known is not None else {}

    def reversal(self) -> RevertPlan:
        inside, outside = self._targets(SnapshotLocation.INTERNAL), self._targets(SnapshotLocation.EXTERNAL)
        name, vm = self._snapshot.name, self._domain.name
        if inside and outside:
            raise DiskUnsupported(f"snapshot {name!r} is partly in the images and partly beside them", vm=vm)
        internal = bool(inside) or self._snapshot.memory.location is SnapshotLocation.INTERNAL
        self._refuse_other_disks(inside | outside)
        asked = self._asked(inside if internal else outside)
        with_memory = self._with_memory(internal=internal)
        if internal:
            self._refuse_parts_of_internal(with_memory=with_memory)
        images = tuple(self._image(target, internal=internal) for target in sorted(asked))
        states = self._states(disks=bool(images), internal=internal, with_memory=with_memory)
        if not images and not states:
            raise InvalidRequest(f"snapshot {name!r} holds nothing of what was asked for", vm=vm)
        self._tell_pairing(images, {state.kind for state in states}, with_memory=with_memory)
        memory = self._snapshot.memory.file or "" if with_memory and not internal else ""
        if memory:
            _require_memory(self._hypervisor, memory, vm)
        return RevertPlan(
            snapshot=self._snapshot,
            internal=internal,
            images=images,
            memory=memory,
            with_memory=with_memory,
            states=states,
            versions=tuple(self._held[state.kind] for state in states),
            kept=self._known is not None,
            whole=bool(images) and asked == inside | outside,
            warnings=tuple(self._warnings),
        )

    def _targets(self, location: SnapshotLocation) -> set[str]:
        return {disk.name for disk in self._snapshot.disks if disk.location is location}

    # -- disks -------------------------------------------------------------------------------------------------

    def _refuse_other_disks(self, in_snapshot: set[str]) -> None:
        """Refuse when the VM has other disks than then; tell of those that are not in the snapshot."""
        name, vm = self._snapshot.name, self._domain.name
        wanted = in_snapshot & set(self._choice.only) if self._named() else in_snapshot
        gone = sorted(target for target in wanted if self._now.disk(target) is None)
        if gone and not self._states_only():
            raise InvalidRequest(
                f"the VM has no disk {', '.join(gone)} any more, and snapshot {name!r} has it",
                vm=vm,
                disk=gone[0],
                hint="Attach it again, or name the disks that shall go back with --only.",
            )
        then = {disk.target for disk in self._then.disks}
        new = sorted(disk.target for disk in _fixed(self._now) if disk.target not in then)
        if new and not self._choice.force and not self._choice.only:
            raise InvalidRequest(
                f"disk {', '.join(new)} came to the VM after snapshot {name!r}, so it cannot go back with the others",
                vm=vm,
                disk=new[0],
                hint="Detach it, or let it stay as it is with --force.",
            )
        for present in _fixed(self._now):
            if present.target in in_snapshot or present.readonly or self._states_only():
                continue
            if present.target in new and self._memory_goes_back():
                # QEMU goes on with the devices that it had then, whatever the definition of the next start has.
                self._warnings.append(
                    f"Disk {present.target} came to the VM after the snapshot: the VM goes on without it, as then. "
                    "What is on it stays, and the VM has it again when it was shut down and is started."
                )
            else:
                self._warnings.append(f"Disk {present.target} is not in the snapshot, so it is left as it is.")

    def _named(self) -> bool:
        only = set(self._choice.only)
        return bool(only) and DISKS not in only

    def _states_only(self) -> bool:
        return bool(self._choice.only) and set(self._choice.only) <= {STATE, *STATE_KINDS}

    def _asked(self, targets: set[str]) -> set[str]:
        for name in self._choice.only:
            if name not in (DISKS, STATE, *STATE_KINDS) and name not in targets:
                raise InvalidRequest(
                    f"snapshot {self._snapshot.name!r} has no disk {name!r}",
                    vm=self._domain.name,
                    disk=name,
                    hint="--only takes disks, state, nvram, tpm, or one of: "
                    f"{', '.join(sorted(targets)) or '(no disks)'}.",
                )
        return targets & set(self._choice.only) if self._named() else targets

    def _image(self, target: str, *, internal: bool) -> ChosenImage:
        then, now, vm = self._then.disk(target), self._now.disk(target), self._domain.name
        assert now is not None
        if then is None:
            raise DiskUnsupported(
                f"snapshot {self._snapshot.name!r} does not say which image disk {target} was on", vm=vm, disk=target
            )
        for disk in (then, now):
            _refuse_unfit(disk, vm, sliced=target in self._sliced)
        assert then.source is not None
        assert now.source is not None
        try:
            base = describe_image(then.source, then.image_format)[0]
        except HostFileMissing as error:
            raise HostFileMissing(
                f"the state of disk {target} at snapshot {self._snapshot.name!r} is lost: {error.message}",
                vm=vm,
                disk=target,
                path=error.path,
                hint="Put the file back, or restore a point: `vmkeep points` lists them.",
            ) from error
        if internal:
            self._refuse_without_internal(target, base, now)
        else:
            self._refuse_changed_record(target, base.path)
            self._refuse_written(target, base.path)
        return ChosenImage(target, base, now.source)

    def _refuse_changed_record(self, target: str, base: str) -> None:
        """Refuse an image of an earlier snapshot, which libvirt names when it thinks that this one's was merged."""
        overlay = next((disk for disk in self._snapshot.disks if disk.name == target), None)
        if overlay is None or overlay.source is None:
            return
        try:
            right = image_of_overlay(describe_image(overlay.source, overlay.format or "qcow2"), base)
        except VmkeepError:
            return  # it is not needed for anything else here
        if right is not None:
            vm = self._domain.name
            raise DiskUnsupported(
                f"libvirt's record of snapshot {self._snapshot.name!r} names {base} for disk {target}, and it was made "
                f"on {right}: the record was changed when that of an earlier snapshot was removed",
                vm=vm,
                disk=target,
                path=base,
                hint=f"`{command_line('vmkeep snapshot repair', vm)}` puts the record right. Then revert.",
            )

    def _refuse_written(self, target: str, base: str) -> None:
        """Refuse an image to which a VM may have written since the snapshot: no overlay keeps it from that."""
        if self._written is None:
            self._written = written_images(self._hypervisor)
        writer = self._written.get(os.path.realpath(base))
        if writer is not None:
            raise DiskUnsupported(
                f"{base}, which held the state of disk {target} at snapshot {self._snapshot.name!r}, is what VM "
                f"{writer!r} writes to, so it is not the snapshot's any more",
                vm=self._domain.name,
                disk=target,
                path=base,
                hint="Its definition was changed by hand. Restore a point: `vmkeep points` lists them.",
            )

    def _refuse_without_internal(self, target: str, base: ImageLayer, now: DefinedDisk) -> None:
        name, vm = str(self._snapshot.name), self._domain.name
        if not _same(base.path, now.source or "") or base.format != "qcow2":
            raise DiskUnsupported(
                f"disk {target} is on another image ({now.source}) than the one that holds snapshot {name!r}",
                vm=vm,
                disk=target,
                path=base.path,
            )
        if name not in internal_snapshots(base.path, base.format):
            raise HostFileMissing(
                f"the image of disk {target} does not hold the snapshot {name!r} any more",
                vm=vm,
                disk=target,
                path=base.path,
            )

    # -- memory ------------------------------------------------------------------------------------------------

    def _memory_goes_back(self) -> bool:
        """Tell whether an external snapshot's memory is put back: what was asked for leaves it in."""
        external = self._snapshot.memory.location is SnapshotLocation.EXTERNAL
        return external and self._choice.memory and not self._choice.only

    def _with_memory(self, *, internal: bool) -> bool:
        location = self._snapshot.memory.location
        if location not in (SnapshotLocation.INTERNAL, SnapshotLocation.EXTERNAL):
            return False
        if not self._choice.memory or self._choice.only:
            if not internal:
                self._warnings.append(
                    "The memory of the snapshot is left out: the VM boots as after a power failure at that instant."
                )
            return internal
        if self._choice.tpm == KEEP_TPM:
            raise InvalidRequest(
                f"snapshot {self._snapshot.name!r} holds the memory, and with it the TPM as it was",
                vm=self._domain.name,
                hint="--tpm keep goes with --no-memory, or with --only disks.",
            )
        if self._choice.reset_nvram:
            raise InvalidRequest(
                "--reset-nvram does not go with memory, which holds the UEFI variables",
                vm=self._domain.name,
                hint="Give --no-memory as well.",
            )
        return True

    def _refuse_parts_of_internal(self, *, with_memory: bool) -> None:
        if self._named() or self._states_only() or (with_memory and (self._choice.only or not self._choice.memory)):
            raise InvalidRequest(
                f"snapshot {self._snapshot.name!r} is in the images, and libvirt reverts all of it or nothing",
                vm=self._domain.name,
                hint="Give neither --only nor --no-memory. `--only disks` goes with one without memory.",
            )

    # -- UEFI variables and TPM --------------------------------------------------------------------------------

    def _states(self, *, disks: bool, internal: bool, with_memory: bool) -> tuple[ChosenState, ...]:
        asked = asked_states(self._choice.only)
        if not asked or (internal and with_memory):
            return ()  # in the images the memory holds the TPM, and libvirt makes none of a VM with raw UEFI variables
        sources = {source.kind: source for source in self._sources()}
        wanted = [kind for kind in asked if not self._left(kind, internal=internal)]
        missing = [kind for kind in wanted if kind in sources and kind not in self._held]
        if missing and not with_memory:
            self._refuse_missing(missing, disks=disks)
        chosen = []
        for kind in wanted:
            if kind in self._held and kind not in sources:
                self._warnings.append(
                    f"The snapshot holds {_NAMES[kind]}, which the VM does not have any more: they are left out."
                )
            elif kind in self._held:
                chosen.append(chosen_state(sources[kind]))
        self._check_firmware({state.kind for state in chosen})
        return tuple(chosen)

    def _check_firmware(self, back: set[str]) -> None:
        then, now, vm = self._then, self._now, self._domain.name
        if "nvram" in back and then.firmware.nvram_format != now.firmware.nvram_format:
            raise StateUnsupported(
                f"the UEFI variables of the snapshot are {then.firmware.nvram_format}, and the VM's are "
                f"{now.firmware.nvram_format} now",
                vm=vm,
                hint="--only disks leaves UEFI variables and TPM.",
            )
        secrets = [tpm.secret_uuid if tpm is not None else None for tpm in (then.tpm, now.tpm)]
        if "tpm" in back and secrets[0] != secrets[1]:
            self._warnings.append(
                f"The TPM state of the snapshot is encrypted with the secret {secrets[0] or '(none)'}, and the VM's "
                f"definition names {secrets[1] or '(none)'} now: the VM may not start before that is put right."
            )

    def _left(self, kind: str, *, internal: bool) -> bool:
        if kind == "tpm":
            return self._choice.tpm == KEEP_TPM
        # libvirt itself takes UEFI variables in qcow2 into an internal snapshot (10.9).
        return self._choice.reset_nvram or (internal and self._now.firmware.nvram_format == "qcow2")

    def _sources(self) -> tuple[StateSource, ...]:
        return state_sources(self._now, StateRoots.of(self._hypervisor.uri))

    def _refuse_missing(self, missing: Sequence[str], *, disks: bool) -> None:
        name, what = self._snapshot.name, " and ".join(_NAMES[kind] for kind in missing)
        vm = self._domain.name
        if self._known is not None:
            self._warnings.append(f"The snapshot holds no {what}, because the VM had none then; those of now stay.")
            return
        if not disks:
            raise StateUnsupported(f"nothing is known of {what} at snapshot {name!r}", vm=vm)
        raise ChoiceRequired(
            f"nothing is known of {what} at snapshot {name!r}, because it was not made by vmkeep",
            vm=vm,
            hint="--only disks takes the disks back and leaves UEFI variables and TPM as they are now: what was sealed "
            "to the TPM may ask for its recovery key. Or restore a point, which has all of it.",
        )

    def _tell_pairing(self, images: Sequence[ChosenImage], back: set[str], *, with_memory: bool) -> None:
        try:
            present = {source.kind for source in self._sources()}
        except StateUnsupported:
            present = set()  # no files that could go back or stay
        if with_memory:
            if "nvram" in present - back and not self._choice.reset_nvram:
                self._warnings.append(
                    "The UEFI variables come with the memory, and are written to their file when the VM goes on."
                )
            return
        if images and "tpm" in present - back:
            self._warnings.append(
                "The TPM stays as it is and the disks go back: what the disks have sealed must still open with the "
                "present TPM. Keep the recovery key at hand."
            )
        if images and "nvram" in present - back and not self._choice.reset_nvram:
            self._warnings.append(
                "The UEFI variables stay as they are and the disks go back: boot entries, Secure Boot keys and the "
                "measurements that a TPM binds to may not fit the disks."
            )
        if "tpm" in back and not images:
            self._warnings.append(
                "The TPM goes back and the disks stay: its counters are those of the snapshot, and what was sealed to "
                "it since then is lost. A disk sealed to it may ask for its recovery key."
            )
        left = sorted(self._targets(SnapshotLocation.EXTERNAL) - {image.target for image in images})
        if images and left:
            self._warnings.append(f"{', '.join(left)} stays as now: the VM's disks are of different times.")


def _fixed(definition: Definition) -> list[DefinedDisk]:
    return [disk for disk in definition.disks if not disk.removable and disk.source_kind is not SourceKind.NONE]


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _refuse_unfit(disk: DefinedDisk, vm: str, *, sliced: bool) -> None:
    """Refuse a disk that cannot be given an overlay."""
    why = None
    if disk.source is None or disk.source_kind not in HOST_FILES:
        why = f"is neither a file nor a block device of this host ({disk.source_type})"
    elif disk.encryption is not None:
        why = "is encrypted, and an overlay over it would hold in plain text what the guest writes"
    elif disk.transient:
        why = "is transient"
    elif disk.device == "lun":
        why = "is a LUN, which can stand on no image"
    elif sliced:
        why = "is a part of its image only"
    if why is not None:
        raise DiskUnsupported(
            f"disk {disk.target} {why}",
            vm=vm,
            disk=disk.target,
            hint="Name the other disks with --only, or restore a point.",
        )


def _require_memory(hypervisor: Hypervisor, path: str, vm: str) -> None:
    if not Path(path).is_file():
        raise HostFileMissing(
            f"the file with the memory of the snapshot, {path}, is not there",
            vm=vm,
            path=path,
            hint="Put it back, or give --no-memory: the VM boots then.",
        )
    hypervisor.saved_definition(path, vm)
