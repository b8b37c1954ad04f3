"""Proving what is stored: of one point, or of every object.

A pack whose header, index or trailer is damaged harms no point by that: the manifests say where each block lies, and
each block carries its own proof. So structure and content are reported apart, and ``harms`` names only the points
that cannot be restored in full. What is wrong is read a second time before it is reported, and what cannot be read is
reported as that (``readings``).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

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
from vmkeep.repository.deletions import Deletions
from vmkeep.repository.envelopes import get_envelope, open_envelope
from vmkeep.repository.fetch import Frames, describe, fetch_frames, refuse_oversize, windows
from vmkeep.repository.intents import condemned_alone, damaged_notes, stored_packs
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
    PACKS,
    PINS,
    POINTS,
    STATES,
    FrameKind,
    PackEntry,
    is_name,
    pack_name,
    pack_of_name,
    parse_canonical,
    sealed_bytes_limit,
)
from vmkeep.repository.manifest import Children, Geometry, decode_node, geometry_of, node_frame_bytes_limit
from vmkeep.repository.packreading import PackReader, beside_frames
from vmkeep.repository.packs import read_index
from vmkeep.repository.pins import Pins
from vmkeep.repository.readings import Readings, is_unread
from vmkeep.repository.record import BlockRef, PointRecord, StateRef, StateVersion, StoredDisk
from vmkeep.repository.reports import Finding, PointReport, RepositoryReport, findings_of
from vmkeep.repository.sampling import Share
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import get_host_key, require_signed_state
from vmkeep.repository.states import get_state
from vmkeep.repository.store import ObjectStore

if TYPE_CHECKING:
    from vmkeep.planning.rota import Budget
    from vmkeep.repository.proofs import Proofs

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes read so far and bytes to read (0 where that is not known)."""

_INDEXES = 256
_INDEX_ROWS = 256 * 1024
"""Of rows in all indexes that are kept: each takes some 250 bytes."""
_SOUND_NODES = 200_000
_SHARE_OF_BAD_PACKS, _SHARE_OF_PACKS = 0.25, 0.75
"""Of a budget: what was not sound is read each time, but keeps nothing else from its turn. The rest is for manifests,
which say what is missing altogether."""


