"""Repair: frames that points need, and that cannot be read where they should be, found in other packs.

A block is stored once, as a rule. But a pack that was found damaged is condemned, so a later point stores its blocks
anew; and two writers at once may have stored the same. Ids are keyed by the domain, so any frame that opens under an id
is the block. What is found is told by a *forward* (``forwards``): every point that names the lost place reads the other
one from then on, and nothing is written over. A manifest node that is found shows what else is lost, so it is looked
again until nothing more is found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from vmkeep.errors import IntegrityError, PermissionRefused, PointNotFound, StoreError, VmkeepError
from vmkeep.repository import intents
from vmkeep.repository.fetch import Frames, describe, fetch_frames, refuse_oversize
from vmkeep.repository.forwards import MOST_FORWARDED, frame_key, put_forward
from vmkeep.repository.layout import FORWARDS, NAME_BYTES, FrameKind, sealed_bytes_limit
from vmkeep.repository.manifest import Geometry, decode_node, geometry_of, node_frame_bytes_limit
from vmkeep.repository.packs import read_index
from vmkeep.repository.record import BlockRef, PointRecord, StoredDisk
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

_UNREAD: Final = (IntegrityError, StoreError, PermissionRefused)
_TARGETS: Final = 500
"""Of packs that one object names for an old one; a reader takes twice as many."""
_BLOCKS_AT_ONCE: Final = 64
_WHOLE_NODES: Final = 500_000
"""Of nodes that need not be looked at again; each takes some 250 bytes."""


@dataclass(frozen=True, slots=True)
class LostRange:
    """Bytes of a disk of a point that nothing in the repository holds: ``start`` and ``length``."""

    point: str
    vm: str
    disk: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair found. ``points`` were looked at, ``healed`` were harmed and are whole by what was found.

    ``blocks`` and ``nodes`` are how many lost ones were found elsewhere, ``lost`` what was found nowhere.
    ``unreadable`` are points whose record cannot be read, with why. With ``dry_run`` nothing was written.
    """

    points: int
    harmed: tuple[str, ...]
    healed: tuple[str, ...]
    blocks: int
    nodes: int
    lost: tuple[LostRange, ...]
    unreadable: Mapping[str, str]
    dry_run: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a lost frame is needed: bytes of a disk of a point."""

    point: PointRecord
    disk: str
    start: int
    length: int


_Lost = dict[tuple[FrameKind, BlockRef], list[_Place]]


class Repair:
    """One run, for one thread. ``tell`` is told of a stage and how far it is, and may raise to stop it."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        point: Callable[[str], PointRecord],
        intent: intents.Intent,
        *,
        dry_run: bool,
        tell: Callable[[str, int, int], None],
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._point = point
        self._intent = intent
        self._dry_run = dry_run
        self._tell = tell
        # What a dry run found stands in no forward: it is kept here, by the place that is lost.
        self._found: dict[tuple[FrameKind, BlockRef], BlockRef] = {}
        self._suspect: set[bytes] = set()
        self._sizes: dict[bytes, int] = {}
        self._frames = Frames(store, sealer)

    def run(self, point_ids: Sequence[str]) -> RepairReport:
        """Look at these points and mend what can be mended; raises StoreError when a prune was in the way."""
        self._intent.begin()
        try:
            return self._run(point_ids)
        finally:
            self._intent.end()

    def _run(self, point_ids: Sequence[str]) -> RepairReport:
        self._sizes = intents.stored_packs(self._store)
        self._suspect = intents.condemned_alone(self._store)
        records, unreadable = self._records(point_ids)
        harmed: set[str] = set()
        while True:
            lost = self._lost(records)
            harmed |= {place.point.id for places in lost.values() for place in places}
            found = self._copies(lost.keys())
            if not found:
                break
            if not self._dry_run:
                self._publish(found)
            self._found.update(found)
            # Another look: with the same eyes as a reader, and at what a node that was found names.
            self._frames = Frames(self._store, self._sealer)
        left = {place.point.id for places in lost.values() for place in places}
        kinds = [kind for kind, _ in self._found]
        return RepairReport(
            points=len(records),
            harmed=tuple(sorted(harmed)),
            healed=tuple(sorted(harmed - left)),
            blocks=kinds.count(FrameKind.BLOCK),
            nodes=kinds.count(FrameKind.NODE),
            lost=_ranges(place for places in lost.values() for place in places),
            unreadable=unreadable,
            dry_run=self._dry_run,
        )

    def _records(self, point_ids: Sequence[str]) -> tuple[list[PointRecord], dict[str, str]]:
        records, unreadable = [], {}
        for point_id in point_ids:
            try:
                records.append(self._point(point_id))
            except PointNotFound:
                continue  # removed just now
            except _UNREAD as error:
                unreadable[point_id] = error.message
        return records, unreadable

    # -- what is lost ----------------------------------------------------------------------------------------------

    def _lost(self, records: Sequence[PointRecord]) -> _Lost:
        """Return the frames that these points need and that no reader finds, with where they are needed."""
        lost: _Lost = defaultdict(list)
        whole: set[tuple[BlockRef, int]] = set()
        for number, record in enumerate(records):
            self._tell("look", number, len(records))
            for disk in record.disks:
                if disk.stored.root is not None:
                    geometry = geometry_of(disk.stored)
                    walk = _Walk(self, record, disk.target, disk.stored, geometry, lost, whole)
                    walk.node(disk.stored.root, geometry.levels - 1, 0)
        return lost

    def opened(self, kind: FrameKind, refs: Sequence[BlockRef], most_bytes: int) -> list[bytes | None]:
        """Return what is in frames as a reader would read them; None for each that it cannot read."""
        try:
            for ref in refs:
                refuse_oversize(ref, most_bytes)
            return list(self._frames.open(kind, refs))
        except _UNREAD:
            return [self._opened_alone(kind, ref, most_bytes) for ref in refs]

    def _opened_alone(self, kind: FrameKind, ref: BlockRef, most_bytes: int) -> bytes | None:
        for place in (ref, self._found.get((kind, ref)) if self._dry_run else None):
            try:
                if place is not None:
                    refuse_oversize(place, most_bytes)
                    return self._frames.open(kind, [place])[0]
            except _UNREAD:
                continue
        return None

    def is_doubtful(self, ref: BlockRef) -> bool:
        """Return whether a block is to be read: its pack is gone, or was found damaged."""
        return ref.pack in self._suspect or ref.pack not in self._sizes

    # -- where it is -----------------------------------------------------------------------------------------------

    def _copies(self, lost: Iterable[tuple[FrameKind, BlockRef]]) -> dict[tuple[FrameKind, BlockRef], BlockRef]:
        """Return for each lost frame a place where it is, proved, of those that are anywhere."""
        wanted: dict[bytes, list[tuple[FrameKind, BlockRef]]] = defaultdict(list)
        for kind, ref in lost:
            if (kind, ref) not in self._found:
                wanted[frame_key(kind, ref.id)].append((kind, ref))
        found: dict[tuple[FrameKind, BlockRef], BlockRef] = {}
        if not wanted:
            return found
        condemned = intents.condemned_packs(self._store) - self._suspect
        packs = sorted(self._sizes.keys() - condemned, key=lambda pack: (pack in self._suspect, pack))
        for number, pack in enumerate(packs):
            self._tell("search", number, len(packs))
            for kind, place in self._matching(pack, wanted):
                for each in wanted[frame_key(kind, place.id)]:
                    other = each == (kind, each[1]) and each[1].id == place.id and each[1].pack != pack
                    if other and each not in found and self._is_sound(kind, place):
                        found[each] = place
        return found

    def _matching(self, pack: bytes, wanted: Mapping[bytes, object]) -> list[tuple[FrameKind, BlockRef]]:
        try:
            entries = read_index(self._store, self._sealer, pack, self._sizes[pack])
        except _UNREAD:
            return []
        return [
            (entry.kind, BlockRef(entry.id, pack, entry.offset, entry.length))
            for entry in entries
            if frame_key(entry.kind, entry.id) in wanted
        ]

    def _is_sound(self, kind: FrameKind, place: BlockRef) -> bool:
        """Return whether a frame is what an index says, which anybody with the repository's key may have made."""
        try:
            refuse_oversize(place, frame_bytes_limit(kind))
            self._sealer.open(kind, place.id, fetch_frames(self._store, [place])[0], describe(place))
        except _UNREAD:
            return False
        return True

    # -- and told --------------------------------------------------------------------------------------------------

    def _publish(self, found: Mapping[tuple[FrameKind, BlockRef], BlockRef]) -> None:
        """Put forwards from the packs that lack frames to those that have them, as a writer commits a point."""
        targets: dict[bytes, set[bytes]] = defaultdict(set)
        for (_, ref), place in found.items():
            targets[ref.pack].add(place.pack)
        used = set().union(*targets.values())
        self._require_kept(used, in_force=self._intent.renew())
        for moved in _portions(targets):
            name = self._sealer.random(NAME_BYTES).hex()
            put_forward(self._store, name, moved)
            put_at: datetime = self._store.stat(FORWARDS + name).modified
            # A forward to packs that are gone leads to nothing; that it was put too late must be told all the same.
            if not self._intent.in_force_at(put_at):
                self._require_kept(used, in_force=False)

    def _require_kept(self, packs: set[bytes], *, in_force: bool) -> None:
        if not in_force or intents.unusable(self._store, packs - self._suspect):
            raise StoreError(
                "the repository was pruned while it was repaired",
                path=self._store.location,
                hint="Run the command again; what was found until then is kept.",
            )


