"""Proving what is stored: of one point, or of every object.

A pack whose header, index or trailer is damaged harms no point by that: the manifests say where each block lies, and
each block carries its own proof. So structure and content are reported apart, and ``harms`` names only the points
that cannot be restored in full. What is wrong is read a second time before it is reported, and what cannot be read is
reported as that (``readings``).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from vmkeep.errors import (
    HostExhausted,
    IntegrityError,
    Interrupted,
    ObjectDamaged,
    ObjectMissing,
    PermissionRefused,
    PointNotFound,
    RepositoryNotFound,
    StoreError,
    VmkeepError,
)
from vmkeep.keys import KeyMaterial
from vmkeep.keys.material import KEY_FILE
from vmkeep.pool import Pool
from vmkeep.repository.deletions import Deletions
from vmkeep.repository.envelopes import get_envelope, open_envelope
from vmkeep.repository.fetch import describe, fetch_frames, refuse_oversize, windows
from vmkeep.repository.intents import condemned_packs, damaged_notes, stored_packs
from vmkeep.repository.keyring import (
    Keyring,
    generation_of_name,
    highest_generation,
    keyring_name,
    keyring_recipients,
    open_keyring,
)
from vmkeep.repository.layout import (
    DELETIONS,
    ENVELOPES,
    FORMAT_OBJECT,
    HOSTS,
    KEYRING,
    PACK_HEADER_BYTES,
    PACKS,
    PINS,
    POINTS,
    STATES,
    TRAILER_BYTES,
    FrameKind,
    PackEntry,
    is_name,
    pack_name,
    pack_of_name,
    parse_canonical,
    parse_trailer,
    sealed_bytes_limit,
)
from vmkeep.repository.manifest import Children, Geometry, decode_node, geometry_of, node_frame_bytes_limit
from vmkeep.repository.packs import open_index, read_index
from vmkeep.repository.pins import Pins
from vmkeep.repository.readings import Readings, is_unread
from vmkeep.repository.record import BlockRef, PointRecord, StateRef, StateVersion, StoredDisk
from vmkeep.repository.sampling import Share
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.signatures import get_host_key, require_signed_state
from vmkeep.repository.states import get_state
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes read so far and bytes to read (0 where that is not known)."""

_INDEXES = 256
_INDEX_ROWS = 256 * 1024
"""Of rows in all indexes that are kept: each takes some 250 bytes."""
_WHOLE_PACK_BYTES = 64 * 1024 * 1024
"""A larger pack is read piece by piece; writers close theirs at 16 MiB."""
_SOUND_NODES = 200_000
_PACKS_AT_A_TIME = 2


