"""What a check-up finds: codes with their meaning, how bad each is, and what mends it. Plain values, no I/O.

The codes are public: they stand in the JSON of `vmkeep doctor` and in docs/operations.md, which a test holds
against this enum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from vmkeep.custody.standing import Grounds
from vmkeep.host.tasks.task import Task
from vmkeep.planning.checkpoint_repair import RepairStep
from vmkeep.planning.model import KnownPoint
from vmkeep.planning.names import checkpoint_prefix
from vmkeep.values import dataclass

FIX_COMMAND: Final = "vmkeep doctor --fix"


class Severity(StrEnum):
    """How bad a finding is."""

    PROBLEM = "problem"
    """Something does not work, or is lost, until it is mended."""
    WARNING = "warning"
    """It works, and something of it wants a look."""
    NOTE = "note"
    """Good to know; nothing has to be done."""


class FindingCode(StrEnum):
    """What was found."""

    # -- the host
    LIBVIRT_UNREACHABLE = "libvirt-unreachable"
    """libvirt does not answer, so nothing could be said of the VMs."""
    LIBVIRT_REFUSED = "libvirt-refused"
    """libvirt does not let this user in."""
    LIBVIRT_TOO_OLD = "libvirt-too-old"
    """libvirt is older than 7.2 and cannot make backup jobs with checkpoints."""
    QEMU_TOO_OLD = "qemu-too-old"
    """QEMU is older than 4.2 and cannot make backup jobs with bitmaps."""
    VERSIONS = "versions"
    """The versions of libvirt and QEMU."""
    TOOL_MISSING = "tool-missing"
    """A program that vmkeep runs is not installed."""
    RUN_DIR_UNUSABLE = "run-dir-unusable"
    """The directory of the sockets cannot be made, written, or entered by QEMU."""
    SOCKET_PATH_TOO_LONG = "socket-path-too-long"
    """The path of a job's socket would be longer than the system allows."""
    SCRATCH_DIR_UNUSABLE = "scratch-dir-unusable"
    """The directory for scratch files is not there, or cannot be written."""
    HOME_UNUSABLE = "home-unusable"
    """The home directory of vmkeep cannot be read or written."""
    HOME_EXPOSED = "home-exposed"
    """Others own or may write something of vmkeep's home, so no command uses it."""
    HOME_NOT_PRIVATE = "home-not-private"
    """Other users may look into the home directory of vmkeep."""
    KEY_NOT_PRIVATE = "key-not-private"
    """Other users may read the key, and with it everything in the repository."""
    SETTING_UNUSED = "setting-unused"
    """The settings file has something of a VM that the host has not, or of a disk that the VM has not."""
    SPACE_LOW = "space-low"
    """A file system that vmkeep writes to has less than 1 GiB or 5 % free."""

    # -- the installation
    REPOSITORY_NONE = "repository-none"
    """This installation has no repository yet; the first backup makes one."""
    REPOSITORY_MISSING = "repository-missing"
    """The repository is not at its place."""
    REPOSITORY_FOREIGN = "repository-foreign"
    """Something else, or another repository, is at the repository's place."""
    KEYRING_REPLACED = "keyring-replaced"
    """The repository's keyring is an older or another one than was in force before."""
    REPOSITORY_UNUSABLE = "repository-unusable"
    """The repository cannot be opened: it is damaged, or its storage fails."""
    BUCKET_STALE = "bucket-stale"
    """The server of the repository's bucket goes on showing what an object was before it was put anew."""
    BUCKET_LISTS_LATE = "bucket-lists-late"
    """The lists of the repository's bucket do not show at once what was put and deleted."""
    BUCKET_RACES = "bucket-races"
    """The server of the repository's bucket lets several win who create one object at the same time."""
    BUCKET_CLOCK = "bucket-clock"
    """The clock of the server of the repository's bucket and that of this host differ."""
    BUCKET_FOUND = "bucket-found"
    """What the server of the repository's bucket does, and what these credentials may delete there."""
    KEY_MISSING = "key-missing"
    """The key that opens the repository is not on this host."""
    KEY_PLACE = "key-place"
    """Where the key is. Without a copy of it elsewhere the points are lost with this host."""
    HOST_UNDECIDED = "host-undecided"
    """A host signs points in the repository, and nobody has trusted or distrusted its key here."""
    HOST_KEY_CHANGED = "host-key-changed"
    """A host signs its points with another key than before, and nobody has decided about that one here."""
    HOME_COPIED = "home-copied"
    """A copy of vmkeep's home is at work on another machine, and signs its points as this installation."""
    SIGNING_KEY_GONE = "signing-key-gone"
    """The key with which this installation signed its points is not there; the next point makes another one."""
    CATALOGUE_UNUSABLE = "catalogue-unusable"
    """The catalogue is damaged, of a newer vmkeep, or cannot be read."""
    FLOWS_UNUSABLE = "flows-unusable"
    """The database of operations under way is damaged or cannot be read."""
    POINT_NOT_STORED = "point-not-stored"
    """The catalogue knows a point that the repository does not hold: it cannot be restored."""
    POINT_NOT_KNOWN = "point-not-known"
    """The repository holds a point that the catalogue does not know."""
    RECOVERY_FAILED = "recovery-failed"
    """What dead processes left could not be put right."""

    # -- what runs by itself
    SCHEDULE_BROKEN = "schedule-broken"
    """A job is to run by itself, and nothing will start it."""
    RUN_MISSED = "run-missed"
    """A job should have run by itself meanwhile, and has not."""
    RUN_FAILED = "run-failed"
    """The last run of a job failed, or was killed."""
    RUN_UNTOLD = "run-untold"
    """Somebody was to be told of the last run of a job, and could not be."""

    # -- left behind
    POINT_INTERRUPTED = "point-interrupted"
    """A backup and its guardian both died: its job, checkpoint or pause may still be there."""
    OPERATION_INTERRUPTED = "operation-interrupted"
    """An operation's process died before it was done."""
    OPERATION_NEEDS_OPERATOR = "operation-needs-operator"
    """An operation failed, and undoing it stopped: the VM is neither what it was nor what was wanted."""
    SNAPSHOT_UNRECORDED = "snapshot-unrecorded"
    """A snapshot was begun, and what came of it is not recorded: its state files wait on this host."""
    RESTORE_PENDING = "restore-pending"
    """A restore in place was not finished: the VM's disks are not whole and it is kept from starting."""
    LEFT_FILE = "left-file"
    """A file of an operation that ended is still there."""
    KEPT_ASIDE = "kept-aside"
    """A file that a restore had moved aside was not put back."""
    LEFT_SOCKET = "left-socket"
    """The socket directory of an operation that ended is still there."""
    UNKNOWN_LEFT = "unknown-left"
    """A file or directory with a name of vmkeep's, of an operation that this installation does not know."""
    STALE_LOCK = "stale-lock"
    """A lock file that no process holds. It locks nothing."""
    PRUNE_UNFINISHED = "prune-unfinished"
    """A prune was killed, or waits for more than a day: the next one goes on with what it began."""
    VERIFY_LATE = "verify-late"
    """Something in the repository was not read, and proved, for longer than a month, although it is verified here."""
    LEFT_INTENT = "left-intent"
    """The repository still names a writer that is gone."""

    # -- a VM
    VM_UNREADABLE = "vm-unreadable"
    """libvirt's answers about the VM could not be read."""
    VM_IN_USE = "vm-in-use"
    """An operation works on the VM now, so its job, checkpoints and bitmaps were not judged."""
    LEFT_JOB = "left-job"
    """A backup job of vmkeep's runs on the VM, and nobody reads from it."""
    SCRATCH_HELD = "scratch-held"
    """QEMU has the removed scratch of a backup open that is over, and its room with it."""
    JOB_STUCK = "job-stuck"
    """libvirt keeps a job that is over: libvirtd was killed while a backup began."""
    FOREIGN_JOB = "foreign-job"
    """A backup job that is not vmkeep's runs on the VM. Backups are refused until it ends."""
    LEFT_CHECKPOINT = "left-checkpoint"
    """A checkpoint of vmkeep's belongs to no point."""
    OLD_CHECKPOINT = "old-checkpoint"
    """A checkpoint of vmkeep's is the base of no disk any more; it costs the guest's writes time."""
    CHECKPOINT_UNLISTED = "checkpoint-unlisted"
    """An image has the bitmap of a point whose checkpoint libvirt does not list."""
    BASE_UNSOUND = "base-unsound"
    """A disk's bitmap is missing or cannot be trusted: the next backup reads that disk whole."""
    FOREIGN_CHECKPOINT = "foreign-checkpoint"
    """The VM has checkpoints that are not vmkeep's. They are never touched."""
    LEFT_BITMAP = "left-bitmap"
    """An image has a bitmap of vmkeep's that nothing needs."""
    FOREIGN_BITMAP = "foreign-bitmap"
    """An image has bitmaps that are not vmkeep's. They are never touched."""
    RIGHTS_LACKING = "rights-lacking"
    """This user may not use files of the VM that a point of it needs."""
    IMAGE_UNREADABLE = "image-unreadable"
    """A disk's image is not there or cannot be read."""
    IMAGE_WITHOUT_BITMAPS = "image-without-bitmaps"
    """A disk's image is qcow2 of version 2, which holds no bitmaps: each backup reads the disk whole."""
    WRITES_ASTRAY = "writes-astray"
    """What the guest writes goes to an image that libvirt does not know of, or that the next start will not have."""
    DEFINITION_DIFFERS = "definition-differs"
    """The VM runs with other disks than it will have at its next start."""
    GATE_BROKEN = "gate-broken"
    """libvirt's hook, which lets no VM start with a lost or older state, does not do its work."""
    ORPHANED_STATE = "orphaned-state"
    """TPM states, UEFI variables or secrets of TPMs on the host belong to no VM."""
    TPM_MISSING = "tpm-missing"
    """The TPM state of the VM is gone; starting the VM would make a blank TPM."""
    NVRAM_MISSING = "nvram-missing"
    """The UEFI variables of the VM are gone; starting the VM would make them anew."""
    STATE_SUPERSEDED = "state-superseded"
    """The VM's TPM or UEFI state is an older one than the newest that vmkeep has seen."""
    STATE_NOT_CAPTURED = "state-not-captured"
    """State files of a VM could not be captured, and none of it was since."""
    TOMBSTONE_OPEN = "tombstone-open"
    """Something of a TPM that was removed could not be deleted on a host, and is there still."""
    TPM_SECRET_MISSING = "tpm-secret-missing"  # noqa: S105  a code, not a password
    """The TPM state is encrypted with a secret that libvirt does not have: the VM cannot start."""
    TPM_KEY_NOT_KEPT = "tpm-key-not-kept"
    """Encrypted TPM states are kept, and the value of the secret that opens them is in no envelope."""
    TPM_NOT_KEPT = "tpm-not-kept"
    """Something of the VM's TPM is in no point."""
    DISK_NOT_KEPT = "disk-not-kept"
    """A disk cannot be in a point, so a backup of the VM is refused unless the disk is excluded."""
    IO_THREADS = "io-threads"
    """Disks are in I/O threads, and backups of other programs may kill the QEMU that runs the VM."""
    SNAPSHOT_GONE = "snapshot-gone"
    """State is kept with a snapshot that libvirt no longer lists: nothing can go back to it."""
    DELETION_UNFINISHED = "deletion-unfinished"
    """The deletion of a snapshot ended in the middle: its images hold neither what it kept nor what came after."""
    NEVER_BACKED_UP = "never-backed-up"
    """There is no point of the VM."""
    POINT_OLD = "point-old"
    """The VM's last point is older than a week."""
    POINT_AHEAD = "point-ahead"
    """A point of the VM says a time that is still to come: a clock was ahead, or this host's is behind."""
    CLOCK_WENT_BACK = "clock-went-back"
    """Clocks of the VM's points are not in the order in which they were made."""

    @property
    def severity(self) -> Severity:
        """How bad it is; the same for every finding of the code."""
        if self in _PROBLEMS:
            return Severity.PROBLEM
        return Severity.WARNING if self in _WARNINGS else Severity.NOTE


