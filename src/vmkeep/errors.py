"""The one tree of errors that reach a user.

Each class has a stable code (for programs), an exit status (for scripts), an HTTP status (for the server to
come) and a hint: what to do next. Adapters translate foreign errors once, with ``from``; nothing else does.
Exit statuses, by what the caller may do: 2 the request is wrong, 3 to 9 a thing is missing or there already,
10 to 19 the state of the VM or host forbids it, 20 to 29 stored data cannot be trusted, 30 to 39 a service
failed, 40 to 49 keys, 50 all was done and its result could not be printed, 130 and 143 the operation was ended by a
signal or by another process that asked for it, 1 a fault of vmkeep itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class VmkeepError(Exception):
    """Base of all errors: what happened, to which VM, disk or file, and what to do next.

    ``message`` is one sentence without a final full stop. ``vm``, ``disk`` and ``path`` name the thing it
    happened to, as the user knows it. ``hint`` replaces the hint of the class where the place knows better.
    """

    code: ClassVar[str] = "internal-error"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    default_hint: ClassVar[str] = "This is a fault of vmkeep. Run the command again with --debug and send the log."

    def __init__(
        self,
        message: str,
        *,
        vm: str | None = None,
        disk: str | None = None,
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.vm = vm
        self.disk = disk
        self.path = path
        self.hint = hint if hint is not None else self.default_hint

    def as_dict(self) -> dict[str, Any]:
        """Return the error as the JSON object that ``--json`` prints."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "vm": self.vm,
            "disk": self.disk,
            "path": self.path,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> VmkeepError:
        """Return the error that ``as_dict`` wrote, as its own class where the code is known."""
        kind = error_classes().get(value.get("code") or "", VmkeepError)
        return kind._made_of(value)

    @classmethod
    def _made_of(cls, value: Mapping[str, Any]) -> VmkeepError:
        return cls(
            value.get("message") or "unknown error",
            vm=value.get("vm"),
            disk=value.get("disk"),
            path=value.get("path"),
            hint=value.get("hint"),
        )


class GivenUp(BaseException):
    """The command ends as if it was killed, because a thread of it hangs in a call that nothing can end.

    ``error`` is what the user is told. It is no Exception, so that nothing on its way tries to undo what would hang as
    well: the guest is free, and the next command puts the rest right, as after a crash.
    """

    def __init__(self, error: VmkeepError) -> None:
        super().__init__(error.message)
        self.error = error


class UndoStopped(BaseException):
    """An undo failed, and those that come after it were not begun: they would build upon what it did not do.

    ``error`` is what the user is told. It is no Exception, so that the flow database keeps the flow as one that has not
    ended, and neither the failure of this undo: when the flow is taken up again, the undo is tried again.
    """

    def __init__(self, error: NeedsOperator) -> None:
        super().__init__(error.message)
        self.error = error


def error_classes() -> dict[str, type[VmkeepError]]:
    """Return every class of the tree by its code."""
    found: dict[str, type[VmkeepError]] = {}
    pending: list[type[VmkeepError]] = [VmkeepError]
    while pending:
        kind = pending.pop()
        found.setdefault(kind.code, kind)
        pending.extend(kind.__subclasses__())
    return found


# -- the request is wrong --------------------------------------------------------------------------------------


class InvalidRequest(VmkeepError):
    """An argument or a setting that cannot be meant."""

    code = "invalid-request"
    exit_status = 2
    http_status = 400
    default_hint = "See the command's --help."


class RequestTooLarge(InvalidRequest):
    """A request to the server that is longer than what it takes in."""

    code = "request-too-large"
    http_status = 413
    default_hint = "Nothing of it was kept. Send less at once."


class ChoiceRequired(InvalidRequest):
    """Two outcomes are possible and neither may be guessed."""

    code = "choice-required"
    http_status = 409
    default_hint = "Run the command again with the choice as an option."


class MomentInvalid(InvalidRequest):
    """A checkpoint or snapshot, or a file of them, that cannot be as it is written."""

    code = "moment-invalid"
    default_hint = "Nothing was changed. Correct what the message names and run the command again."


class MomentsForeign(InvalidRequest):
    """A file of checkpoints or snapshots that belongs to another VM, or holds the other kind."""

    code = "moments-foreign"
    http_status = 409
    default_hint = "Nothing was changed. Name the VM that the file is of; its UUID must be the same."


# -- missing, or there already ---------------------------------------------------------------------------------


