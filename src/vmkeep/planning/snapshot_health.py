"""The health of a VM's snapshots: whether what each of them says is kept is still there. No I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Final, Literal

from vmkeep.moments import Snapshot, SnapshotDisk, SnapshotLocation
from vmkeep.planning.bitmaps import Chain
from vmkeep.planning.checkpoint_health import Health, by_age
from vmkeep.values import dataclass

_INTERRUPTED: Final = "its deletion was interrupted; delete the snapshot again"


@dataclass(frozen=True, slots=True)
class Unread:
    """An image or file that could not be looked at. ``absent``: because it is not there."""

    why: str
    absent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """One thing that a snapshot keeps.

    ``name`` is a disk's target, or the kind of a state. ``why`` is for people, empty for one that is sound. ``path``
    is the image or file that holds it. ``deleting``: its deletion was begun and not finished.
    """

    kind: Literal["disk", "memory", "state"]
    name: str
    location: str
    health: Health
    why: str = ""
    path: str | None = None
    deleting: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotHealth:
    """A snapshot; one that keeps nothing at all has no parts and is sound."""

    name: str
    parts: tuple[SnapshotPart, ...]

    @property
    def health(self) -> Health:
        """The worst of its parts; what somebody else keeps (manual) is not judged."""
        found = {part.health for part in self.parts}
        return next((health for health in (Health.BROKEN, Health.UNKNOWN) if health in found), Health.SOUND)

    @property
    def trouble(self) -> bool:
        return self.health is not Health.SOUND

    def as_dict(self) -> dict[str, Any]:
        """Return it as `vmkeep snapshot health --json` prints it."""
        return {
            "snapshot": self.name,
            "health": str(self.health),
            "parts": [
                {
                    "kind": part.kind,
                    "name": part.name,
                    "location": part.location,
                    "health": str(part.health),
                    "why": part.why or None,
                    "path": part.path,
                    "deleting": part.deleting,
                }
                for part in self.parts
            ],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFacts:
    """All that the judgement is made from.

    ``sources`` gives, by snapshot and disk, the image that the disk was when the snapshot was made. ``present`` are the
    images of each disk now, the top one first. ``images`` are those that snapshots name, with all that is below each,
    or why they could not be read; ``memory`` the sizes of memory files. ``torn`` are, by snapshot, the disks that an
    unfinished deletion of ours has written to.
    """

    snapshots: tuple[Snapshot, ...]
    sources: Mapping[str, Mapping[str, str]]
    present: Mapping[str, Chain]
    images: Mapping[str, Chain | Unread]
    memory: Mapping[str, int | Unread]
    torn: Mapping[str, Collection[str]] = field(default_factory=dict)


def judge_snapshots(facts: SnapshotFacts) -> tuple[SnapshotHealth, ...]:
    """Return the health of each snapshot, the oldest first."""
    return tuple(
        SnapshotHealth(name=str(snapshot.name), parts=(*_disks(facts, snapshot), *_memory(facts, snapshot)))
        for snapshot in by_age(facts.snapshots)
    )


def snapshot_texts(judged: Sequence[SnapshotHealth]) -> dict[str, str]:
    """Return the cell of each snapshot in a table of them, by name."""
    return {snapshot.name: snapshot_text(snapshot) for snapshot in judged}


def snapshot_text(judged: SnapshotHealth) -> str:
    """Return a snapshot's health for one cell of a table, such as "broken: vdb, memory"."""
    if not judged.trouble:
        return str(judged.health)
    bad = [part.name for part in judged.parts if part.health is judged.health]
    return f"{judged.health}: {', '.join(bad)}"


# -- disks -------------------------------------------------------------------------------------------------------


def merged_into(snapshots: Iterable[Snapshot]) -> frozenset[str]:
    """Return the images that libvirt was writing an overlay into when it ended.

    It marks the snapshot that made the image, not the one that was being deleted: after an interrupted deletion of
    S2, which was made on S1's overlay, S1 has the mark and is whole (seen with 11.3). Where no snapshot made the image
    there is no mark.
    """
    disks = (disk for snapshot in snapshots for disk in snapshot.disks if disk.delete_in_progress)
    return frozenset(disk.source for disk in disks if disk.source is not None)


def _disks(facts: SnapshotFacts, snapshot: Snapshot) -> Iterator[SnapshotPart]:
    unfinished = merged_into(facts.snapshots)
    for disk in snapshot.disks:
        if disk.location is SnapshotLocation.NO:
            continue
        source = facts.sources.get(str(snapshot.name), {}).get(disk.name)
        health, why = _disk(facts, snapshot, disk, source)
        deleting = disk.name in facts.torn.get(str(snapshot.name), ()) or source in unfinished
        if deleting:
            health, why = Health.BROKEN, f"{_INTERRUPTED}; {why}" if why else _INTERRUPTED
        yield SnapshotPart(
            kind="disk",
            name=disk.name,
            location=str(disk.location),
            health=health,
            why=why,
            path=source,
            deleting=deleting,
        )


