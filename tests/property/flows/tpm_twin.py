"""A host in memory that has one VM with a TPM, and the record of a flow's steps, for the real flows of TPMs.

What the flows decide, and what catalogue and repository make of it, is vmkeep's own; the definition, swtpm's file and
libvirt's secret are made up. A fault comes before or after the work of a task; so does a death, which nothing catches.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from collections.abc import Callable
from typing import Any

from vmkeep.custody.orphans import Orphan, OrphanFile
from vmkeep.custody.states import NewVersion, SealedSecret
from vmkeep.definition.tpmdevice import tpm_element
from vmkeep.errors import InvalidRequest, NoSpace, TargetExists, VmkeepError
from vmkeep.host.protocol import TaskState
from vmkeep.host.tasks.gate import HasGate
from vmkeep.host.tasks.states import CaptureStates, StatesCaptured
from vmkeep.host.tasks.survey import FindVm, HostIdentity, Identify
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.tpms import (
    DeleteTpmState,
    DropTpmSecret,
    GiveTpmSecret,
    HoldForTpm,
    InstallTpmState,
    JudgeTpmSecret,
    LetTpmGo,
    MakeTpmKey,
    PlanTpmSecret,
    PutTpmIn,
    RekeyTpmState,
    RequireTpmFits,
    SecretJudged,
    TakeTpmOut,
    TakeTpmSecretBack,
    TpmFound,
    TpmRemains,
    TpmRemainsFound,
    TpmStateDeleted,
    TpmStateRekeyed,
    WithdrawTpmState,
)
from vmkeep.host.tasks.unfinished import ListUnfinished, RequireUnneeded, RescueGuests, Unfinished
from vmkeep.host.vm.versions import store_states
from vmkeep.repository import PointSecret, Repository
from vmkeep.statefiles.capture import CapturedState

VM = "16b6c512-678b-44b6-a438-527ecc51f748"
NAME = "win11"
SECRET = "56d05fbb-e36a-4b16-af39-ceebc40c05af"  # noqa: S105  its UUID
DIRECTORY = f"/var/lib/libvirt/swtpm/{VM}"
FILE = "tpm2/tpm2-00.permall"
_AT = "2026-01-01T00:00:00.000000+00:00"


class Death(BaseException):
    """The process is killed."""


@dataclasses.dataclass
class Truth:
    """What is on the host: the device, swtpm's file, and the secrets that libvirt has."""

    element: str
    content: bytes | None = None
    secrets: frozenset[str] = frozenset()

    @property
    def secret(self) -> str:
        """The secret that the device names."""
        return secret_in(self.element)


def element_with(secret: str) -> str:
    return tpm_element("tpm-crb", "2.0", secret)


def secret_in(element: str) -> str:
    found = re.search(r'<encryption secret="([^"]*)"', element)
    return "" if found is None else found[1]


def state_of(number: int, secret: str) -> bytes:
    """Return the n-th state of the TPM as swtpm writes it; it opens with this secret alone."""
    body = hashlib.shake_256(f"{number} {secret}".encode()).digest(590)
    return struct.pack(">BBHHI", 2, 1, 10, bool(secret), 600) + body


def _value_of(uuid: str) -> bytes:
    return hashlib.sha256(uuid.encode()).digest()