class VmNotFound(VmkeepError):
    """No VM of that name or UUID on the host."""

    code = "vm-not-found"
    exit_status = 3
    http_status = 404
    default_hint = "`vmkeep vm list` shows the VMs of this host; -c URI names another one."


class PointNotFound(VmkeepError):
    """No point of that id, or an abbreviation that fits several."""

    code = "point-not-found"
    exit_status = 4
    http_status = 404
    default_hint = "`vmkeep points` lists the points that can be restored."


class RepositoryNotFound(VmkeepError):
    """Nothing that is a repository at that place."""

    code = "repository-not-found"
    exit_status = 5
    http_status = 404
    default_hint = (
        "Check the directory and whether it is mounted. If the repository was moved, give its new place: "
        "`vmkeep init --repository DIR`."
    )


class TargetExists(VmkeepError):
    """A file or VM is where something should be written."""

    code = "target-exists"
    exit_status = 6
    http_status = 409
    default_hint = "Choose another name or directory, or give --force to overwrite files (never a VM)."


class HostFileMissing(VmkeepError):
    """A file or directory on the host that the operation needs is not there."""

    code = "host-file-missing"
    exit_status = 7
    http_status = 409
    default_hint = "Put the file or directory in place and run the command again."


class ToolMissing(VmkeepError):
    """A program that the operation runs is not installed."""

    code = "tool-missing"
    exit_status = 9
    http_status = 409
    default_hint = "Install the package qemu-utils (qemu-img, qemu-nbd). Nothing was begun."


class MomentExists(TargetExists):
    """A checkpoint or snapshot, or a bitmap, has the name already."""

    code = "moment-exists"
    default_hint = "Nothing was changed. Choose another name."


class OperationNotFound(VmkeepError):
    """No operation of that id, or several that begin so."""

    code = "operation-not-found"
    exit_status = 8
    http_status = 404
    default_hint = "`vmkeep ops list --all` shows the operations."


class HostNotFound(VmkeepError):
    """No host of that name or id in the fleet."""

    code = "host-not-found"
    exit_status = 8
    http_status = 404
    default_hint = "`vmkeep host list` shows the hosts."


class MomentNotFound(VmkeepError):
    """The VM has no checkpoint or snapshot of that name, no current one, or this one has no parent."""

    code = "moment-not-found"
    exit_status = 8
    http_status = 404
    default_hint = "`vmkeep checkpoint list VM` and `vmkeep snapshot list VM` show what there is."


# -- the state of the VM or the host forbids it ----------------------------------------------------------------


class HostExhausted(VmkeepError):
    """The host, or a limit of this process, has no more memory, open files or threads to give."""

    code = "host-exhausted"
    exit_status = 10
    http_status = 503
    default_hint = "Raise the limit that the message names, or end other programs, and run the command again."


class HostDistrusted(VmkeepError):
    """The point was made by a host that was shut out here; what it holds becomes no VM."""

    code = "host-distrusted"
    exit_status = 26
    http_status = 403
    default_hint = (
        "Restore its data with --output DIR, or name a point of another host. `vmkeep host list` shows the hosts; "
        "`vmkeep host trust` takes one in again."
    )


class WritesAstray(VmkeepError):
    """QEMU writes to other images than libvirt says that the VM is on: no point would hold what the guest writes."""

    code = "writes-astray"
    exit_status = 25
    http_status = 409
    default_hint = "Nothing was changed. Run `vmkeep doctor --fix` while the VM runs; do not stop the VM before."


class VmBusy(VmkeepError):
    """Another operation holds the VM."""

    code = "vm-busy"
    exit_status = 11
    http_status = 409
    default_hint = "Wait for the other operation to end and run the command again."


class PointProtected(VmkeepError):
    """A point that is protected was to be removed."""

    code = "point-protected"
    exit_status = 48
    http_status = 409
    default_hint = "`vmkeep point unprotect POINT` ends that."


class RetentionHeld(VmkeepError):
    """So much would be removed at once, or in such a case, that somebody must say yes first."""

    code = "retention-held"
    exit_status = 49
    http_status = 409
    default_hint = "Look at the points (`vmkeep retain --dry-run`); `vmkeep retain VM --yes` removes them."


class OperationRuns(VmkeepError):
    """The operation is under way in another process, and must have ended for this."""

    code = "operation-runs"
    exit_status = 11
    http_status = 409
    default_hint = "Wait for it to end; `vmkeep ops list` shows how far it is, and `vmkeep ops cancel` stops it."