def _while_unused(
    packs: Iterable[bytes], sizes: Mapping[bytes, int], read_bytes: int, is_used: Callable[[int], bool]
) -> Iterator[bytes]:
    """Yield packs until their share of a budget is used, of which ``read_bytes`` were read; one at least.

    Without that one what is too small for the rest of a run would never come to an end. A pack counts when its reading
    begins, as several are read at a time.
    """
    for number, pack in enumerate(packs):
        if number and is_used(read_bytes):
            return
        read_bytes += sizes[pack]
        yield pack


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
        self._packs_read = 0
        # Whether what is in packs that were not read counts as sound.
        self._unread_counts = False
        self._sizes: dict[bytes, int] | None = None
        # Packs that went since they were listed: a prune moved what was needed of them.
        self._gone: set[bytes] = set()
        self._frames = Frames(store, sealer)
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

    def everything(
        self, format_bytes: bytes, key: KeyMaterial, keyring: Keyring, proofs: Proofs | None = None
    ) -> RepositoryReport:
        """Prove every object: format, keyring, packs with their unreferenced frames, state versions, points, notes.

        ``proofs`` takes note of the packs that were read whole.
        """
        points = self._listed_points()
        self._check_keyring(format_bytes, key, keyring, points)
        sizes = self._pack_sizes()
        if proofs is not None and self._share is None:
            proofs.meet(sizes, frozenset(points))
        self._total_bytes = int(sum(sizes.values()) * self._sample)
        self._check_pack_names()
        self._check_packs(sizes, proofs if self._share is None else None)
        self._check_small()
        for point_id in points:
            self._check_point_there(point_id, proofs if self._share is None else None)
        self._check_notes()
        if proofs is not None and self._share is None:
            proofs.end_run()
        return self._report(points)

    def portion(
        self, format_bytes: bytes, key: KeyMaterial, keyring: Keyring, proofs: Proofs, budget: Budget
    ) -> RepositoryReport:
        """Prove what is small, then packs and the manifests of points, those first that were longest not read.

        What a pack that is there holds counts as sound as long as it is not read. When one is damaged, the manifests of
        all points are read, whatever is left of the budget, so that each point is named that needs it.
        """
        began = time.monotonic()

        def is_used(share: float, size_bytes: int) -> bool:
            return budget.is_used((time.monotonic() - began) / share, int(size_bytes / share))

        self._unread_counts = True
        points = self._listed_points()
        self._check_keyring(format_bytes, key, keyring, points)
        self._check_small()
        self._check_notes()
        self._check_pack_names()
        sizes = self._pack_sizes()
        proofs.meet(sizes, frozenset(points))
        self._total_bytes = max(budget.size_bytes or 0, self._read_bytes)
        for bad, share in ((True, _SHARE_OF_BAD_PACKS), (False, _SHARE_OF_PACKS)):
            packs = [pack for pack in proofs.packs(bad=bad) if pack in sizes and pack not in self._proved]
            self._check_packs(_while_unused(packs, sizes, self._read_bytes, partial(is_used, share)), proofs)
        for number, point_id in enumerate(list(proofs.points())):
            if number and is_used(1.0, self._read_bytes) and not (self._bad or self._unsound or self._gone):
                break
            self._check_point_there(point_id, proofs)
        proofs.end_run()
        return self._report(points)

    def _listed_points(self) -> list[str]:
        points = []
        for item in self._store.list(POINTS):
            if is_name(item.name.removeprefix(POINTS)):
                points.append(item.name.removeprefix(POINTS))
            else:
                self._find(item.name, "this is not an object of a repository")
        return sorted(points)

    def _check_small(self) -> None:
        """Prove what is neither a pack nor a point."""
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

    def _check_point_there(self, point_id: str, proofs: Proofs | None) -> None:
        """Prove a point, unless it was removed since the points were listed."""
        with suppress(PointNotFound):
            self._check_point(point_id)
            self._require_there(point_id)
            if proofs is not None:
                proofs.note_point(point_id)

    def _report(self, points: Sequence[str]) -> RepositoryReport:
        findings, sizes = self._findings(), self._pack_sizes()
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
            self._packs_read,
        )

    def _pardoned(self) -> tuple[bytes, ...]:
        """Return the condemned packs of which every frame was read and opened at the first attempt."""
        if self._share is not None:
            return ()
        told = {name for name, _ in (*self._found, *self._readings.unread)} | self._readings.unsteady.keys()
        proved = {pack for pack in self._proved if pack_name(pack) not in told}
        return tuple(sorted(condemned_alone(self._store) & proved))

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

    def _require_there(self, point_id: str) -> None:
        """Raise PointNotFound, and forget what harms it, for a point that was removed while it was looked at.

        A prune may have taken what it needs.
        """
        harming = [key for key, harms in self._found.items() if point_id in harms]
        if harming and not self._store.exists(POINTS + point_id):
            for key in harming:
                self._found[key].discard(point_id)
                if not self._found[key]:
                    del self._found[key]
            raise PointNotFound(f"point {point_id} is not in the repository")

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
        most_bytes = node_frame_bytes_limit(geometry.slots(level, index))
        opened = self._open(FrameKind.NODE, [self._actual(FrameKind.NODE, ref)], most_bytes)[0]
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
        for block, named in present:
            ref = self._actual(FrameKind.BLOCK, named)
            if ref.pack not in self._proved:
                unread += [(block, ref)] * (not self._is_taken_for_sound(ref.pack))
                continue
            entry = self._index(ref.pack).get(ref.offset)
            problem = self._bad.get((ref.pack, ref.offset)) or self._entry_problem(FrameKind.BLOCK, ref)
            if problem is None and entry is not None and entry.plain_bytes != disk.plain_bytes(block):
                problem = f"{describe(ref)} has a wrong length"
            if problem is not None:
                copied = self._elsewhere(FrameKind.BLOCK, ref, ObjectDamaged(problem))
                harmed = isinstance(copied, VmkeepError) or len(copied) != disk.plain_bytes(block)
                self._find(pack_name(ref.pack), problem, *[point_id] * harmed)
                sound = sound and not harmed
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

    def _is_taken_for_sound(self, pack: bytes) -> bool:
        """Return whether nobody asks for what is in a pack that was not read, as long as it is there."""
        return self._unread_counts and pack in self._pack_sizes() and pack not in self._unsound | self._gone

    # -- frames and packs ------------------------------------------------------------------------------------------

    def _open(self, kind: FrameKind, refs: Sequence[BlockRef], most_bytes: int) -> list[bytes | VmkeepError]:
        """Return for each reference its plain text, or what is wrong with it at the second attempt as well.

        None of the frames may be longer than ``most_bytes``.
        """
        for ref in refs:
            self._check_structure(ref.pack)
        refs = [self._actual(kind, ref) for ref in refs]
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
                opened.append(self._elsewhere(kind, ref, error))
                if is_unread(error):
                    self._readings.note_unread_frame(pack_name(ref.pack), error)
                continue
            # The frame can be read; an index that lacks it would mislead a prune, and is reported without harm.
            if ref.pack not in self._unsound and (problem := self._entry_problem(kind, ref)) is not None:
                self._find(pack_name(ref.pack), problem)
        return opened

    def _actual(self, kind: FrameKind, ref: BlockRef) -> BlockRef:
        """Return where a frame lies: where it is named, or where it was moved to."""
        if ref.pack in self._pack_sizes() and ref.pack not in self._gone:
            return ref
        return next(self._frames.forwards.elsewhere(self._sealer, kind, ref), ref)

    def _elsewhere(self, kind: FrameKind, ref: BlockRef, error: VmkeepError) -> bytes | VmkeepError:
        """Return what is in another copy of a frame that is bad or gone, as a reader would; else the error."""
        if not isinstance(error, IntegrityError):
            return error
        try:
            plain = self._frames.elsewhere(kind, ref, error)
        except VmkeepError as failure:
            return failure
        if not isinstance(error, ObjectMissing):
            self._find(pack_name(ref.pack), error.message)
        return plain

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
        except ObjectMissing:
            self._gone.add(pack)  # told of what is needed of it, where that is nowhere else
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
                self._advance(beside_frames(entries, size))
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
        try:
            entry = self._index(ref.pack).get(ref.offset)
        except ObjectMissing:
            return None  # gone since it was read
        if entry is None or (entry.kind, entry.id, entry.length) != (kind, ref.id, ref.length):
            return f"{describe(ref)} is not the block that a manifest names there"
        return None

    def _pack_sizes(self) -> dict[bytes, int]:
        if self._sizes is None:
            self._sizes = stored_packs(self._store)
        return self._sizes

    def _check_pack_names(self) -> None:
        for item in self._store.list(PACKS):
            if pack_of_name(item.name) is None:
                self._find(item.name, "this is not an object of a repository")

    def _check_packs(self, packs: Iterable[bytes], proofs: Proofs | None) -> None:
        reader = PackReader(self._store, self._sealer, self._readings, self._pack_sizes(), self._share)
        for pack, read in reader.read_all(packs):
            self._advance(read.size_bytes)
            if isinstance(read.problem, ObjectMissing):
                self._gone.add(pack)
                continue
            self._packs_read += 1
            if proofs is not None and not (read.problem is not None and is_unread(read.problem)):
                bad = read.problem.message if read.problem is not None else read.bad[0][1] if read.bad else None
                proofs.note_pack(pack, bad)
            if read.problem is not None:
                self._unsound.add(pack)
                self._tell(pack_name(pack), read.problem)
                continue
            self._blocks += read.blocks
            self._proved.add(pack)
            for offset, message in read.bad:
                self._bad[pack, offset] = message
                self._find(pack_name(pack), message)

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
        return findings_of(self._found)

    def _unread(self) -> tuple[Finding, ...]:
        return findings_of(self._readings.unread)

    def _unsteady(self) -> tuple[Finding, ...]:
        return tuple(Finding(name, what) for name, what in sorted(self._readings.unsteady.items()))

    def _advance(self, count: int) -> None:
        self._read_bytes += count
        if self._progress is not None:
            self._progress(self._read_bytes, self._total_bytes)