class TpmTwin:
    """The host. ``fault`` is asked before and after the work of each task, and may raise. ``look`` sees each effect."""

    def __init__(self, repository: Callable[[], Repository], truth: Truth) -> None:
        self.truth = truth
        self.opens: dict[str, str] = {}
        """What was written, by its hash, and the secret that opens it."""
        self.fault: Callable[[Task[Any], str], None] = lambda _task, _when: None
        self.look: Callable[[], None] = lambda: None
        self.done: list[Task[Any]] = []
        self._repository = repository
        self._ended: dict[str, TaskState] = {}
        self._installed: set[str] = set()

    # -- the door ------------------------------------------------------------------------------------------------

    def ask(self, task: Any) -> Any:
        match task:
            case FindVm():
                return VM
            case Identify():
                return HostIdentity("9f0e5c1a-0000-4000-8000-000000000001", "alpha")
            case HasGate():
                return False
            case Identify():
                return HostIdentity("9a3c0d2e-1d0b-4b3c-9a55-2f1f6f3a7d10", "host")
            case RescueGuests():
                return ()
            case ListUnfinished():
                return Unfinished((), ())
            case RequireUnneeded():
                return None
        raise AssertionError(task)

    def start(self, operation: str, task: Task[Any]) -> None:
        try:
            self.fault(task, "before")
            answer = self._carry_out(task)
            self.done.append(task)
            self.look()
            self.fault(task, "after")
            self._ended[operation] = TaskState(ended=True, result=answer)
        except VmkeepError as error:
            self._ended[operation] = TaskState(ended=True, error=error)

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:  # noqa: ARG002  it has ended already
        return self._ended[operation]

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        raise AssertionError((operation, reason))

    def release_guest(self, operation: str) -> None:
        raise AssertionError(operation)

    # -- what it does --------------------------------------------------------------------------------------------

    def _carry_out(self, task: Task[Any]) -> Any:  # noqa: C901  one arm a task, and nothing else
        truth = self.truth
        match task:
            case HoldForTpm():
                return self._found()
            case CaptureStates():
                return self._captured(task)
            case TakeTpmOut():
                truth.element = ""
            case PutTpmIn():
                truth.element = truth.element or task.element
            case TpmRemains():
                return TpmRemainsFound(self._orphan())
            case DeleteTpmState():
                return self._delete(task)
            case InstallTpmState():
                self._install(task)
            case WithdrawTpmState():
                if task.operation in self._installed:
                    truth.content = None
            case JudgeTpmSecret():
                return self._judged(task)
            case DropTpmSecret():
                truth.secrets -= {task.secret}
                return SecretJudged(point=task.point, pin=task.pin, at=_AT)
            case PlanTpmSecret():
                return task.secret not in truth.secrets
            case GiveTpmSecret():
                assert task.point or self._holds(task.pin, task.secret)
                truth.secrets |= {task.secret}
            case TakeTpmSecretBack():
                truth.secrets -= {task.secret} - {truth.secret}
            case MakeTpmKey():
                return self._sealed(task.secret, "")
            case RekeyTpmState():
                return self._rekeyed(task)
            case LetTpmGo() | RequireTpmFits():
                pass
            case _:
                raise AssertionError(task)
        return None

    def _found(self) -> TpmFound:
        if not self.truth.element:
            return TpmFound(VM, NAME, directory=DIRECTORY)
        return TpmFound(
            VM,
            NAME,
            self.truth.element,
            3,
            "tpm-crb",
            "2.0",
            "emulator",
            self.truth.secret,
            self.truth.secret in self.truth.secrets,
            DIRECTORY,
            FILE,
            self.truth.content is not None,
        )

    def _captured(self, task: CaptureStates) -> StatesCaptured:
        content = self.truth.content
        assert content is not None, "a state that is not there was asked for"
        read = CapturedState("tpm", FILE, content, "tss", "tss", 0o600, "host")
        stored = store_states(self._repository(), self._repository(), [read], task.known, VM)
        new = tuple(
            NewVersion(each.kind, each.id, each.generation, each.sha256, each.size_bytes, each.created)
            for each in stored.new
        )
        secret, versions = self.truth.secret, [ref.version_id for ref in stored.refs]
        kept = [each for each in task.secrets if each.version_id in versions and each.uuid == secret]
        sealed = () if not secret or kept else (self._sealed(secret, versions[0]),)
        return StatesCaptured(NAME, ("tpm",), new, stored.older, sealed=sealed)

    # -- secrets ---------------------------------------------------------------------------------------------------

    def _sealed(self, uuid: str, version: str) -> SealedSecret:
        secret = PointSecret("vtpm", uuid, f"vmkeep-{uuid}", "TPM", ephemeral=False, value=_value_of(uuid))
        return SealedSecret(self._repository().pins.seal(VM, (secret,))[0], version, "vtpm", uuid)

    def _holds(self, pin: str, uuid: str) -> bool:
        repository = self._repository()
        held = repository.secrets(repository.pins.get(pin))
        return any((each.uuid, each.value) == (uuid, _value_of(uuid)) for each in held)

    def _judged(self, task: JudgeTpmSecret) -> SecretJudged:
        if task.secret not in self.truth.secrets or task.secret == self.truth.secret:
            return SecretJudged(why="no")
        pin = next((pin for pin in task.pins if self._holds(pin, task.secret)), "")
        point = "" if pin else next(iter(task.points), "")
        return SecretJudged(point, "" if pin or point else "no", pin)

    def _rekeyed(self, task: RekeyTpmState) -> TpmStateRekeyed:
        old = self._repository().state(task.version.id)[1]
        assert self.opens[hashlib.sha256(old).hexdigest()] == task.old, "it does not open"
        new = "" if task.new is None else task.new.uuid
        content = state_of(1_000_000 + len(self.opens), new)  # other bytes at each attempt, as swtpm's
        self.opens[hashlib.sha256(content).hexdigest()] = new
        version = self._repository().put_state(
            content,
            vm_uuid=VM,
            kind="tpm",
            generation=task.generation,
            file=FILE,
            owner="tss",
            group="tss",
            mode=0o600,
        )
        kept = NewVersion(
            version.kind, version.id, version.generation, version.sha256, version.size_bytes, version.created
        )
        return TpmStateRekeyed(kept, self._sealed(new, version.id) if new else None)

    # -- the state -------------------------------------------------------------------------------------------------

    def _orphan(self) -> Orphan | None:
        content = self.truth.content
        if content is None:
            return None
        sha256 = hashlib.sha256(content).hexdigest()
        file = OrphanFile(FILE, len(content), _AT, sha256[:8], sha256)
        return Orphan("tpm", DIRECTORY, VM, (file,))

    def _delete(self, task: DeleteTpmState) -> TpmStateDeleted:
        if self.truth.element:
            raise InvalidRequest("the VM has a TPM")
        kept = {hashlib.sha256(self._repository().state(each.id)[1]).hexdigest() for each in task.kept}
        if self.truth.content is not None and hashlib.sha256(self.truth.content).hexdigest() not in kept:
            return TpmStateDeleted((), (f"{DIRECTORY}/{FILE} stays",), at=_AT)
        self.truth.content = None
        return TpmStateDeleted((f"{DIRECTORY}/{FILE}", DIRECTORY), (), at=_AT)

    def _install(self, task: InstallTpmState) -> None:
        content = self._repository().state(task.version.id)[1]
        if self.truth.content == content:
            return
        if self.truth.content is not None:
            raise TargetExists("something else lies there")
        self.truth.content = content
        self._installed.add(task.operation)


class StepRecorder:
    """What DBOS is to a flow, in memory: a step that ended is not run again, and a death is recorded nowhere."""

    def __init__(self, operation: str) -> None:
        self.workflow_id = operation
        self._recorded: list[tuple[str, Any, Exception | None]] = []
        self._next = 0

    def begin(self) -> None:
        """Take the flow up from its start."""
        self._next = 0

    def run_step(self, options: dict[str, str], function: Callable[[], Any]) -> Any:
        if self._next < len(self._recorded):
            name, result, error = self._recorded[self._next]
            assert name == options["name"], "the steps of a flow that goes on differ from those that ended"
            self._next += 1
            if error is not None:
                raise error
            return result
        try:
            result, error = function(), None
        except Exception as failed:
            result, error = None, failed
        self._recorded.append((options["name"], result, error))
        self._next += 1
        if error is not None:
            raise error
        return result


def full(task: Task[Any]) -> NoSpace:
    return NoSpace(f"no room for {type(task).__name__}", path="/var/lib/libvirt")