class DiskUnsupported(VmkeepError):
    """A disk that this release cannot include in a point."""

    code = "disk-unsupported"
    exit_status = 12
    http_status = 409
    default_hint = "Leave the disk out by name with --exclude TARGET; the point then says that it lacks it."


class HeaderRefused(DiskUnsupported):
    """An image names a file that may not be followed: whoever wrote the header may have no right to it."""

    code = "header-refused"
    default_hint = "Nothing was read. docs/operations.md says what an image may name, and how to correct it."


class StateUnsupported(VmkeepError):
    """TPM or firmware state that cannot be captured or put back."""

    code = "state-unsupported"
    exit_status = 13
    http_status = 409
    default_hint = "`vmkeep vm show VM` says what of the VM's state cannot be kept."


class HostUnfit(VmkeepError):
    """The definition of a VM asks for what this host's libvirt and QEMU do not have.

    ``misfits`` are all of them, each a JSON object with ``part``, ``what``, ``remedy`` and what else is known.
    """

    code = "host-unfit"
    exit_status = 13
    http_status = 409
    default_hint = "Nothing was written. Restore on a host that has it, or to files (--output DIR)."

    def __init__(
        self, message: str, *, misfits: Sequence[Mapping[str, Any]], vm: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, vm=vm, hint=hint)
        self.misfits = tuple(misfits)
        for misfit in self.misfits:
            self.add_note(f"{misfit.get('part')}: {misfit.get('what')}. {misfit.get('remedy')}")

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "misfits": [dict(misfit) for misfit in self.misfits]}

    @classmethod
    def _made_of(cls, value: Mapping[str, Any]) -> VmkeepError:
        return cls(
            value.get("message") or "unknown error",
            misfits=value.get("misfits") or (),
            vm=value.get("vm"),
            hint=value.get("hint"),
        )


class ClockAstray(VmkeepError):
    """The clock of this host differs so much from that of its server that no certificate can be judged."""

    code = "clock-astray"
    exit_status = 13
    http_status = 409
    default_hint = "Set the clock (`timedatectl`, chrony), and run the command again."


class DefinitionReaches(VmkeepError):
    """The definition of a VM that another made names programs, files or devices of this host, or what may do so.

    ``parts`` are all of them, each a JSON object with ``part``, ``what``, ``value`` and ``strippable``.
    """

    code = "definition-reaches-host"
    exit_status = 13
    http_status = 409
    default_hint = (
        "Nothing was written. --trust-definition defines the VM with all of it, --strip-host-parts without; or restore "
        "to files (--output DIR) and look at domain.xml."
    )

    def __init__(
        self, message: str, *, parts: Sequence[Mapping[str, Any]], vm: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message, vm=vm, hint=hint)
        self.parts = tuple(parts)
        for part in self.parts:
            value = part.get("value")
            self.add_note(f"{part.get('part')}: {part.get('what')}" + (f" ({value})" if value else ""))

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "parts": [dict(part) for part in self.parts]}

    @classmethod
    def _made_of(cls, value: Mapping[str, Any]) -> VmkeepError:
        return cls(
            value.get("message") or "unknown error",
            parts=value.get("parts") or (),
            vm=value.get("vm"),
            hint=value.get("hint"),
        )


class HostRefused(VmkeepError):
    """A host that spoke to the server without a certificate that says which host it is, or with one not admitted."""

    code = "host-refused"
    exit_status = 14
    http_status = 403
    default_hint = "Nothing was done for it. Give the host's agent the certificate that was made for this host."


class AuthorityMismatch(VmkeepError):
    """A server of a fleet that has not the authority which the token, or the last answer, named."""

    code = "authority-mismatch"
    exit_status = 14
    http_status = 403
    default_hint = (
        "Nothing was sent to it. Somebody may stand in between: compare the fingerprint with `vmkeep ca show` on the "
        "server, and ask for a new invite."
    )


class PermissionRefused(VmkeepError):
    """The host refused access."""

    code = "permission-denied"
    exit_status = 14
    http_status = 403
    default_hint = "Run vmkeep as root, or as a user who may read and write the file named."


class HomeExposed(VmkeepError):
    """Somebody other than root and this user owns or may write something of vmkeep's home, or may read a key there."""

    code = "home-exposed"
    exit_status = 14
    http_status = 403
    default_hint = "Nothing was used of it. `vmkeep doctor` lists all that is wrong, with the commands that mend it."