_PROBLEMS: Final = frozenset(
    {
        FindingCode.LIBVIRT_UNREACHABLE,
        FindingCode.LIBVIRT_REFUSED,
        FindingCode.LIBVIRT_TOO_OLD,
        FindingCode.QEMU_TOO_OLD,
        FindingCode.TOOL_MISSING,
        FindingCode.RUN_DIR_UNUSABLE,
        FindingCode.SOCKET_PATH_TOO_LONG,
        FindingCode.SCRATCH_DIR_UNUSABLE,
        FindingCode.HOME_UNUSABLE,
        FindingCode.HOME_EXPOSED,
        FindingCode.KEY_NOT_PRIVATE,
        FindingCode.REPOSITORY_MISSING,
        FindingCode.REPOSITORY_FOREIGN,
        FindingCode.KEYRING_REPLACED,
        FindingCode.REPOSITORY_UNUSABLE,
        FindingCode.BUCKET_STALE,
        FindingCode.BUCKET_LISTS_LATE,
        FindingCode.KEY_MISSING,
        FindingCode.CATALOGUE_UNUSABLE,
        FindingCode.FLOWS_UNUSABLE,
        FindingCode.POINT_NOT_STORED,
        FindingCode.RECOVERY_FAILED,
        FindingCode.SCHEDULE_BROKEN,
        FindingCode.RUN_MISSED,
        FindingCode.RUN_FAILED,
        FindingCode.POINT_INTERRUPTED,
        FindingCode.OPERATION_INTERRUPTED,
        FindingCode.OPERATION_NEEDS_OPERATOR,
        FindingCode.SNAPSHOT_UNRECORDED,
        FindingCode.RESTORE_PENDING,
        FindingCode.KEPT_ASIDE,
        FindingCode.VM_UNREADABLE,
        FindingCode.WRITES_ASTRAY,
        FindingCode.LEFT_JOB,
        FindingCode.JOB_STUCK,
        FindingCode.IMAGE_UNREADABLE,
        FindingCode.TPM_MISSING,
        FindingCode.NVRAM_MISSING,
        FindingCode.TPM_SECRET_MISSING,
    }
)
_WARNINGS: Final = frozenset(
    {
        FindingCode.BUCKET_RACES,
        FindingCode.BUCKET_CLOCK,
        FindingCode.HOST_KEY_CHANGED,
        FindingCode.HOME_COPIED,
        FindingCode.SIGNING_KEY_GONE,
        FindingCode.HOME_NOT_PRIVATE,
        FindingCode.SPACE_LOW,
        FindingCode.GATE_BROKEN,
        FindingCode.POINT_NOT_KNOWN,
        FindingCode.PRUNE_UNFINISHED,
        FindingCode.VERIFY_LATE,
        FindingCode.RUN_UNTOLD,
        FindingCode.LEFT_FILE,
        FindingCode.SCRATCH_HELD,
        FindingCode.LEFT_SOCKET,
        FindingCode.LEFT_CHECKPOINT,
        FindingCode.OLD_CHECKPOINT,
        FindingCode.LEFT_BITMAP,
        FindingCode.DEFINITION_DIFFERS,
        FindingCode.STATE_SUPERSEDED,
        FindingCode.TPM_KEY_NOT_KEPT,
        FindingCode.STATE_NOT_CAPTURED,
        FindingCode.TOMBSTONE_OPEN,
        FindingCode.SNAPSHOT_GONE,
        FindingCode.DELETION_UNFINISHED,
        FindingCode.DISK_NOT_KEPT,
        FindingCode.SETTING_UNUSED,
        FindingCode.RIGHTS_LACKING,
        FindingCode.POINT_AHEAD,
    }
)


