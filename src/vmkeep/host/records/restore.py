"""The journal of a restore in place: what must be known to finish it, or to take it back, whoever died meanwhile.

It is written and synced before the VM is touched, again before the first write to a disk, and removed last. What a
repeated step does is decided by what stands here.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

from vmkeep.config import Settings
from vmkeep.custody.states import SecretSource
from vmkeep.errors import RestorePending, VmBusy
from vmkeep.filesystem import file_error, sync_directory
from vmkeep.host.records.unended import journals
from vmkeep.host.tasks.restores import DeliveredItem
from vmkeep.values import dataclass


class RestoreStage(StrEnum):
    """How far a restore in place is, as far as its end depends on it."""

    PARKED = "parked"
    """The VM is being kept from starting, and nothing of it was written over."""
    WRITING = "writing"
    """The ranges are planned; from here on disks and state files may be of either point."""
    BACK = "rolling-back"
    """It failed, and the VM is being made what it was at the safety point."""
    ROLLED_BACK = "rolled-back"
    """The VM is what it was at the safety point, and may start."""
    RELEASED = "released"
    """All is done and the VM may start; what was kept aside is being removed."""


@dataclass(frozen=True, slots=True)
class JournalDisk:
    """A disk that is restored: its image on this host.

    ``made``: the image is made anew and renamed into place; else blocks are written over. ``runs`` are the blocks
    that may be written, (first, count) ascending; None before they are planned. ``exact``: they were proved to be
    all that differs from the point, so they are written unread. ``broken``: bitmaps of others that were no good
    already. ``secret`` names what opens an encrypted image. ``seen`` is what an image without bitmaps told of itself
    before the safety point was taken (`overwriting.image_mark`); empty for others.
    """

    target: str
    path: str
    format: str
    made: bool
    runs: tuple[tuple[int, int], ...] | None = None
    exact: bool = False
    broken: tuple[str, ...] = ()
    secret: str = ""
    seen: str = ""


@dataclass(frozen=True, slots=True)
class JournalOverlay:
    """A new image of a disk, on top of the one that holds a snapshot's state: ``base``, which is never written to.

    ``former`` is the image that the disk was on until now; ``owner``, ``group`` and ``mode`` are that one's. It is
    removed in the end with ``discard``. ``bitmaps`` are (name, granularity) of those that go on in the new one.
    """

    target: str
    path: str
    base: str
    base_format: str
    former: str
    owner: int
    group: int
    mode: int
    bitmaps: tuple[tuple[str, int], ...] = ()
    discard: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotRevert:
    """What a journal says besides when the VM goes back to a snapshot of libvirt, and not to a point.

    ``memory`` is the file of its memory that is put back, empty for none. ``internal``: it is in the images themselves
    (the journal's ``disks``), ``with_memory`` or without. ``run`` is how the VM is in the end: "off", "running" or
    "paused". ``former_current`` is libvirt's current snapshot before. ``aim`` and ``origin`` are the points that the VM
    descends from afterwards and before, as (point or "", whether it is known). ``checkpoints`` is the XML of those that
    libvirt listed, parents first. ``definition`` is the VM's as it was, where libvirt's own revert changes it.
    """

    snapshot: str
    overlays: tuple[JournalOverlay, ...]
    memory: str
    internal: bool
    with_memory: bool
    run: str
    reset_nvram: bool
    drop_checkpoints: bool
    former_current: str
    aim: tuple[str, bool]
    origin: tuple[str, bool]
    states: tuple[tuple[str, str], ...]
    checkpoints: tuple[str, ...] = ()
    definition: str = ""


@dataclass(frozen=True, slots=True)
class StatesReturn:
    """What a journal says besides when kept versions of state files go back, and nothing of a point.

    ``found`` is what lay there when it was kept, as (kind, SHA-256, empty for no file). ``secret`` opens the TPM's
    among what goes back.
    """

    found: tuple[tuple[str, str], ...]
    secret: SecretSource | None = None


@dataclass(frozen=True, slots=True)
class RestoreJournal:
    """One restore in place. ``items`` are the files that are renamed into place: state files and images made anew.

    ``whole``: all disks of the point go back. ``parked_path`` is empty for a VM without disks, which is not parked.
    ``parked_element`` puts its first disk right. ``revert`` is set when it goes to a snapshot of libvirt, ``states``
    when only versions of state files go back: then there are no points.
    """

    operation: str
    uri: str
    vm: str
    vm_uuid: str
    point: str
    safety: str
    disks: tuple[JournalDisk, ...]
    items: tuple[DeliveredItem, ...]
    parked_path: str
    parked_target: str
    parked_element: str
    whole: bool
    stage: RestoreStage = RestoreStage.PARKED
    revert: SnapshotRevert | None = None
    states: StatesReturn | None = None

    @property
    def aim(self) -> str:
        """What it goes to, in words."""
        if self.states is not None:
            return "kept versions of its state"
        return f"point {self.point}" if self.revert is None else f"snapshot {self.revert.snapshot}"

    @property
    def before(self) -> str:
        """What to do about a VM whose definition was put back by hand, so that it is as it was before."""
        if self.states is not None:
            return "then put its state back once more: `vmkeep state versions` lists what was kept of it"
        return f"then restore in place once more: point {self.safety} is the VM before"

    def save(self, directory: Path) -> None:
        """Write the journal durably; the file is named after the operation and nobody else may read it."""
        path = journal_path(directory, self.operation)
        beside = path.with_suffix(".partial")
        try:
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(directory.parent)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(dataclasses.asdict(self), stream, separators=(",", ":"))
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
            sync_directory(directory)
        except OSError as error:
            raise file_error(error, path) from error

    @classmethod
    def load(cls, path: Path) -> RestoreJournal:
        """Read a journal; raises FileNotFoundError, and ValueError for one that cannot be read."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            value["stage"] = RestoreStage(value["stage"])
            value["items"] = tuple(DeliveredItem(**item) for item in value["items"])
            value["disks"] = tuple(_disk(disk) for disk in value["disks"])
            if value.get("revert") is not None:
                value["revert"] = _revert(value["revert"])
            if value.get("states") is not None:
                value["states"] = _states(value["states"])
            return cls(**value)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the journal of a restore: {error}") from error

    def remove(self, directory: Path) -> None:
        """Remove the journal, durably; one that is gone is fine."""
        path = journal_path(directory, self.operation)
        try:
            path.with_suffix(".partial").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            sync_directory(directory)
        except OSError as error:
            raise file_error(error, path) from error


def _disk(value: dict[str, object]) -> JournalDisk:
    runs, broken = value.pop("runs"), value.pop("broken")
    assert isinstance(broken, list)
    planned = None if not isinstance(runs, list) else tuple((int(first), int(count)) for first, count in runs)
    return JournalDisk(**value, runs=planned, broken=tuple(broken))  # type: ignore[arg-type] # wrong fields: TypeError


def _revert(value: dict[str, Any]) -> SnapshotRevert:
    value["overlays"] = tuple(
        JournalOverlay(**{**each, "bitmaps": tuple((str(name), int(size)) for name, size in each["bitmaps"])})
        for each in value["overlays"]
    )
    value["states"] = tuple((str(kind), str(version)) for kind, version in value["states"])
    value["checkpoints"] = tuple(str(xml) for xml in value["checkpoints"])
    for descent in ("aim", "origin"):
        point, known = value[descent]
        value[descent] = (str(point), bool(known))
    return SnapshotRevert(**value)


def _states(value: dict[str, Any]) -> StatesReturn:
    found = tuple((str(kind), str(sha256)) for kind, sha256 in value["found"])
    return StatesReturn(found, None if value["secret"] is None else SecretSource(**value["secret"]))


def journal_path(directory: Path, operation: str) -> Path:
    """Return where the journal of an operation lies."""
    return directory / f"{operation}.json"


def pending_restore(settings: Settings, vm_uuid: str) -> RestoreJournal | None:
    """Return the journal of a restore in place of the VM that is not at its end; None when there is none.

    Ask with the VM's lock held, or one that is under way is found.

    Raises RestorePending for a journal that cannot be read, as it may be this VM's.
    """
    return next((journal for journal in _journals(settings) if journal.vm_uuid == vm_uuid), None)


def _journals(settings: Settings) -> Iterator[RestoreJournal]:
    for path in journals(settings):
        try:
            yield RestoreJournal.load(path)
        except FileNotFoundError:
            continue  # finished just now
        except (ValueError, OSError) as error:
            raise RestorePending(f"the journal {path} of a restore cannot be read: {error}", path=str(path)) from error


def refuse_while_pending(settings: Settings, vm: str, vm_uuid: str) -> None:
    """Raise RestorePending while the VM's disks are not whole, or its definition is not its own."""
    pending = pending_restore(settings, vm_uuid)
    if pending is not None:
        raise RestorePending(
            f"a restore of VM {vm!r} in place, to {pending.aim}, is not finished",
            vm=vm,
            path=str(journal_path(settings.restores_dir, pending.operation)),
        )


def refuse_while_needed(settings: Settings, point_id: str) -> None:
    """Raise VmBusy while a restore in place that is not at its end writes the point, or may have to go back to it."""
    for journal in _journals(settings):
        if point_id in (journal.point, journal.safety):
            raise VmBusy(
                f"a restore of VM {journal.vm!r} in place that is not finished needs point {point_id}",
                vm=journal.vm,
                path=str(journal_path(settings.restores_dir, journal.operation)),
            )