class AgentUnavailable(VmkeepError):
    """The guest agent that shall freeze the guest's file systems does not answer."""

    code = "agent-unavailable"
    exit_status = 15
    http_status = 409
    default_hint = "Install and start qemu-guest-agent in the guest, or leave out --quiesce."
    refused = False
    """Whether it answered, and said no."""


class VmRunning(VmkeepError):
    """The VM runs, or has a saved memory image, and this operation needs it off."""

    code = "vm-running"
    exit_status = 16
    http_status = 409
    default_hint = "Shut the VM down (`virsh shutdown VM`) and run the command again."


class RestorePending(VmkeepError):
    """A restore in place of the VM was interrupted, and its disks are not whole until it is finished."""

    code = "restore-pending"
    exit_status = 17
    http_status = 409
    default_hint = "Run `vmkeep doctor --fix`, which finishes the restore or rolls it back."


class NeedsOperator(VmkeepError):
    """An operation failed and undoing it stopped: what it did is there in part until a person puts it right.

    ``left`` are the steps whose undo was not done, in the order in which they would be undone.
    """

    code = "needs-operator"
    exit_status = 17
    http_status = 409
    default_hint = "`vmkeep ops list` names the operation, and `vmkeep ops show` what is left to do."

    def __init__(
        self,
        message: str,
        *,
        vm: str | None = None,
        disk: str | None = None,
        path: str | None = None,
        hint: str | None = None,
        left: Sequence[str] = (),
    ) -> None:
        super().__init__(message, vm=vm, disk=disk, path=path, hint=hint)
        self.left = tuple(left)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "left": list(self.left)}

    @classmethod
    def _made_of(cls, value: Mapping[str, Any]) -> VmkeepError:
        return cls(
            value.get("message") or "unknown error",
            vm=value.get("vm"),
            disk=value.get("disk"),
            path=value.get("path"),
            hint=value.get("hint"),
            left=value.get("left") or (),
        )


class VmOff(VmkeepError):
    """The VM is off, and this operation needs QEMU to run it."""

    code = "vm-off"
    exit_status = 18
    http_status = 409
    default_hint = "Start the VM (`virsh start VM`) and run the command again."


class SnapshotNeeded(VmkeepError):
    """What the deletion of a snapshot would change or remove is needed by something else."""

    code = "snapshot-needed"
    exit_status = 19
    http_status = 409
    default_hint = "Nothing was changed. Delete what needs it first, or remove libvirt's record of the snapshot only."


# -- stored data cannot be trusted -----------------------------------------------------------------------------


class IntegrityError(VmkeepError):
    """What is stored is not what was written."""

    code = "damaged"
    exit_status = 20
    default_hint = "Run `vmkeep verify --all` to see which points are harmed; the others can still be restored."


class ObjectDamaged(IntegrityError):
    """An object of the repository was changed, cut or swapped."""

    code = "object-damaged"


class ObjectMissing(IntegrityError):
    """An object that a point needs is not in the repository."""

    code = "object-missing"
    exit_status = 21


class FlowsForeign(VmkeepError):
    """The flow database holds what no vmkeep writes there: somebody else may have written to it."""

    code = "flows-foreign"
    exit_status = 28
    http_status = 409
    default_hint = "Nothing of it was read. Find out who may write to vmkeep's home, then move the database aside."


class PointChanged(IntegrityError):
    """The repository holds another record of a point than the one that was written or adopted here."""

    code = "point-changed"
    exit_status = 27
    default_hint = (
        "Whoever holds the repository's key can have put it there. Nothing was changed here. Find out who did; "
        "the VM's other points are listed by `vmkeep points`."
    )


class RepositoryForeign(VmkeepError):
    """A directory that holds something else, or a repository of a newer major version."""

    code = "repository-foreign"
    exit_status = 22
    http_status = 409
    default_hint = "Choose another directory; nothing was changed in this one."


class FeatureUnknown(RepositoryForeign):
    """A repository in which a newer vmkeep keeps something that older ones would misread or destroy."""

    code = "repository-feature"
    default_hint = "Use a newer vmkeep for this repository; nothing was read or written."


class KeyringReplaced(IntegrityError):
    """The keyring of the repository is an older or another one than was in force before."""

    code = "keyring-replaced"
    default_hint = (
        "Nothing was read or written. Who held a key that was removed, and can write to the storage, can do this: put "
        "`keyring/` back from a copy of the storage. Where an older copy of the whole repository was put back on "
        "purpose, `vmkeep init --adopt` takes its keyring as it is."
    )