# -- what mends --------------------------------------------------------------------------------------------------


class Mend(Task[str]):
    """What mends a finding; the answer is a sentence about it. Some of it is not the host's to do, but the flow's."""

    __slots__ = ()


class VmMend(Mend):
    """What mends a finding of a VM; the operation that asks holds it."""

    __slots__ = ()
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class RemoveLeft(Mend):
    """Remove a file or directory of an operation that ended. ``operation`` is the part of its id in the name."""

    path: str
    operation: str


@dataclass(frozen=True, slots=True)
class PutAsideBack(Mend):
    """Rename what a restore moved aside to where it was, if nothing is there."""

    aside: str
    final: str


@dataclass(frozen=True, slots=True)
class RemoveLock(Mend):
    """Remove a lock file that nobody holds."""

    path: str


@dataclass(frozen=True, slots=True)
class MakePrivate(Mend):
    """Take the rights of other users away from a file or directory of ours."""

    path: str


@dataclass(frozen=True, slots=True)
class RemoveIntent(Mend):
    """Remove the intent of a writer that is gone from the repository."""

    writer: str


@dataclass(frozen=True, slots=True)
class RemoveStaged(Mend):
    """Remove the file of a put into the repository that was never ended."""

    path: str


@dataclass(frozen=True, slots=True)
class EndJob(VmMend):
    """End the backup job with this socket."""

    vm_uuid: str
    socket: str


