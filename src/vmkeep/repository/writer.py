"""Writing a point: disks block by block, state versions, and the commit that makes it exist.

Nothing that is written before the commit can be seen; a writer that dies leaves packs that no point names, for a
prune to take away.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from vmkeep.errors import (
    Interrupted,
    InvalidRequest,
    ObjectDamaged,
    ObjectMissing,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.repository.envelopes import PointSecret, put_envelope, stored_envelope
from vmkeep.repository.fetch import node_reader
from vmkeep.repository.intents import Intent, condemned_states, unusable
from vmkeep.repository.known import KnownBlocks
from vmkeep.repository.layout import (
    BLOCK_BYTES_LIMIT,
    DISK_BYTES_LIMIT,
    ENVELOPES,
    NAME_BYTES,
    POINT_BYTES_LIMIT,
    POINTS,
    STATES,
    Buffer,
    FrameKind,
    PackEntry,
    PackKind,
    canonical,
)
from vmkeep.repository.manifest import Geometry, ManifestBuilder
from vmkeep.repository.packs import DATA_PACK_BYTES, METADATA_PACK_BYTES, Packer
from vmkeep.repository.record import (
    BLOCK_BYTES,
    FAN_OUT,
    BlockRef,
    PointRecord,
    SecretRef,
    StateVersion,
    StoredDisk,
    refuse_unreadable,
)
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import FIELD, Signer, put_host_key, sign_point
from vmkeep.repository.states import get_state, put_state
from vmkeep.repository.store import ObjectStore

# Data buffers: one for each worker's share of filling and two on their way to the store. 4 x 16 + 2 x 4 MiB.
_DATA_BUFFERS, _METADATA_BUFFERS, _UPLOADERS = 4, 2, 2


class BlockPlacer:
    """Decides whether a block is stored already, and stores it when it is not. Safe to use from many threads."""

    def __init__(self, store: ObjectStore, sealer: Sealer, known: KnownBlocks, uploaders: int) -> None:
        self.sealer = sealer
        self._known = known
        self._lock = threading.Lock()
        # Blocks in packs that are not durable yet; a stored pack's blocks move to the index of known blocks.
        self._pending: dict[bytes, BlockRef] = {}
        self.own: set[bytes] = set()
        self.reused: set[bytes] = set()
        self.bytes_stored = 0
        self._packers = {
            FrameKind.BLOCK: Packer(
                store,
                sealer,
                PackKind.DATA,
                pack_bytes=DATA_PACK_BYTES,
                buffers=_DATA_BUFFERS,
                uploaders=uploaders,
                stored=self._stored,
            ),
            FrameKind.NODE: Packer(
                store,
                sealer,
                PackKind.METADATA,
                pack_bytes=METADATA_PACK_BYTES,
                buffers=_METADATA_BUFFERS,
                uploaders=1,
                stored=self._stored,
            ),
        }

    def place(
        self, kind: FrameKind, plains: Sequence[Buffer], ids: Sequence[bytes] | None = None
    ) -> list[tuple[BlockRef, int]]:
        """Return for each block where it is, and the bytes that storing it took (0 for a known one).

        ``ids`` are those of the blocks where the caller has them already. Many at once, because what costs most of a
        small block in Python is taking the locks: one query, one reservation and one report serve them all.
        """
        if ids is None:
            ids = [self.sealer.id_of(kind, plain) for plain in plains]
        packer = self._packers[kind]
        packer.check()
        found = {id_: ref for id_ in ids if (ref := self._pending.get(id_)) is not None}
        asked = [id_ for id_ in dict.fromkeys(ids) if id_ not in found]
        if asked:
            found.update(self._known.find(asked))
        if any(ref.pack not in self.reused for ref in found.values()):
            with self._lock:
                self.reused.update(ref.pack for ref in found.values())
        new = {id_: plain for id_, plain in zip(ids, plains, strict=True) if id_ not in found}
        added = packer.add(new)
        with self._lock:
            self._pending.update((ref.id, ref) for ref in added.values() if ref.pack not in self.own)
        # A block that stands several times among these is stored, and counted, once.
        costs = {id_: ref.length for id_, ref in added.items()}
        return [(found.get(id_) or added[id_], costs.pop(id_, 0)) for id_ in ids]

    def check(self) -> None:
        for packer in self._packers.values():
            packer.check()

    def finish(self) -> None:
        """Return when everything placed is durable."""
        for packer in self._packers.values():
            packer.flush()
        self.end()
        # An uploader may have been waiting for the disk while the rest was flushed.
        self.check()

    def end(self, failure: BaseException | None = None) -> None:
        for packer in self._packers.values():
            packer.end(failure)

    def _stored(self, pack: bytes, entries: Sequence[PackEntry], size_bytes: int) -> None:
        self._known.add(pack, entries)
        with self._lock:
            self.own.add(pack)
            self.bytes_stored += size_bytes
            for entry in entries:
                self._pending.pop(entry.id, None)


class DiskWriter:
    """One disk of a point that is being written: ``seal`` from many threads, the rest from one."""

    def __init__(self, store: ObjectStore, placer: BlockPlacer, disk: StoredDisk) -> None:
        self._placer = placer
        self._disk = disk
        self._last = disk.blocks - 1
        self._last_bytes = disk.plain_bytes(self._last) if disk.blocks else 0
        self._zero_ids = {
            placer.sealer.id_of(FrameKind.BLOCK, bytes(length)) for length in (disk.block_bytes, self._last_bytes)
        }
        self._short: set[bytes] = set()
        self._lock = threading.Lock()
        self._bytes_stored = 0
        self._finished: StoredDisk | None = None
        self._manifest = ManifestBuilder(
            Geometry(disk.blocks, disk.fan_out),
            disk.root,
            read=node_reader(store, placer.sealer),
            store=self._store_node,
        )

    @property
    def bytes_stored(self) -> int:
        """Bytes that this disk's new blocks and manifest nodes take in packs."""
        return self._bytes_stored

    @property
    def finished(self) -> bool:
        return self._finished is not None

    def seal(self, data: bytes | memoryview) -> BlockRef | None:
        """Store one block's content unless it is known, and return where it is; None for one of zeros.

        The length is the block size, or what remains of the disk for its last block. Raises InvalidRequest for
        another length, and the error of an upload that failed.
        """
        if len(data) > self._disk.block_bytes:
            raise InvalidRequest(f"a block of {len(data)} bytes does not fit blocks of {self._disk.block_bytes}")
        return self.seal_run(data)[0]

    def seal_run(self, *pieces: bytes | memoryview) -> list[BlockRef | None]:
        """Store the blocks of a run, as ``seal`` does for one: whole blocks, and the disk's last one at the end.

        The run may come in pieces, each of whole blocks as well.
        """
        size = self._disk.block_bytes
        plains = [memoryview(piece)[at : at + size] for piece in pieces for at in range(0, len(piece), size)]
        whole = all(len(plain) == size for plain in plains[:-1])
        if not plains or not whole or len(plains[-1]) not in (size, self._last_bytes):
            raise InvalidRequest(f"a run of {sum(map(len, pieces))} bytes does not fit blocks of {size}")
        ids = [self._placer.sealer.id_of(FrameKind.BLOCK, plain) for plain in plains]
        # A block of zeros is known by its id, which is needed of every other block anyway: a comparison would read
        # each block once more.
        full = [number for number, id_ in enumerate(ids) if id_ not in self._zero_ids]
        refs: list[BlockRef | None] = [None] * len(plains)
        total = 0
        if full:
            placed = self._placer.place(
                FrameKind.BLOCK, [plains[number] for number in full], [ids[number] for number in full]
            )
            for number, (ref, stored) in zip(full, placed, strict=True):
                refs[number] = ref
                total += stored
        short = refs[-1] if len(plains[-1]) != size else None
        if total or short is not None:
            with self._lock:
                self._bytes_stored += total
                if short is not None:
                    self._short.add(short.id)
        return refs

    def matches(self, ref: BlockRef, data: bytes | bytearray | memoryview) -> bool:
        """Return whether ``data`` is the content of a block that is stored in the same domain."""
        return self._placer.sealer.id_of(FrameKind.BLOCK, memoryview(data)) == ref.id

    def record(self, block: int, ref: BlockRef | None) -> None:
        """Say what a block holds now, in ascending order; blocks that are not named keep what the base has.

        Raises InvalidRequest for a block out of order, beyond the end, or whose content has another length.
        """
        self._require_open()
        if ref is not None:
            short = block == self._last and self._last_bytes != self._disk.block_bytes
            if short != (ref.id in self._short):
                raise InvalidRequest(f"the content for block {block} has the length of another block")
        self._manifest.set(block, ref)

    def record_zero(self, first_block: int, blocks: int) -> None:
        """Say that a run of blocks is zero; whole subtrees are dropped, so a long run costs little more."""
        self._require_open()
        self._manifest.set_zero(first_block, blocks)

    def finish(self) -> StoredDisk:
        """Store the rest of the manifest and return the disk. It is durable only when the point is committed."""
        if self._finished is None:
            self._placer.check()
            self._finished = replace(self._disk, root=self._manifest.finish())
        return self._finished

    def _require_open(self) -> None:
        if self._finished is not None:
            raise InvalidRequest("the disk is finished; nothing more can be recorded")

    def _store_node(self, data: bytes) -> BlockRef:
        ((ref, stored),) = self._placer.place(FrameKind.NODE, [data])
        with self._lock:
            self._bytes_stored += stored
        return ref