class StateTorn(IntegrityError):
    """A state file that changed while it was read, or is not what it should be."""

    code = "state-torn"
    exit_status = 23
    default_hint = "Run the command again; if it stays so, look at the file named: swtpm may be unable to read it too."


class CheckpointBroken(IntegrityError):
    """A bitmap that a checkpoint stands on is missing, or cannot be trusted."""

    code = "checkpoint-broken"
    exit_status = 24
    http_status = 409
    default_hint = "Nothing was changed. Without --validate the checkpoint is listed all the same, and is no base."


# -- a service failed ------------------------------------------------------------------------------------------


class HypervisorError(VmkeepError):
    """libvirt or QEMU refused or failed an operation."""

    code = "hypervisor-error"
    exit_status = 30
    http_status = 502
    default_hint = "The message is libvirt's own; the VM was left as it was found."


class RelationsTorn(HypervisorError):
    """libvirtd holds moments whose links lead to what is not there any more; to change them would end it."""

    code = "relations-torn"
    http_status = 409
    default_hint = (
        "Restart libvirtd (`systemctl restart libvirtd`, or virtqemud); VMs that run go on. Then run the command again."
    )


class HypervisorUnavailable(HypervisorError):
    """libvirt cannot be reached."""

    code = "hypervisor-unavailable"
    exit_status = 31
    http_status = 503
    default_hint = "Check that libvirtd runs and that the URI (-c, LIBVIRT_DEFAULT_URI) is right."


class ServerUnreachable(VmkeepError):
    """The server of the fleet cannot be reached, or what answers there is none."""

    code = "server-unreachable"
    exit_status = 31
    http_status = 503
    default_hint = "See that `vmkeep serve` runs there, and that this host reaches the address. Then try it again."


class HypervisorHangs(HypervisorUnavailable):
    """libvirtd takes calls and answers none, or one of them never ends."""

    code = "hypervisor-hangs"
    http_status = 504
    default_hint = (
        "Look what libvirtd waits for (`systemctl status libvirtd`, its log, `dmesg`): storage that is gone is the "
        "usual cause. VMs run on when it is restarted (`systemctl restart libvirtd`, or virtqemud). Whatever was "
        "begun is put right by the guardian and the next command once it answers."
    )


class JobAborted(HypervisorError):
    """The backup job ended before the point was complete."""

    code = "job-aborted"
    exit_status = 32
    default_hint = "No point was made and the earlier ones are whole; run the command again."


class QemuDied(JobAborted):
    """The VM's QEMU died while a point of it was taken."""

    code = "qemu-died"
    default_hint = (
        "No point was made and the earlier ones are whole. Start the VM again. If nobody killed QEMU, look for its "
        "last words among the known faults (docs/guide/known-faults.md)."
    )


class VmStarted(JobAborted):
    """A VM that was off was started while a point of it was copied."""

    code = "vm-started"
    default_hint = "No point was made and the earlier ones are whole; run the command again."


class TransferError(VmkeepError):
    """Disk data could not be read from QEMU or written to a file."""

    code = "transfer-error"
    exit_status = 33
    http_status = 502
    default_hint = "No point or restored file was left behind; the message says which side failed."


class NoSpace(VmkeepError):
    """A file system is full."""

    code = "no-space"
    exit_status = 34
    http_status = 507
    default_hint = "Free space where the path says and run the command again; what was there is unharmed."


class StoreError(VmkeepError):
    """Storage failed: that of the repository, of vmkeep's home, or of a file on this host."""

    code = "store-error"
    exit_status = 35
    http_status = 502
    default_hint = "Look at the storage that the message names (`dmesg`), and run the command again."


class CatalogError(VmkeepError):
    """The catalogue cannot be read or written."""

    code = "catalog-error"
    exit_status = 36
    default_hint = "Nothing was changed. `vmkeep doctor` says whether the file is damaged, and what to do then."


class CatalogDamaged(CatalogError):
    """A database of vmkeep's home is not as it was written: SQLite's own check says so of what could be read."""

    code = "catalog-damaged"
    default_hint = (
        "`vmkeep doctor` names the command that moves the file aside; `vmkeep init --adopt` then makes the catalogue "
        "anew from the repository."
    )


