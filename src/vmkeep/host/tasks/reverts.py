"""What a host is asked to take a VM back to a snapshot."""

from __future__ import annotations

from vmkeep.custody.states import KnownState
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """What was kept with a snapshot that vmkeep made: the state files of its instant."""

    creation_time: int
    states: tuple[KnownState, ...]


@dataclass(frozen=True, slots=True)
class RevertChoice:
    """What of a snapshot goes back. ``only`` and ``tpm`` are as in CheckInPlace.

    ``memory`` False leaves the memory that the snapshot holds, so that the VM boots. ``force`` lets disks stay that the
    VM got since. ``drop_checkpoints`` removes checkpoints and bitmaps of others where nothing goes with them.
    ``reset_nvram`` leaves the UEFI variables, which are made anew at the start.
    """

    snapshot: str
    only: tuple[str, ...] = ()
    tpm: str = "same"
    memory: bool = True
    force: bool = False
    drop_checkpoints: bool = False
    reset_nvram: bool = False


@dataclass(frozen=True, slots=True)
class Descent:
    """Which point the state of a VM descends from: None for none at all; ``known`` False when nobody knows."""

    point: str | None = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class RevertChecked:
    """What a revert would do. ``kept``: state files of the snapshot's instant are known, by ``known`` of the request.

    ``missing`` are disks of the VM that have no image any more. ``left`` are the images that the VM has now.
    """

    vm_uuid: str
    vm_name: str
    running: bool
    creation_time: int
    kept: bool
    disks: tuple[str, ...]
    states: tuple[str, ...]
    memory: bool
    missing: tuple[str, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CheckRevert(Task[RevertChecked]):
    """Look whether the VM can be reverted, and change nothing. Answers RevertChecked. ``stop``: it may run."""

    vm: str
    choice: RevertChoice
    known: KnownSnapshot | None
    stop: bool


@dataclass(frozen=True, slots=True)
class StopForRevert(Task[None]):
    """Pull the plug of the VM that will be reverted; one that is off is fine. Refused beside a job."""

    vm_uuid: str


@dataclass(frozen=True, slots=True)
class RevertParked:
    """``images`` are the files that the disks will be on; ``whole``: all disks of the snapshot go back.

    The rest is as in RevertChecked.
    """

    vm_uuid: str
    vm_name: str
    disks: tuple[str, ...]
    states: tuple[str, ...]
    memory: bool
    whole: bool
    images: tuple[str, ...]
    left: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ParkForRevert(Task[RevertParked]):
    """Keep the VM from starting and write the journal of its revert. Answers RevertParked.

    ``run`` says how it is afterwards: "then" (as at the snapshot), "running" or "paused". ``discard`` removes the
    images that it has now and nothing needs. ``aim`` and ``origin`` say which point it descends from afterwards and
    does now. ``safety`` is the point that holds it as it is now; empty when none was taken.
    """

    operation: str
    vm_uuid: str
    choice: RevertChoice
    known: KnownSnapshot | None
    run: str
    discard: bool
    aim: Descent
    origin: Descent
    safety: str = ""


@dataclass(frozen=True, slots=True)
class StageRevert(Task[None]):
    """Make the overlays and write the state files, all beside their places."""

    operation: str


@dataclass(frozen=True, slots=True)
class ApplyRevert(Task[None]):
    """Rename the state files into place, make the snapshot the current one, and put back its memory, paused."""

    operation: str


@dataclass(frozen=True, slots=True)
class RevertReleased:
    """How the VM is now. ``not_started`` says why it does not run, although it should."""

    state: str
    not_started: str
    discarded: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReleaseReverted(Task[RevertReleased]):
    """Let the VM start on its new images, and start or resume it where that was asked for. Answers RevertReleased."""

    operation: str
    vm_uuid: str


@dataclass(frozen=True, slots=True)
class PutBackRevert(Task[None]):
    """Undo everything since ParkForRevert. Raises RestorePending if it cannot."""

    operation: str
    vm_uuid: str