@dataclass(frozen=True, slots=True)
class CloseScratch(VmMend):
    """Have QEMU close the removed scratch file that was at this path."""

    vm_uuid: str
    path: str


@dataclass(frozen=True, slots=True)
class MendCheckpoint(VmMend):
    """Carry out what a repair of the VM's checkpoints would do about one of them, or about bitmaps of one name."""

    vm_uuid: str
    steps: tuple[RepairStep, ...]


@dataclass(frozen=True, slots=True)
class DefineSecret(VmMend):
    """Define a secret that libvirt lacks, from a point or a pin that holds it."""

    vm_uuid: str
    secret: str
    point: str
    pin: str = ""


@dataclass(frozen=True, slots=True)
class ForgetSnapshot(VmMend):
    """Forget what is kept with a snapshot that is gone. ``snapshot`` is its id in the catalogue."""

    vm_uuid: str
    snapshot: str
    name: str


@dataclass(frozen=True, slots=True)
class MergeOverlay(VmMend):
    """Write an overlay that libvirt does not know of into the image that it says the VM is on, while the VM runs.

    The overlay itself stays: it may be of another tool.
    """

    vm_uuid: str
    target: str
    image: str
    overlay: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    ``message`` says in plain words what it means, ``remedy`` is the command that mends it (None: nothing has to be
    done, or no command can). ``mend`` is what ``--fix`` does about it; ``recovered`` says that the recovery, which
    every operation begins with, mends it.
    """

    code: FindingCode
    message: str
    remedy: str | None = None
    vm: str | None = None
    path: str | None = None
    mend: Mend | None = None
    recovered: bool = False

    @property
    def severity(self) -> Severity:
        return self.code.severity

    @property
    def fixable(self) -> bool:
        """Whether `vmkeep doctor --fix` mends it."""
        return self.recovered or self.mend is not None

    def as_dict(self) -> dict[str, str | bool | None]:
        """Return the finding as `vmkeep doctor --json` prints it."""
        return {
            "code": str(self.code),
            "severity": str(self.severity),
            "vm": self.vm,
            "path": self.path,
            "message": self.message,
            "remedy": FIX_COMMAND if self.remedy is None and self.fixable else self.remedy,
            "fixable": self.fixable,
        }


# -- what a host must be told for a check-up ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownOperation:
    """An operation of the catalogue. ``interrupted``: not ended, and its process is dead."""

    id: str
    state: Literal["living", "interrupted", "done", "failed"]


@dataclass(frozen=True, slots=True)
class RememberedPoint:
    """A point of the VM. ``states`` is the content's hash by kind; ``current``: the VM's state descends from it.

    ``secrets`` are the UUIDs of those that it holds. ``safety``: it is of the state that a restore in place left.
    """

    id: str
    created: str
    states: Mapping[str, str]
    current: bool = False
    secrets: tuple[str, ...] = ()
    safety: bool = False


@dataclass(frozen=True, slots=True)
class RememberedVm:
    """What the catalogue knows of a VM; points newest first. ``snapshots`` are ids and names.

    ``bases`` are the points once more, as a plan of the next one knows them. ``grounds`` are what its state files are
    judged by. ``secret_pins`` are the pins that hold secrets of it, by the secret's UUID.
    """

    uuid: str
    points: tuple[RememberedPoint, ...] = ()
    bases: tuple[KnownPoint, ...] = ()
    grounds: Grounds = Grounds()
    snapshots: tuple[tuple[str, str], ...] = ()
    secret_pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckupRequest(Task[tuple[Finding, ...]]):
    """Look at the host and its VMs.

    ``vms`` limits the VMs by name or UUID; empty means all. ``remembered`` and ``operations`` are None when the
    catalogue cannot be read: then nothing is called a left-over. ``directories`` may hold files of ended operations.
    ``held`` are UUIDs of VMs whose lock the caller holds. ``others`` are the points of the repository that the
    catalogue does not know: another installation's.
    """

    vms: tuple[str, ...] = ()
    repository: str | None = None
    remembered: tuple[RememberedVm, ...] | None = None
    operations: tuple[KnownOperation, ...] | None = None
    directories: tuple[str, ...] = ()
    held: frozenset[str] = frozenset()
    vms_only: bool = False
    others: frozenset[str] = frozenset()

    def vm(self, uuid: str) -> RememberedVm:
        """Return what is known of a VM; empty for one the catalogue does not know."""
        return next((vm for vm in self.remembered or () if vm.uuid == uuid), RememberedVm(uuid))

    @property
    def prefix(self) -> str | None:
        """How the names of this installation's checkpoints begin; None without a repository."""
        return None if self.repository is None else checkpoint_prefix(self.repository)


_NO_OPERATIONS: Final[Mapping[str, KnownOperation]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Operations:
    """The operations of an installation, found by the twelve characters that stand in the names of files."""

    by_short_id: Mapping[str, KnownOperation] = field(default_factory=lambda: _NO_OPERATIONS)

    @classmethod
    def of(cls, operations: tuple[KnownOperation, ...]) -> Operations:
        """Index them; of two that begin alike the one that has not ended counts."""
        ended_first = sorted(operations, key=lambda operation: operation.state in ("living", "interrupted"))
        return cls({operation.id[:12]: operation for operation in ended_first})

    def find(self, short_id: str) -> KnownOperation | None:
        return self.by_short_id.get(short_id[:12])

    def ended(self, short_id: str) -> KnownOperation | None:
        """Return the operation if it is known and has ended: only then is what it left nobody's any more."""
        found = self.find(short_id)
        return found if found is not None and found.state in ("done", "failed") else None