class Stalled(VmkeepError):
    """The repository's storage does not answer, and gives no error either."""

    code = "stalled"
    exit_status = 38
    http_status = 504
    default_hint = (
        "The VM was let go on and no point was made; the earlier ones are whole. Look at the storage (`dmesg`, is it "
        "still connected?). When it answers again, run the command again. stalled_after_seconds in vmkeep.toml is how "
        "long vmkeep waits."
    )


class SnapshotIncomplete(VmkeepError):
    """libvirt made the snapshot, and the TPM state and UEFI variables of its instant are not kept with it."""

    code = "snapshot-incomplete"
    exit_status = 39
    http_status = 409
    default_hint = (
        "libvirt lists the snapshot, as virsh would have made it: its disks are whole, and what the guest wrote since "
        "is kept. `vmkeep snapshot delete VM NAME` takes it away again; then make another one."
    )


class OperationFailed(VmkeepError):
    """Several things were asked for and not all were done."""

    code = "incomplete"
    exit_status = 37
    default_hint = "Each failure is listed with its own message."


class DeletionStopped(OperationFailed):
    """Several checkpoints or snapshots were to be deleted, and one of them could not be."""

    code = "deletion-stopped"
    default_hint = (
        "What is left is whole, and in the place where it was. Put right what the message says, and run it again."
    )


# -- keys ------------------------------------------------------------------------------------------------------


class KeyMissing(VmkeepError):
    """The key that opens the repository is not on this host."""

    code = "key-missing"
    exit_status = 40
    http_status = 409
    default_hint = "Import it with `vmkeep key import FILE`; it was printed by `vmkeep key export`."


class WrongKey(VmkeepError):
    """A key that does not open this repository, or a passphrase that does not open the key or a disk image."""

    code = "wrong-key"
    exit_status = 41
    http_status = 403
    default_hint = "Check the passphrase and that the key belongs to this repository."


class SecretMissing(VmkeepError):
    """libvirt does not have the secret that a disk image, or a TPM's state, is encrypted with, or no value for it."""

    code = "secret-missing"
    exit_status = 42
    http_status = 409
    default_hint = "`virsh secret-define` and `virsh secret-set-value` give libvirt the secret."


class SecretUnfit(VmkeepError):
    """The secret of a point is not one that libvirt here may be given for the VM: it is for another use, or VM."""

    code = "secret-unfit"
    exit_status = 44
    http_status = 409
    default_hint = (
        "Ask who made the point. Without its TPM it restores: --tpm new with --as, --tpm keep with --in-place."
    )


class SecretPrivate(VmkeepError):
    """libvirt keeps the value of the secret to itself, so only QEMU can open the disk image."""

    code = "secret-private"
    exit_status = 43
    http_status = 409
    default_hint = "Start the VM for a backup; for a restore, define the secret anew with private='no'."


class ProviderUnreachable(VmkeepError):
    """What holds a key outside of this host, or beside it, did not answer. Asking again later is safe."""

    code = "provider-unreachable"
    exit_status = 45
    http_status = 503
    default_hint = (
        "Nothing was changed. `vmkeep key providers` tells when it answers; another recipient's key opens too."
    )


class ProviderRefused(VmkeepError):
    """What holds a key answered, and did not do what was asked: it does not know this host, or does not allow it."""

    code = "provider-refused"
    exit_status = 46
    http_status = 403
    default_hint = (
        "Nothing was changed. Look at what the provider's own log says, and at the settings of its table [key]."
    )


class KeyUnknown(VmkeepError):
    """What holds keys has none of that name, or none of the kind that is needed."""

    code = "key-unknown"
    exit_status = 47
    http_status = 409
    default_hint = "Correct `key` in the provider's settings, or bring the key back from the provider's own backup."


# -- nobody could be told --------------------------------------------------------------------------------------


class OutputFailed(VmkeepError):
    """The result could not be printed. Whatever else was asked for was done."""

    code = "output-failed"
    exit_status = 50
    default_hint = "Print to a place that is open and has room."


# -- ended from outside ----------------------------------------------------------------------------------------


class Interrupted(VmkeepError):
    """Ctrl-C, or SIGINT."""

    code = "interrupted"
    exit_status = 130
    http_status = 499
    default_hint = "The operation was ended and cleaned up; run the command again when it suits."


class Cancelled(VmkeepError):
    """Another process asked the operation to stop (`vmkeep ops cancel`)."""

    code = "cancelled"
    exit_status = 130
    http_status = 499
    default_hint = "The operation was ended and cleaned up; run the command again when it suits."


class Terminated(Interrupted):
    """SIGTERM."""

    code = "terminated"
    exit_status = 143
