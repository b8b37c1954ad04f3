"""What a host is asked of itself and of its VMs, and what it tells of them."""

from __future__ import annotations

from typing import Literal

from vmkeep.custody.standing import FoundState
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class HostIdentity:
    """A host's UUID as libvirt knows it, and its name."""

    uuid: str
    name: str


@dataclass(frozen=True, slots=True)
class Identify(Task[HostIdentity]):
    """Tell which host this is."""


@dataclass(frozen=True, slots=True)
class FindVm(Task[str]):
    """Tell the UUID of a VM, given by name or UUID, without looking at the rest of it; raises VmNotFound."""

    vm: str


@dataclass(frozen=True, slots=True)
class SurveyedDisk:
    """A disk as the definition has it. ``size_bytes`` is None where it cannot be read (VM off, no medium).

    ``problem`` says why a point would leave it out or be refused; None when it would be kept whole. ``read_whole``
    says why each point reads all of it where that can be changed, and how. ``left_out`` is whether the VM's settings
    leave it out of every point.
    """

    target: str
    device: str
    source: str | None
    format: str | None
    size_bytes: int | None
    problem: str | None
    read_whole: str | None = None
    left_out: bool = False


@dataclass(frozen=True, slots=True)
class SurveyedVm:
    """A VM and whether a point of it would be complete; ``problems`` says why not, one sentence each.

    ``skip``: `backup --all` leaves it out, by its settings, and ``reason`` is what they give for it or for the disks
    that they leave out. ``clone_of`` is the name of the VM that it was cloned from, ``clone_of_uuid`` that one's UUID.
    """

    name: str
    uuid: str
    state: Literal["running", "paused", "crashed", "off", "other"]
    disks: tuple[SurveyedDisk, ...]
    firmware: Literal["uefi", "bios"]
    nvram: str | None
    tpm: str | None
    complete: bool
    problems: tuple[str, ...]
    skip: bool = False
    reason: str | None = None
    clone_of: str | None = None
    clone_of_uuid: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an operation stands. ``total_bytes`` is 0 until it is known. ``note`` is to be said once, in any case."""

    stage: str
    disk: str | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    note: str | None = None


@dataclass(frozen=True, slots=True)
class LookAtVms(Task[tuple[SurveyedVm, ...]]):
    """Tell of the VMs of the host, by name."""


@dataclass(frozen=True, slots=True)
class ListedVm:
    """A VM as libvirt lists it. ``state`` is running, paused, off or other."""

    name: str
    uuid: str
    state: str


@dataclass(frozen=True, slots=True)
class ListVms(Task[tuple[ListedVm, ...]]):
    """Tell which VMs the host has, by name, and look at none of them."""


@dataclass(frozen=True, slots=True)
class LookAtVm(Task[SurveyedVm]):
    """Tell of one VM, given by name or UUID; raises VmNotFound."""

    vm: str


@dataclass(frozen=True, slots=True)
class StatesOfVm:
    """The state files of a VM as they were found. ``problem`` says why not all of them can be told."""

    name: str
    uuid: str
    state: str
    files: tuple[FoundState, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class LookAtStates(Task[tuple[StatesOfVm, ...]]):
    """Tell of the state files of VMs, given by names or UUIDs; of all, when none is. Raises VmNotFound."""

    vms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequireRights(Task[None]):
    """Raise PermissionRefused when vmkeep's user may not use the files of a VM that a point of it needs."""

    vm: str
