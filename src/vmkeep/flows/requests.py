"""What a flow is asked for and what it answers: plain values, stored with the flow and printed as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any, Final

from vmkeep.custody.states import ChosenVersion, SecretSource
from vmkeep.custody.wanted import WantedCertificate
from vmkeep.values import dataclass

THIS_HOST: Final = "this"
"""The id of the host that the command itself runs on."""


@dataclass(frozen=True, slots=True)
class FlowRequest:
    """What a flow is asked for. ``host`` is the id of the host on which it works: where the VM is, or will be."""

    host: str = field(default=THIS_HOST, kw_only=True)


class TpmChoice(StrEnum):
    """Whose TPM a restored VM gets: the point's, a blank one (never in place), or the one it has (only in place)."""

    SAME = "same"
    NEW = "new"
    KEEP = "keep"


class ImageFormat(StrEnum):
    """Format of restored disk images."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class TakePoint(FlowRequest):
    """Take a point of one VM. ``vm`` is a name or a UUID; ``exclude`` names disks by target.

    ``quiesce`` freezes the guest's file systems for the instant, through its agent. ``demanded`` are disks that must be
    in the point although the VM's settings leave them out: they are about to be written over.
    """

    vm: str
    full: bool = False
    exclude: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    quiesce: bool = False
    demanded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointTaken:
    """The point as the JSON object that `vmkeep backup --json` prints under "point"."""

    point: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreFiles(FlowRequest):
    """Write a point's disks, NVRAM, TPM directory and definition into a directory, and its ``secrets`` when asked.

    ``decrypt`` writes plain images of disks that were encrypted; without it they are encrypted again. ``only`` holds
    "disks", "state" and targets of disks; empty means all, and the definition.
    """

    point: str
    output: str
    image_format: ImageFormat = ImageFormat.QCOW2
    force: bool = False
    decrypt: bool = False
    secrets: bool = False
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FilesRestored:
    """``files`` are absolute paths, disks first; ``bytes_written`` counts data, not holes."""

    point: str
    output: str
    files: tuple[str, ...]
    bytes_written: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreVm(FlowRequest):
    """Make a VM of a point. ``disks_dir`` None means each disk's own directory.

    ``adapt`` changes what does not fit this host and nobody must choose; ``machine``, ``cpu`` and ``firmware`` (a file)
    are a person's choice. Of a point that is not known to be of this host, ``trust_definition`` defines what reaches
    into the host as it is, and ``strip_host_parts`` leaves it out.
    """

    point: str
    name: str
    tpm: TpmChoice | None = None
    disks_dir: str | None = None
    force: bool = False
    adapt: bool = False
    machine: str | None = None
    cpu: str | None = None
    firmware: str | None = None
    trust_definition: bool = False
    strip_host_parts: bool = False


@dataclass(frozen=True, slots=True)
class VmRestored:
    """The VM that was made. ``identity`` is "same" (UUID and MACs of the original) or "new".

    ``changes`` are what was changed for this host: ``change``, and ``guest``: what the guest notices of it, or "".
    """

    point: str
    name: str
    uuid: str
    identity: str
    tpm: str
    files: tuple[str, ...]
    bytes_written: int
    warnings: tuple[str, ...] = ()
    changes: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RestoreInPlace(FlowRequest):
    """Write a point over its own VM. ``only`` holds "disks", "state", "tpm", "nvram" and targets; empty means all.

    ``vm`` is the VM's name, for the record, ``vm_uuid`` which VM it is of: no other one is written. ``vm_called`` is
    what the VM must be called on this host, because nobody is asked; empty where somebody is. ``safety`` is the point
    that holds the VM as it is now; None until it is taken. ``images`` is what the images without bitmaps told of
    themselves before that (`InPlaceChecked`).
    """

    point: str
    vm: str
    only: tuple[str, ...] = ()
    tpm: TpmChoice = TpmChoice.SAME
    safety: str | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    vm_uuid: str = ""
    vm_called: str = ""


@dataclass(frozen=True, slots=True)
class RestoreStates(FlowRequest):
    """Put kept versions of state files back in place of what a VM has. ``vm`` is its name, for the record.

    ``found`` is what lay there when it was kept, as (kind, SHA-256, empty for no file): nothing else is replaced.
    ``secret`` opens the TPM's among them, where that is encrypted and something holds the value.
    """

    vm: str
    vm_uuid: str
    versions: tuple[ChosenVersion, ...]
    found: tuple[tuple[str, str], ...]
    secret: SecretSource | None = None


@dataclass(frozen=True, slots=True)
class StatesRestored:
    """What was put back: the kinds of it."""

    name: str
    uuid: str
    kinds: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InPlaceRestored:
    """What went back. ``disks`` are targets, ``states`` kinds; ``safety`` is the point of the VM as it was before."""

    point: str
    name: str
    uuid: str
    safety: str
    disks: tuple[str, ...]
    states: tuple[str, ...]
    bytes_written: int
    bytes_zeroed: int = 0
    warnings: tuple[str, ...] = ()


class RunAfterwards(StrEnum):
    """How a VM is after a revert: as it was at the snapshot (off, where that holds no memory), running, or paused."""

    THEN = "then"
    RUNNING = "running"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class RevertSnapshot(FlowRequest):
    """Take a VM back to a snapshot of libvirt. ``vm`` is a name or a UUID; ``only`` and ``tpm`` as in RestoreInPlace.

    ``memory`` False leaves the memory. ``stop`` pulls the plug of a VM that runs. ``discard`` removes the images that
    it is on now where nothing needs them. ``force``, ``drop_checkpoints`` and ``reset_nvram`` are as in RevertChoice.
    ``safety`` is the point that holds the VM as it is now. ``vm_uuid`` and ``creation_time`` (the
    snapshot's, in seconds since 1970) are set once the request was checked.
    """

    vm: str
    snapshot: str
    only: tuple[str, ...] = ()
    tpm: TpmChoice = TpmChoice.SAME
    memory: bool = True
    run: RunAfterwards = RunAfterwards.THEN
    stop: bool = False
    discard: bool = False
    force: bool = False
    drop_checkpoints: bool = False
    reset_nvram: bool = False
    safety: str | None = None
    vm_uuid: str = ""
    creation_time: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotReverted:
    """What went back. ``images`` are the files that the disks are on now, ``left`` those that they were on.

    ``state`` is how the VM is; ``not_started`` says why it does not run although it should.
    """

    snapshot: str
    name: str
    uuid: str
    safety: str | None
    disks: tuple[str, ...]
    states: tuple[str, ...]
    memory: bool
    images: tuple[str, ...]
    left: tuple[str, ...]
    discarded: tuple[str, ...]
    state: str
    not_started: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TakeSnapshot(FlowRequest):
    """Make a snapshot of a VM, with its TPM state and UEFI variables. ``vm`` is a name or a UUID.

    ``xml`` is the <domainsnapshot> that is wanted; the other fields are those of
    ``vmkeep.host.tasks.snapshots.MakeSnapshot``.
    """

    vm: str
    xml: str
    disk_only: bool = False
    internal: bool = False
    with_bitmaps: bool = False
    quiesce: bool = False
    halt: bool = False
    reuse_external: bool = False
    validate: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The snapshot as the JSON object that `vmkeep snapshot create --json` prints under "snapshot"."""

    snapshot: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RemoveTpm(FlowRequest):
    """Take the TPM out of a VM that is off, with its state and the secret that opens it. ``vm`` is a name or a UUID."""

    vm: str


@dataclass(frozen=True, slots=True)
class TpmRemoved:
    """What was removed. ``had_tpm`` False: there was no device, and at most leavings of an earlier one.

    ``kept`` is the number of the version that holds its state, None where it had none, ``sha256`` that version's.
    ``deleted`` are paths, ``left`` sentences about what lies there still. ``secret`` is the UUID of the secret that
    encrypts the state, ``secret_point`` or ``secret_pin`` what holds it where it was undefined, ``secret_stays`` why
    not.
    ``tombstones`` are the ids of those that say what must still be deleted, ``removal`` is the id of the proof.
    """

    name: str
    uuid: str
    had_tpm: bool
    kept: int | None = None
    sha256: str = ""
    deleted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    secret: str = ""
    secret_point: str = ""
    secret_stays: str = ""
    way_back: str = ""
    secret_pin: str = ""
    tombstones: tuple[str, ...] = ()
    removal: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the next command says of a removal that it finished."""
        stays = f"libvirt's secret {self.secret} stays: {self.secret_stays}."
        return (*self.left, *((stays,) if self.secret_stays else ()))


@dataclass(frozen=True, slots=True)
class ResetTpm(FlowRequest):
    """Give a VM that is off a new, blank TPM in place of its own, with a new key. ``vm`` is a name or a UUID."""

    vm: str


@dataclass(frozen=True, slots=True)
class RekeyTpm(FlowRequest):
    """Give the state of a VM's TPM a new key. ``plain``: it is not encrypted any more."""

    vm: str
    plain: bool = False


@dataclass(frozen=True, slots=True)
class TpmRenewed:
    """A TPM with a new key. ``kept`` is the number of the version that holds what it was, ``sha256`` that version's.

    ``version`` is the number of the state with the new key; None for a blank TPM. ``secret`` is the UUID of its secret,
    empty where the state is in plain. The others are as in TpmRemoved, of what it was.
    """

    name: str
    uuid: str
    kept: int | None = None
    sha256: str = ""
    version: int | None = None
    secret: str = ""
    deleted: tuple[str, ...] = ()
    old_secret: str = ""
    secret_point: str = ""
    secret_pin: str = ""
    secret_stays: str = ""
    way_back: tuple[str, ...] = ()
    tombstones: tuple[str, ...] = ()
    removal: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the next command says of one that it finished."""
        stays = f"libvirt's secret {self.old_secret} stays: {self.secret_stays}."
        return (stays,) if self.secret_stays else ()


@dataclass(frozen=True, slots=True)
class AddTpm(FlowRequest):
    """Give a VM that is off a TPM. ``model`` is libvirt's word for it, ``tpm_version`` "2.0" or "1.2".

    ``version`` is the state that it gets; without one libvirt makes a blank TPM at the next start. ``secret`` is the
    UUID of what encrypts that state, ``secret_point`` or ``secret_pin`` that whose envelope holds its value. ``like``
    is the element of a TPM whose settings it has besides (``definition.tpmdevice.tpm_element``).
    """

    vm: str
    vm_uuid: str
    model: str
    tpm_version: str = "2.0"
    version: ChosenVersion | None = None
    secret: str = ""
    secret_point: str = ""
    secret_pin: str = ""
    like: str = ""

    @property
    def brings_secret(self) -> bool:
        """Whether libvirt gets the secret out of an envelope."""
        return bool(self.secret_point or self.secret_pin)


@dataclass(frozen=True, slots=True)
class TpmAdded:
    """The TPM that was put in. ``sha256`` is the state's that was installed; empty for a blank one."""

    name: str
    uuid: str
    model: str
    version: str
    sha256: str = ""
    secret: str = ""


class NewNvram(StrEnum):
    """What a VM's UEFI variables are to be: as libvirt makes them, what a file holds, or with more certificates."""

    RESET = "reset"
    IMPORT = "import"
    ENROL = "enroll"


@dataclass(frozen=True, slots=True)
class ReplaceNvram(FlowRequest):
    """Replace the UEFI variables of a VM that is off. ``vm`` is a name or a UUID.

    ``file`` is an absolute path on the machine of the command, and ``sha256`` what it must hold. ``of_2023``: with
    Microsoft's certificates of 2023; ``certificates`` are those that a person named.
    """

    vm: str
    how: NewNvram
    file: str = ""
    sha256: str = ""
    of_2023: bool = False
    certificates: tuple[WantedCertificate, ...] = ()


@dataclass(frozen=True, slots=True)
class NvramReplaced:
    """What became of a VM's UEFI variables. ``changed`` False: they were what they were to be already.

    ``kept`` is the number of the version that holds what was there before, None where nothing was or it could not be
    kept: then ``aside`` is the path at which it stays. ``tpm_kept`` is the number of the TPM state's version at that
    time, where it was kept too. ``now`` and ``sha256`` are of the version that lies there now. ``template`` is the file
    that they were made of. ``added``, ``present`` and ``left`` are about certificates.
    """

    name: str
    uuid: str
    how: str
    changed: bool
    path: str
    kept: int | None = None
    kept_sha256: str = ""
    tpm_kept: int | None = None
    now: int | None = None
    sha256: str = ""
    template: str = ""
    added: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    aside: str = ""
    way_back: str = ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the next command says of a change that it finished."""
        aside = f"What lay there could be kept as no version: it stays at {self.aside}."
        return (*self.left, *((aside,) if self.aside else ()))
