"""A VM's disks made readable as of one instant, in one of two ways: through a backup job of a running VM
(``vmkeep.host.points.running``) or from the images of one that is off (``vmkeep.host.points.stopped``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from vmkeep.config import Settings
from vmkeep.definition import Definition
from vmkeep.errors import TransferError, VmkeepError
from vmkeep.filesystem import file_errors, make_directory
from vmkeep.host.guard.guardian import Guardian
from vmkeep.host.guard.handshakes import allow_connections
from vmkeep.host.guard.rescue import JobRecord
from vmkeep.host.points.instant import Instant
from vmkeep.host.records.sockets import socket_directory
from vmkeep.host.vm.keys import key_of_disk
from vmkeep.host.vm.states import StateSource
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.locks import FileLock
from vmkeep.planning import DiskPlan, PointPlan
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.source import DiskSource
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class Subject:
    """What a point is made of, as it was found when the point was planned."""

    operation: str
    hypervisor: Hypervisor
    domain: Domain
    definition: Definition
    chains: Mapping[str, tuple[ImageLayer, ...]]
    plan: PointPlan
    states: tuple[StateSource, ...]
    known_states: frozenset[str]  # the kinds of state of which there are earlier versions
    checkpoint: str
    kept: frozenset[str]  # older checkpoints that are still the base of a disk which is not in this point
    prefix: str
    lock: FileLock

    @property
    def uri(self) -> str:
        return self.hypervisor.uri

    def key(self, target: str) -> ImageKey | None:
        """Return what opens the image of a disk; None for one that is plain. Raises SecretMissing, SecretPrivate."""
        return key_of_disk(self.hypervisor, self.definition, target)

    @property
    def marked(self) -> tuple[str, ...]:
        """The targets of the disks that get a new bitmap."""
        return tuple(disk.target for disk in self.plan.disks if disk.bitmap)

    def directory(self, settings: Settings) -> Path:
        """Return the directory of the point's sockets; a socket's whole path must be short."""
        return socket_directory(settings, self.operation)


class Exposure(Protocol):
    """The disks of one instant. Made by opening it; ended by ``close`` when the point is stored, else ``abandon``."""

    @property
    def plan(self) -> PointPlan:
        """The plan, with what turned out only now."""
        ...

    @property
    def instant(self) -> Instant: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def source(self, planned: DiskPlan) -> AbstractContextManager[DiskSource]:
        """Return where a disk is read from; to be entered and left in one thread."""
        ...

    def watched(self, stop: Callable[[], None]) -> Callable[[], None]:
        """Return ``stop``, made to raise as well when what is read may not be of the instant any more."""
        ...

    def prove(self) -> None:
        """Raise unless everything read until now was of the instant."""
        ...

    def explain(self, error: TransferError) -> VmkeepError:
        """Return what really happened when a source broke off."""
        ...

    def keep(self) -> None:
        """The point is stored: its bitmaps stay, whatever happens to vmkeep."""
        ...

    def close(self) -> list[str]:
        """End everything, and remove the bitmaps that the new ones replace. Trouble is told, not raised."""
        ...

    def abandon(self) -> None:
        """Undo everything: the VM is as it was before."""
        ...


def guarded(subject: Subject, settings: Settings, record: JobRecord) -> Guardian:
    """Start the guardian of a job, then make the directory of its sockets, which the guardian removes."""
    with file_errors(settings.guards_dir):
        settings.guards_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    guardian = Guardian(record, settings.guards_dir, hold=(subject.lock.descriptor,))
    guardian.wait_ready()
    try:
        _make_socket_directory(subject.directory(settings), subject.definition.dac_owner)
    except BaseException:
        guardian.rescue_now()
        raise
    return guardian


def _make_socket_directory(directory: Path, owner: tuple[int, int] | None) -> None:
    """Make the directory in which QEMU, as its own user, creates the socket; others cannot enter it."""
    with file_errors(directory):
        make_directory(directory.parent, 0o711)
        make_directory(directory)
        allow_connections(directory)
        if owner is not None and os.geteuid() == 0:
            os.chown(directory, *owner)