class PointWriter:
    """Writes one point. Leaving its context without a commit gives the point up."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        known: KnownBlocks,
        intent: Intent,
        *,
        uploaders: int = _UPLOADERS,
        point_id: str | None = None,
        repository: str = "",
        signer: Signer | None = None,
    ) -> None:
        """``signer`` signs the point, as one of the repository of that id; without one it stays unsigned."""
        self.point_id = sealer.random(NAME_BYTES).hex() if point_id is None else point_id
        self._store = store
        self._sealer = sealer
        self._known = known
        self._intent = intent
        self._placer = BlockPlacer(store, sealer, known, uploaders)
        self._disks: list[DiskWriter] = []
        self._needs_parent = False
        self._has_envelope = False
        self._ended = False
        self._repository = repository
        self._signer = signer
        # Versions that were put for this point: what is signed of them need not be read again.
        self._put_states: dict[str, StateVersion] = {}

    @property
    def bytes_stored(self) -> int:
        """Bytes of the packs that are stored so far, for all disks."""
        return self._placer.bytes_stored

    def disk(self, *, size_bytes: int, block_bytes: int = BLOCK_BYTES, base: StoredDisk | None = None) -> DiskWriter:
        """Begin a disk; what is not recorded keeps the base's content, or is zero without a base.

        Raises InvalidRequest when the base has another size, block size or domain: such a disk is written whole.
        """
        domain = self._sealer.domain.id.hex()
        in_range = 0 <= size_bytes <= DISK_BYTES_LIMIT and 512 <= block_bytes <= BLOCK_BYTES_LIMIT
        if not in_range or block_bytes % 512:
            raise InvalidRequest(f"a disk of {size_bytes} bytes in blocks of {block_bytes} bytes cannot be stored")
        disk = StoredDisk(
            size_bytes, block_bytes, base.fan_out if base else FAN_OUT, domain, base.root if base else None
        )
        if base is not None and base != disk:
            raise InvalidRequest("the base has another size, block size or dedup domain than the disk")
        self._needs_parent = self._needs_parent or disk.root is not None
        writer = DiskWriter(self._store, self._placer, disk)
        self._disks.append(writer)
        return writer

    def drop(self, disk: DiskWriter) -> None:
        """Leave a disk that was begun out of the point; what was stored of it helps those that come."""
        self._disks.remove(disk)

    def put_state(
        self,
        content: bytes,
        *,
        vm_uuid: str,
        kind: str,
        generation: int,
        file: str,
        owner: str,
        group: str,
        mode: int,
        created: str | None = None,
    ) -> StateVersion:
        """Store a state version; raises StateTorn for content that is empty or too large for its kind."""
        version = put_state(
            self._store,
            self._sealer,
            content,
            vm_uuid=vm_uuid,
            kind=kind,
            generation=generation,
            file=file,
            owner=owner,
            group=group,
            mode=mode,
            created=created,
        )
        self._put_states[version.id] = version
        return version

    def put_secrets(self, secrets: Sequence[PointSecret], *, vm_uuid: str) -> tuple[SecretRef, ...]:
        """Seal the VM's secrets into the point's envelope and return what the record says of them. At most once."""
        self._has_envelope = bool(secrets)  # before the put: one that fails may have stored something
        try:
            return put_envelope(self._store, self._sealer, self.point_id, vm_uuid, secrets)
        except TargetExists:
            self._has_envelope = False  # that of another point of this id: it is not ours to delete
            raise

    def commit(self, record: PointRecord) -> PointRecord:
        """Make the point exist: when this returns, it and all it needs are durable.

        ``record.id`` is ``point_id`` or empty. Raises InvalidRequest for a disk that is not finished or a base without
        a parent, the error of an upload that failed, and StoreError when the repository was pruned meanwhile.
        """
        if self._ended:
            raise InvalidRequest("the point was committed or given up already")
        if record.id not in ("", self.point_id):
            raise InvalidRequest(f"the record's id {record.id} is not the writer's {self.point_id}")
        if not all(disk.finished for disk in self._disks):
            raise InvalidRequest("a disk of the point is not finished")
        if self._needs_parent and record.parent is None:
            raise InvalidRequest("a point whose disks have a base names the base's point as its parent")
        record = replace(record, id=self.point_id)
        try:
            refuse_unreadable(record)
            self._placer.finish()
            record = self._signed(record)
            plain = canonical(record.as_json())
            if len(plain) > POINT_BYTES_LIMIT:
                raise InvalidRequest(f"the record of the point has {len(plain)} bytes, more than a reader takes")
            record = replace(record, digest=hashlib.sha256(plain).hexdigest())
            frame = self._sealer.seal_alone(FrameKind.POINT, record.id, plain)
            self._check_not_pruned(record, in_force=self._intent.renew())
            self._put_point(record, frame)
        except BaseException as error:
            self._end(error)
            raise
        self._end()
        return record

    def _signed(self, record: PointRecord) -> PointRecord:
        """Return the record with this writer's signature, and never with that of a record it was made of."""
        record = replace(record, extra={name: content for name, content in record.extra.items() if name != FIELD})
        if self._signer is None:
            return record
        put_host_key(self._store, self._sealer, self._repository, self._signer, record.created)
        states = [
            self._put_states.get(state.version_id) or get_state(self._store, self._sealer, state.version_id)[0]
            for state in record.states
        ]
        envelope = stored_envelope(self._store, record.id) if record.secrets else None
        signature = sign_point(record.as_json(), self._repository, self._signer, states=states, envelope=envelope)
        return replace(record, extra={**record.extra, FIELD: signature})

    def abort(self) -> None:
        """Give the point up; nothing of it can be seen. Does nothing after a commit."""
        self._end(Interrupted("the point was given up"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _put_point(self, record: PointRecord, frame: bytes) -> None:
        name = POINTS + record.id
        try:
            self._store.put(name, frame)
            # The host may have slept between the check before and this put, while a prune went on.
            if not self._intent.in_force_at(self._store.stat(name).modified):
                self._check_not_pruned(record, in_force=False)
        except TargetExists:
            # Another point of that id: it is not ours to delete.
            raise
        except VmkeepError:
            # It may lie there without being durable; a point that was reported as failed must not turn up later.
            with contextlib.suppress(VmkeepError):
                self._store.delete(name)
            raise

    def _check_not_pruned(self, record: PointRecord, *, in_force: bool) -> None:
        packs = self._placer.reused - self._placer.own
        if not in_force:
            packs |= self._placer.own
        problem = None
        if unusable(self._store, packs):
            problem = "blocks that the point uses were condemned or deleted"
        elif record.parent is not None and not self._store.exists(POINTS + record.parent):
            problem = f"its base, point {record.parent}, was deleted"
        elif self._are_states_condemned(record):
            problem = "a state version that it names was let go by all that had it"
        elif any(not self._store.exists(STATES + state.version_id) for state in record.states):
            raise ObjectMissing("a state version that the point names is not in the repository")
        elif record.secrets and not self._store.exists(ENVELOPES + record.id):
            raise ObjectMissing("the envelope of the point is not in the repository")
        if problem is not None:
            self._known.forget()
            raise StoreError(
                f"the repository was pruned while the point was written: {problem}",
                path=self._store.location,
                hint="Run the command again; the earlier points are whole.",
            )

    def _are_states_condemned(self, record: PointRecord) -> bool:
        """Return whether a prune may be about to delete a version that was there before this point."""
        earlier = {state.version_id for state in record.states} - self._put_states.keys()
        try:
            return bool(earlier) and not earlier.isdisjoint(condemned_states(self._store))
        except ObjectDamaged:
            return True

    def _end(self, failure: BaseException | None = None) -> None:
        if self._ended:
            return
        self._ended = True
        self._placer.end(failure)
        if failure is not None and self._has_envelope:
            # Nobody else can need it. A writer that may not delete leaves it behind, sealed, as it leaves its packs.
            with contextlib.suppress(VmkeepError):
                self._store.delete(ENVELOPES + self.point_id)
        self._known.close()
        self._intent.end()