@dataclass(frozen=True, slots=True)
class Finding:
    """One object that is not as it was written, and the points that cannot be restored in full for it."""

    object: str
    what: str
    harms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointReport:
    """``unreadable`` are objects that gave an error, ``unsteady`` such as were wrong once and right the second time."""

    point_id: str
    findings: tuple[Finding, ...]
    blocks: int
    bytes_read: int
    unreadable: tuple[Finding, ...] = ()
    unsteady: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether the point can be restored in full: a finding may be about what restoring does not need."""
        return not any(self.point_id in finding.harms for finding in (*self.findings, *self.unreadable))


@dataclass(frozen=True, slots=True)
class RepositoryReport:
    """``points`` are those looked at; ``harmed`` those that cannot be restored in full.

    ``blocks`` is how many were read. ``damaged_packs`` are there, but later points should not use them: see
    ``Repository.condemn``; ``pardoned_packs`` are condemned and were proved sound. ``unreadable`` and ``unsteady`` are
    as in a point's report.
    """

    findings: tuple[Finding, ...]
    points: tuple[str, ...]
    packs: int
    bytes_read: int
    damaged_packs: tuple[bytes, ...] = ()
    blocks: int = 0
    unreadable: tuple[Finding, ...] = ()
    unsteady: tuple[Finding, ...] = ()
    pardoned_packs: tuple[bytes, ...] = ()

    @property
    def harmed(self) -> tuple[str, ...]:
        return tuple(sorted({point for finding in self.findings for point in finding.harms}))

    @property
    def sound(self) -> bool:
        return not self.findings and not self.unreadable


@dataclass(frozen=True, slots=True)
class _PackRead:
    """What reading a pack found. ``problem``: of its structure, or that it cannot be read; ``bad``: frames that did not
    open, by offset.

    ``size_bytes`` is how much was read, and ``blocks`` the number of blocks in that.
    """

    size_bytes: int
    problem: VmkeepError | None = None
    blocks: int = 0
    bad: tuple[tuple[int, str], ...] = ()


def _sorted(found: Mapping[tuple[str, str], set[str]]) -> tuple[Finding, ...]:
    return tuple(Finding(name, what, tuple(sorted(harms))) for (name, what), harms in sorted(found.items()))


def _beside_frames(entries: Sequence[PackEntry], size_bytes: int) -> int:
    """Return how much of a pack is header, index and trailer, which are read for the index."""
    return PACK_HEADER_BYTES + size_bytes - max((entry.offset + entry.length for entry in entries), default=0)


class Verification:
    """One run; for one thread, which lets others read packs."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        point: Callable[[str], PointRecord],
        repository: str,
        *,
        sample: float = 1.0,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._readings = Readings(store)
        self._sealer = sealer
        self._point = point
        self._repository = repository
        self._sample = sample
        self._share = Share(sample) if sample < 1.0 else None
        self._progress = progress
        self._found: dict[tuple[str, str], set[str]] = {}
        self._read_bytes = 0
        self._total_bytes = 0
        self._blocks = 0
        self._sizes: dict[bytes, int] | None = None
        self._unsound: set[bytes] = set()
        self._indexes: OrderedDict[bytes, dict[int, PackEntry]] = OrderedDict()
        self._index_rows = 0
        # Packs of which every frame, or the share of them, was read and opened, and those that did not open.
        self._proved: set[bytes] = set()
        self._bad: dict[tuple[bytes, int], str] = {}
        self._sound_nodes: set[tuple[BlockRef, int]] = set()
        self._states: dict[str, VmkeepError | None] = {}
        self._versions: dict[str, StateVersion] = {}

    def point(self, point_id: str) -> PointReport:
        """Prove one point; raises PointNotFound, and nothing for damage."""
        self._check_point(point_id)
        findings, unread, unsteady = self._findings(), self._unread(), self._unsteady()
        return PointReport(point_id, findings, self._blocks, self._read_bytes, unread, unsteady)

    def everything(self, format_bytes: bytes, key: KeyMaterial, keyring: Keyring) -> RepositoryReport:
        """Prove every object: format, keyring, packs with their unreferenced frames, state versions, points, notes."""
        points = []
        for item in self._store.list(POINTS):
            if is_name(item.name.removeprefix(POINTS)):
                points.append(item.name.removeprefix(POINTS))
            else:
                self._find(item.name, "this is not an object of a repository")
        points.sort()
        self._check_keyring(format_bytes, key, keyring, points)
        sizes = self._pack_sizes()
        self._total_bytes = int(sum(sizes.values()) * self._sample)
        self._check_packs(sizes)
        for item in self._store.list(STATES):
            if is_name(item.name.removeprefix(STATES)):
                self._state_problem(item.name.removeprefix(STATES))
            else:
                self._find(item.name, "this is not an object of a repository")
        # Also the envelopes of a writer at work, and what a killed one left.
        self._check_lone(ENVELOPES, partial(open_envelope, self._store, self._sealer))
        # A damaged one harms no point: each signature carries its own key.
        self._check_lone(HOSTS, partial(get_host_key, self._store, self._sealer, self._repository))
        self._check_lone(PINS, self._check_pin)
        self._check_lone(DELETIONS, self._check_deletion)
        self._check_marks()
        for point_id in points:
            try:
                self._check_point(point_id)
            except PointNotFound:
                continue  # removed since the points were listed
        self._check_notes()
        findings = self._findings()
        damaged = sorted({pack for item in findings if (pack := pack_of_name(item.object)) in sizes})
        return RepositoryReport(
            findings,
            tuple(points),
            len(sizes),
            self._read_bytes,
            tuple(damaged),
            self._blocks,
            self._unread(),
            self._unsteady(),
            self._pardoned(),
        )

    def _pardoned(self) -> tuple[bytes, ...]:
        """Return the condemned packs of which every frame was read and opened at the first attempt."""
        if self._share is not None:
            return ()
        told = {name for name, _ in (*self._found, *self._readings.unread)} | self._readings.unsteady.keys()
        proved = {pack for pack in self._proved if pack_name(pack) not in told}
        return tuple(sorted(condemned_packs(self._store) & proved))

    def _check_marks(self) -> None:
        """Prove what hides points, and what keeps them; a damaged one harms none."""
        from vmkeep.repository.marks import PROTECTION, REMOVAL, Marks

        for kind in (REMOVAL, PROTECTION):
            marks = Marks(kind, self._store, self._sealer, self._repository, None)
            self._check_lone(kind.prefix, marks.get)

    def _check_notes(self) -> None:
        """Look at what writers and prunes tell each other; it harms no point, but a prune must be able to trust it."""
        for damage in damaged_notes(self._store):
            self._tell(damage.path or "", damage)

    # -- points ----------------------------------------------------------------------------------------------------

    def _check_point(self, point_id: str) -> None:
        try:
            record = self._readings.twice(POINTS + point_id, lambda: self._point(point_id))
        except PointNotFound:
            raise
        except VmkeepError as error:
            self._tell(POINTS + point_id, error, point_id)
            return
        for state in record.states:
            problem = self._state_problem(state.version_id) or self._other_state(record, state)
            if problem is not None:
                self._tell(STATES + state.version_id, problem, point_id)
        try:
            self._readings.twice(ENVELOPES + point_id, lambda: get_envelope(self._store, self._sealer, record))
        except VmkeepError as error:
            self._tell(ENVELOPES + point_id, error, point_id)
        for disk in record.disks:
            if disk.stored.root is not None:
                geometry = geometry_of(disk.stored)
                self._check_subtree(disk.stored, geometry, disk.stored.root, geometry.levels - 1, 0, point_id)

    def _check_lone(self, prefix: str, prove: Callable[[str], object]) -> None:
        """Prove every object of a kind by its name, also one that no point names."""
        for item in self._store.list(prefix):
            name = item.name.removeprefix(prefix)
            if not is_name(name):
                self._find(item.name, "this is not an object of a repository")
                continue
            try:
                self._readings.twice(item.name, partial(prove, name))
            except ObjectMissing:
                continue  # deleted since they were listed
            except VmkeepError as error:
                self._tell(item.name, error)

    def _check_pin(self, pin_id: str) -> None:
        """Prove a pin, and that what it keeps is there and is what it says."""
        pins = Pins(self._store, self._sealer, self._repository, None)
        pin = pins.get(pin_id)
        for state in pin.states:
            problem = self._state_problem(state.version_id)
            if problem is None and self._versions[state.version_id].ref() != state:
                self._tell(STATES + state.version_id, ObjectDamaged("it is another version than is pinned"))
        try:
            self._readings.twice(ENVELOPES + pin_id, lambda: pins.secrets(pin))
        except VmkeepError as error:
            self._tell(ENVELOPES + pin_id, error)

    def _check_deletion(self, deletion_id: str) -> None:
        """Prove a proof of deletion, and that the one which it adds to is there: nobody may delete one."""
        deletion = Deletions(self._store, self._sealer, self._repository, None).get(deletion_id)
        if deletion.of is not None and not self._store.exists(DELETIONS + deletion.of):
            self._tell(DELETIONS + deletion.of, ObjectDamaged(f"it is gone, and {DELETIONS}{deletion_id} adds to it"))

    def _state_problem(self, version_id: str) -> VmkeepError | None:
        if version_id not in self._states:
            self._states[version_id] = None
            try:
                name = STATES + version_id
                version, content = self._readings.twice(name, lambda: get_state(self._store, self._sealer, version_id))
                self._advance(len(content))
                self._versions[version_id] = version
            except VmkeepError as error:
                self._states[version_id] = error
                self._tell(STATES + version_id, error)
        return self._states[version_id]

    def _other_state(self, record: PointRecord, state: StateRef) -> VmkeepError | None:
        """Return what is wrong with a sound state version as that of a point."""
        version = self._versions[state.version_id]
        if version.sha256 != state.sha256:
            return ObjectDamaged("it is another content than the point was made with")
        try:
            require_signed_state(record, version)
        except ObjectDamaged as error:
            return error
        return None

    def _check_subtree(
        self, disk: StoredDisk, geometry: Geometry, ref: BlockRef, level: int, index: int, point_id: str
    ) -> bool:
        """Prove a node and all below it; return whether it is sound."""
        if (ref, disk.block_bytes) in self._sound_nodes:
            return True
        opened = self._open(FrameKind.NODE, [ref], node_frame_bytes_limit(geometry.slots(level, index)))[0]
        children: Children = []
        problem = opened if isinstance(opened, VmkeepError) else None
        if not isinstance(opened, VmkeepError):
            try:
                children = decode_node(opened, level, geometry.slots(level, index), describe(ref))
            except ObjectDamaged as error:
                problem = error
        if problem is not None:
            self._tell(pack_name(ref.pack), problem, point_id)
            return False
        first = index * geometry.fan_out
        present = [(first + slot, child) for slot, child in enumerate(children) if child is not None]
        if level == 0:
            sound = self._check_blocks(disk, present, point_id)
        else:
            sound = True
            for place, child in present:
                sound = self._check_subtree(disk, geometry, child, level - 1, place, point_id) and sound
        if sound and len(self._sound_nodes) < _SOUND_NODES:
            self._sound_nodes.add((ref, disk.block_bytes))
        return sound

    def _check_blocks(self, disk: StoredDisk, present: Sequence[tuple[int, BlockRef]], point_id: str) -> bool:
        sound = True
        unread: list[tuple[int, BlockRef]] = []
        for block, ref in present:
            if ref.pack not in self._proved:
                unread.append((block, ref))
                continue
            entry = self._index(ref.pack).get(ref.offset)
            problem = self._bad.get((ref.pack, ref.offset)) or self._entry_problem(FrameKind.BLOCK, ref)
            if problem is None and entry is not None and entry.plain_bytes != disk.plain_bytes(block):
                problem = f"{describe(ref)} has a wrong length"
            if problem is not None:
                self._find(pack_name(ref.pack), problem, point_id)
                sound = False
        if self._share is not None:
            unread = self._share.of(unread, lambda item: (item[1].pack, item[1].offset, item[1].length))
        self._blocks += len(unread)
        for group in windows(disk, unread):
            frames = self._open(FrameKind.BLOCK, [ref for _, ref in group], sealed_bytes_limit(disk.block_bytes))
            for (block, ref), opened in zip(group, frames, strict=True):
                if not isinstance(opened, VmkeepError) and len(opened) != disk.plain_bytes(block):
                    opened = ObjectDamaged(f"{describe(ref)} has a wrong length")
                if isinstance(opened, VmkeepError):
                    self._tell(pack_name(ref.pack), opened, point_id)
                    sound = False
        return sound

    # -- frames and packs ------------------------------------------------------------------------------------------

    def _open(self, kind: FrameKind, refs: Sequence[BlockRef], most_bytes: int) -> list[bytes | VmkeepError]:
        """Return for each reference its plain text, or what is wrong with it at the second attempt as well.

        None of the frames may be longer than ``most_bytes``.
        """
        for ref in refs:
            self._check_structure(ref.pack)
        fitting = [ref for ref in refs if ref.length <= most_bytes]
        fetched = iter(self._fetched(fitting))
        opened: list[bytes | VmkeepError] = []
        for ref in refs:
            try:
                refuse_oversize(ref, most_bytes)
            except ObjectDamaged as error:
                opened.append(error)
                continue
            frame = next(fetched)
            if frame is not None and (ref.pack not in self._proved or self._share is not None):
                self._advance(len(frame))
            try:
                opened.append(self._opened_frame(kind, ref, frame))
            except VmkeepError as error:
                opened.append(error)
                if is_unread(error):
                    self._readings.note_unread_frame(pack_name(ref.pack), error)
                continue
            # The frame can be read; an index that lacks it would mislead a prune, and is reported without harm.
            if ref.pack not in self._unsound and (problem := self._entry_problem(kind, ref)) is not None:
                self._find(pack_name(ref.pack), problem)
        return opened

    def _fetched(self, refs: Sequence[BlockRef]) -> Sequence[memoryview | None]:
        """Return the frames as they lie there; None for each when they cannot be read together."""
        if any(pack_name(ref.pack) in self._readings.given_up for ref in refs):
            return [None] * len(refs)
        try:
            return fetch_frames(self._store, refs)
        except (IntegrityError, StoreError, PermissionRefused):
            return [None] * len(refs)

    def _opened_frame(self, kind: FrameKind, ref: BlockRef, fetched: memoryview | None) -> bytes:
        """Open a frame, of what was fetched with others or else read alone."""
        if fetched is None and (error := self._readings.given_up.get(pack_name(ref.pack))) is not None:
            raise error
        first = [fetched]

        def read() -> bytes:
            frame = first.pop() if first else None
            frame = frame if frame is not None else fetch_frames(self._store, [ref])[0]
            return self._sealer.open(kind, ref.id, frame, describe(ref))

        return self._readings.twice(pack_name(ref.pack), read)

    def _check_structure(self, pack: bytes) -> None:
        """Prove header, index and trailer of a pack once, without its frames."""
        if pack in self._unsound or pack in self._proved or pack in self._indexes:
            return
        try:
            self._index(pack)
        except VmkeepError as error:
            self._unsound.add(pack)
            self._tell(pack_name(pack), error)

    def _index(self, pack: bytes) -> dict[int, PackEntry]:
        index = self._indexes.get(pack)
        if index is None:
            size = self._pack_sizes().get(pack)
            if size is None:  # the listing lacked it; the store is asked for itself before it is called missing
                size = self._store.stat(pack_name(pack)).size_bytes
            known = size
            entries = self._readings.twice(pack_name(pack), lambda: read_index(self._store, self._sealer, pack, known))
            if pack not in self._proved:
                self._advance(_beside_frames(entries, size))
            index = self._keep_index(pack, entries)
        self._indexes.move_to_end(pack)
        return index

    def _keep_index(self, pack: bytes, entries: Sequence[PackEntry]) -> dict[int, PackEntry]:
        index = self._indexes[pack] = {entry.offset: entry for entry in entries}
        self._index_rows += len(index)
        while len(self._indexes) > 1 and (len(self._indexes) > _INDEXES or self._index_rows > _INDEX_ROWS):
            self._index_rows -= len(self._indexes.popitem(last=False)[1])
        return index

    def _entry_problem(self, kind: FrameKind, ref: BlockRef) -> str | None:
        entry = self._index(ref.pack).get(ref.offset)
        if entry is None or (entry.kind, entry.id, entry.length) != (kind, ref.id, ref.length):
            return f"{describe(ref)} is not the block that a manifest names there"
        return None

    def _pack_sizes(self) -> dict[bytes, int]:
        if self._sizes is None:
            self._sizes = stored_packs(self._store)
        return self._sizes

    def _check_packs(self, sizes: dict[bytes, int]) -> None:
        for item in self._store.list(PACKS):
            if pack_of_name(item.name) is None:
                self._find(item.name, "this is not an object of a repository")
        for pack, read in self._read_packs(list(sizes)):
            self._advance(read.size_bytes)
            if read.problem is not None:
                self._unsound.add(pack)
                self._tell(pack_name(pack), read.problem)
                continue
            self._blocks += read.blocks
            self._proved.add(pack)
            for offset, message in read.bad:
                self._bad[pack, offset] = message
                self._find(pack_name(pack), message)

    def _read_packs(self, packs: Sequence[bytes]) -> Iterator[tuple[bytes, _PackRead]]:
        waiting: deque[tuple[bytes, Future[_PackRead]]] = deque()
        pool = Pool(max_workers=_PACKS_AT_A_TIME, thread_name_prefix="vmkeep-verify")
        try:
            for pack in packs:
                waiting.append((pack, pool.submit(self._read_pack, pack, self._pack_sizes()[pack])))
                if len(waiting) > _PACKS_AT_A_TIME:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read_pack(self, pack: bytes, size_bytes: int) -> _PackRead:
        """Read a pack, or the share of it, and open every frame that was read; what is wrong is read again."""
        taken: set[int] = set()  # the second attempt reads the frames of the first, or it proves nothing of them
        read = self._read_pack_once(pack, size_bytes, taken)
        damaged = read.problem is not None and not is_unread(read.problem)
        if not damaged and not read.bad:
            return read
        self._store.forget_cached(pack_name(pack))
        again = self._read_pack_once(pack, size_bytes, taken)
        bad = tuple(frame for frame in again.bad if read.problem is not None or frame in read.bad)
        if again.problem is None and not bad:
            what = read.problem.message if read.problem is not None else read.bad[0][1]
            self._readings.unsteady[pack_name(pack)] = what
        return replace(again, bad=bad)

    def _read_pack_once(self, pack: bytes, size_bytes: int, taken: set[int]) -> _PackRead:
        try:
            if self._share is not None:
                return self._read_share(pack, size_bytes, self._share, taken)
            if size_bytes > _WHOLE_PACK_BYTES:
                return self._read_large_pack(pack, size_bytes)
            (content,) = self._store.ranges(pack_name(pack), [(0, size_bytes)]) if size_bytes else [memoryview(b"")]
            start, length = parse_trailer(bytes(content[-TRAILER_BYTES:]), len(content), pack)
            header = bytes(content[:PACK_HEADER_BYTES])
            entries = open_index(self._sealer, pack, header, content[start : start + length], start)
        except VmkeepError as error:
            return _PackRead(size_bytes, problem=error)
        frames = (content[entry.offset : entry.offset + entry.length] for entry in entries)
        return self._opened(pack, entries, frames, size_bytes)

    def _read_large_pack(self, pack: bytes, size_bytes: int) -> _PackRead:
        """Read a pack frame by frame: what another writer made of it must not decide how much memory this takes."""
        entries = read_index(self._store, self._sealer, pack, size_bytes)
        return self._opened(pack, entries, self._one_by_one(pack, entries), size_bytes)

    def _one_by_one(self, pack: bytes, entries: Sequence[PackEntry]) -> Iterator[memoryview]:
        """Yield frames; one that is longer than it can be is not read, and what is yielded opens as damage."""
        for entry in entries:
            too_long = entry.length > frame_bytes_limit(entry.kind)
            ref = BlockRef(entry.id, pack, entry.offset, entry.length)
            yield memoryview(b"") if too_long else fetch_frames(self._store, [ref])[0]

    def _read_share(self, pack: bytes, size_bytes: int, share: Share, taken: set[int]) -> _PackRead:
        """Read the frames at the offsets ``taken``, or, when there are none yet, choose them and note them there."""
        entries = read_index(self._store, self._sealer, pack, size_bytes)
        if not taken:
            taken.update(entry.offset for entry in share.of(entries, lambda item: (pack, item.offset, item.length)))
        chosen = [entry for entry in sorted(entries, key=lambda item: item.offset) if entry.offset in taken]
        read_bytes = _beside_frames(entries, size_bytes) + sum(entry.length for entry in chosen)
        if size_bytes > _WHOLE_PACK_BYTES:
            return self._opened(pack, chosen, self._one_by_one(pack, chosen), read_bytes)
        refs = [BlockRef(entry.id, pack, entry.offset, entry.length) for entry in chosen]
        return self._opened(pack, chosen, fetch_frames(self._store, refs), read_bytes)

    def _opened(
        self, pack: bytes, entries: Sequence[PackEntry], frames: Iterable[memoryview], read_bytes: int
    ) -> _PackRead:
        bad: list[tuple[int, str]] = []
        for entry, frame in zip(entries, frames, strict=True):
            where = f"{pack_name(pack)} at {entry.offset}"
            try:
                plain = self._sealer.open(entry.kind, entry.id, frame, where)
                if len(plain) != entry.plain_bytes:
                    bad.append((entry.offset, f"{where} has a wrong length"))
            except ObjectDamaged as error:
                bad.append((entry.offset, error.message))
        blocks = sum(entry.kind is FrameKind.BLOCK for entry in entries)
        return _PackRead(read_bytes, blocks=blocks, bad=tuple(bad))

    # -- format and keyring ----------------------------------------------------------------------------------------

    def _check_keyring(self, format_bytes: bytes, key: KeyMaterial, keyring: Keyring, points: Sequence[str]) -> None:
        try:
            self._readings.twice(FORMAT_OBJECT, lambda: self._compare_format(format_bytes))
        except VmkeepError as error:
            self._tell(FORMAT_OBJECT, error, *points)
        try:
            in_force = self._readings.twice(KEYRING, lambda: highest_generation(self._store))
        except VmkeepError as error:
            self._tell(KEYRING, error, *points)
            return
        present = {generation_of_name(item.name) or item.name for item in self._store.list(KEYRING)}
        for generation in present | set(range(1, in_force)):
            if isinstance(generation, str):
                self._find(generation, "this is not an object of a repository")
                continue
            opened = partial(self._check_generation, generation, format_bytes, key, keyring)
            try:
                self._readings.twice(keyring_name(generation), opened)
            except VmkeepError as error:
                harmed = points if generation == in_force else ()
                self._tell(keyring_name(generation), error, *harmed)

    def _check_generation(self, generation: int, format_bytes: bytes, key: KeyMaterial, keyring: Keyring) -> None:
        """Open a generation, or prove its seal: of a key that it is not for, or that is asked for elsewhere."""
        name = keyring_name(generation)
        recipients = keyring_recipients(self._store, generation)
        if key.kind == KEY_FILE and key.key_id in {each.key_id for each in recipients}:
            open_keyring(self._store, generation, format_bytes, lambda _recipients: key)
        elif not keyring.proves(parse_canonical(self._store.get(name), name)):
            raise ObjectDamaged(f"{name} was changed: its seal is wrong", path=name)

    def _compare_format(self, format_bytes: bytes) -> None:
        if self._store.get(FORMAT_OBJECT) != format_bytes:
            raise ObjectDamaged(f"{FORMAT_OBJECT} was changed since the repository was opened")

    # -- findings --------------------------------------------------------------------------------------------------

    def _tell(self, name: str, error: VmkeepError, *harms: str) -> None:
        """Note what is wrong with an object. Raises what is of no single one: a signal, a repository that is gone."""
        if is_unread(error):
            self._readings.note_unread(name, error, *harms)
        elif isinstance(error, HostExhausted | RepositoryNotFound | Interrupted):
            raise error
        else:
            self._find(name, error.message, *harms)

    def _find(self, name: str, what: str, *harms: str) -> None:
        self._found.setdefault((name, what), set()).update(harms)

    def _findings(self) -> tuple[Finding, ...]:
        return _sorted(self._found)

    def _unread(self) -> tuple[Finding, ...]:
        return _sorted(self._readings.unread)

    def _unsteady(self) -> tuple[Finding, ...]:
        return tuple(Finding(name, what) for name, what in sorted(self._readings.unsteady.items()))

    def _advance(self, count: int) -> None:
        self._read_bytes += count
        if self._progress is not None:
            self._progress(self._read_bytes, self._total_bytes)