class _Walk:
    """Looks through a disk of a point. ``whole`` are nodes, with the disk's block size, of which nothing is lost."""

    def __init__(
        self,
        repair: Repair,
        point: PointRecord,
        target: str,
        disk: StoredDisk,
        geometry: Geometry,
        lost: _Lost,
        whole: set[tuple[BlockRef, int]],
    ) -> None:
        self._repair = repair
        self._point = point
        self._target = target
        self._disk = disk
        self._geometry = geometry
        self._lost = lost
        self._whole = whole

    def node(self, ref: BlockRef, level: int, index: int) -> bool:
        """Look through what is below a node; return whether all of it is there."""
        if (ref, self._disk.block_bytes) in self._whole:
            return True
        slots = self._geometry.slots(level, index)
        (plain,) = self._repair.opened(FrameKind.NODE, [ref], node_frame_bytes_limit(slots))
        try:
            children = None if plain is None else decode_node(plain, level, slots, describe(ref))
        except VmkeepError:
            children = None
        first = index * self._geometry.fan_out
        if children is None:
            self._note(FrameKind.NODE, ref, index * self._geometry.span(level), self._geometry.span(level))
            return False
        present = [(first + slot, child) for slot, child in enumerate(children) if child is not None]
        if level:
            is_whole = True
            for place, child in present:  # each of them: what is lost below is noted
                is_whole = self.node(child, level - 1, place) and is_whole
        else:
            is_whole = self._blocks(present)
        if is_whole and len(self._whole) < _WHOLE_NODES:
            self._whole.add((ref, self._disk.block_bytes))
        return is_whole

    def _blocks(self, present: Sequence[tuple[int, BlockRef]]) -> bool:
        doubtful = [each for each in present if self._repair.is_doubtful(each[1])]
        is_whole = True
        for start in range(0, len(doubtful), _BLOCKS_AT_ONCE):
            group = doubtful[start : start + _BLOCKS_AT_ONCE]
            most_bytes = sealed_bytes_limit(self._disk.block_bytes)
            plains = self._repair.opened(FrameKind.BLOCK, [ref for _, ref in group], most_bytes)
            for (block, ref), plain in zip(group, plains, strict=True):
                if plain is None or len(plain) != self._disk.plain_bytes(block):
                    self._note(FrameKind.BLOCK, ref, block, 1)
                    is_whole = False
        return is_whole

    def _note(self, kind: FrameKind, ref: BlockRef, first_block: int, blocks: int) -> None:
        start = first_block * self._disk.block_bytes
        length = min(blocks * self._disk.block_bytes, self._disk.size_bytes - start)
        self._lost[kind, ref].append(_Place(self._point, self._target, start, length))


def _portions(targets: Mapping[bytes, set[bytes]]) -> Iterable[dict[bytes, list[bytes]]]:
    """Cut forwards into objects of a size that a reader takes."""
    portion: dict[bytes, list[bytes]] = {}
    for old, new in targets.items():
        ordered = sorted(new)
        for start in range(0, len(ordered), _TARGETS):
            if old in portion or len(portion) == MOST_FORWARDED:
                yield portion
                portion = {}
            portion[old] = ordered[start : start + _TARGETS]
    if portion:
        yield portion


def _ranges(places: Iterable[_Place]) -> tuple[LostRange, ...]:
    """Return what is lost in order, what touches as one."""
    joined: list[LostRange] = []
    for place in sorted(places, key=lambda each: (each.point.created, each.point.id, each.disk, each.start)):
        last = joined[-1] if joined else None
        if last is not None and (last.point, last.disk) == (place.point.id, place.disk):
            end = last.start + last.length
            if place.start <= end:
                length = max(end, place.start + place.length) - last.start
                joined[-1] = LostRange(last.point, last.vm, last.disk, last.start, length)
                continue
        joined.append(LostRange(place.point.id, place.point.vm_name, place.disk, place.start, place.length))
    return tuple(joined)