def _disk(facts: SnapshotFacts, snapshot: Snapshot, disk: SnapshotDisk, source: str | None) -> tuple[Health, str]:
    if disk.location is SnapshotLocation.MANUAL:
        return Health.FOREIGN, "somebody else keeps it (manual)"
    if disk.location is SnapshotLocation.DEFAULT:
        return Health.UNKNOWN, "the snapshot does not say where it is kept"
    if source is None:
        return Health.UNKNOWN, "which image holds it is not known: the snapshot does not say, or it is no file here"
    found = facts.images.get(source, Unread("it was not looked at"))
    if isinstance(found, Unread):
        return (Health.BROKEN if found.absent else Health.UNKNOWN), found.why
    if disk.location is SnapshotLocation.INTERNAL:
        if any(kept.name == snapshot.name for kept in found[0].snapshots):
            return Health.SOUND, ""
        return Health.BROKEN, f"{source} holds no snapshot of this name"
    return _external(facts, disk, source)


def _external(facts: SnapshotFacts, disk: SnapshotDisk, source: str) -> tuple[Health, str]:
    """Judge a disk whose data is the image ``source`` and nobody may have written to since.

    What was written after the snapshot is in its overlay, or in another one on the same image.
    """
    for target, chain in facts.present.items():
        if chain and chain[0].path == source:
            return Health.BROKEN, f"disk {target} writes to {source} itself, so what the snapshot kept is overwritten"
    if disk.source is None:
        return Health.UNKNOWN, "its overlay is not known"
    overlay = facts.images.get(disk.source, Unread("its overlay was not looked at"))
    if isinstance(overlay, Unread):
        return (Health.BROKEN if overlay.absent else Health.UNKNOWN), f"its overlay: {overlay.why}"
    right = image_of_overlay(overlay, source)
    if right is not None:
        return Health.BROKEN, (
            f"libvirt's record names {source}, and the overlay that was made of it stands on {right}: the record was "
            "changed when that of an earlier snapshot was removed; `vmkeep snapshot repair` puts it right"
        )
    if any(source in (layer.path for layer in chain[1:]) for chain in _chains(facts)):
        return Health.SOUND, ""
    return Health.BROKEN, f"neither the VM nor an overlay of a snapshot stands on {source} any more"


def image_of_overlay(overlay: Chain, source: str) -> str | None:
    """Return the image that really held a disk at a snapshot whose record names an earlier one; None where it is right.

    What an overlay was made on stands directly below it. libvirt 9.0 rewrites records as if the overlay of a snapshot
    had been merged when only its record is removed, so such a record names an image further down in the same chain.
    """
    below = [layer.path for layer in overlay[1:]]
    return below[0] if source in below[1:] and below[0] != source else None


def _chains(facts: SnapshotFacts) -> Iterator[Chain]:
    """Yield the images of each disk now, and of each overlay of a snapshot."""
    yield from facts.present.values()
    overlays = {disk.source for snapshot in facts.snapshots for disk in (*snapshot.disks, *snapshot.revert_disks)}
    for path in overlays:
        chain = facts.images.get(path or "")
        if chain is not None and not isinstance(chain, Unread):
            yield chain


# -- memory ------------------------------------------------------------------------------------------------------


def _memory(facts: SnapshotFacts, snapshot: Snapshot) -> Iterator[SnapshotPart]:
    location = snapshot.memory.location
    if location in (SnapshotLocation.NO, SnapshotLocation.DEFAULT):
        return
    path = snapshot.memory.file
    if location is SnapshotLocation.EXTERNAL:
        health, why = _memory_file(facts, str(path))
    else:
        health, why = _memory_inside(facts, snapshot)
    yield SnapshotPart(kind="memory", name="memory", location=str(location), health=health, why=why, path=path)


def _memory_file(facts: SnapshotFacts, path: str) -> tuple[Health, str]:
    found = facts.memory.get(path, Unread("it was not looked at"))
    if isinstance(found, Unread):
        return (Health.BROKEN if found.absent else Health.UNKNOWN), found.why
    return (Health.SOUND, "") if found else (Health.BROKEN, f"{path} is empty")


def _memory_inside(facts: SnapshotFacts, snapshot: Snapshot) -> tuple[Health, str]:
    """Judge the memory of an internal snapshot, which QEMU keeps in one of the images."""
    sources = facts.sources.get(str(snapshot.name), {})
    internal = [disk.name for disk in snapshot.disks if disk.location is SnapshotLocation.INTERNAL]
    found = [facts.images.get(sources.get(name, "")) for name in internal]
    chains = [chain for chain in found if chain is not None and not isinstance(chain, Unread)]
    kept = (inside for chain in chains for inside in chain[0].snapshots if inside.name == snapshot.name)
    if any(inside.memory_bytes for inside in kept):
        return Health.SOUND, ""
    if len(chains) < len(internal) and not any(isinstance(each, Unread) and each.absent for each in found):
        return Health.UNKNOWN, "not all images of the snapshot could be looked at"
    return Health.BROKEN, "no image holds the memory of the snapshot"
