"""Forwards: where the frames of a pack are since a prune moved what was needed of it.

A prune copies frames that points reach out of packs that are mostly waste. Points, nodes and ids stay as they are: they
go on naming the old pack, and a *forward* says which packs its frames are in. A reader that misses a pack asks the
forwards, then the index of each pack that they name, for the id that it wants. Ids are keyed, so a frame proves itself
wherever it lies, and a false forward leads to nothing (section 9g of docs/internals/repository-format.md).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from vmkeep.errors import ObjectDamaged, ObjectMissing, VmkeepError
from vmkeep.repository.layout import (
    FORWARDS,
    LIST_BYTES_LIMIT,
    FrameKind,
    canonical,
    is_name,
    pack_name,
    parse_canonical,
)
from vmkeep.repository.packs import read_index
from vmkeep.repository.record import BlockRef
from vmkeep.repository.seal import Sealer
from vmkeep.repository.store import ObjectStore

MOST_FORWARDED: Final = 10_000
"""Of old packs in one object, so that it stays below its limit with several new packs for each."""
_MOST_TARGETS: Final = 1000
_ROWS: Final = 128 * 1024
"""Of rows in all indexes that are kept: each takes some 300 bytes."""
_LISTINGS: Final = 5


def frame_key(kind: FrameKind, id_: bytes) -> bytes:
    """Return what frames are looked up by: enough of the id to find one among those of a pack, not to prove it."""
    return bytes([kind]) + id_[:8]


def put_forward(store: ObjectStore, name: str, moved: Mapping[bytes, Sequence[bytes]]) -> None:
    """Say durably in which packs the frames of each old pack are."""
    listed = {old.hex(): sorted(new.hex() for new in targets) for old, targets in moved.items()}
    store.put(FORWARDS + name, canonical({"moved": listed, "name": name}))


def parse_forward(data: bytes, name: str) -> dict[bytes, tuple[bytes, ...]]:
    """Return what an object of that name says. Raises ObjectDamaged for one that no vmkeep writes."""
    where = FORWARDS + name
    value = parse_canonical(data, where)
    moved = value.get("moved")
    if value.get("name") != name or not isinstance(moved, dict) or not moved:
        raise ObjectDamaged(f"{where} was changed, or is another one", path=where)
    return {_pack(old, where): _targets(targets, where) for old, targets in moved.items()}


def _targets(value: Any, where: str) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= _MOST_TARGETS:
        raise ObjectDamaged(f"{where} has a wrong list of packs", path=where)
    return tuple(_pack(each, where) for each in value)


def _pack(value: Any, where: str) -> bytes:
    if not isinstance(value, str) or not is_name(value):
        raise ObjectDamaged(f"{where} names what is no pack", path=where)
    return bytes.fromhex(value)


class Forwards:
    """The forwards of a repository, read when they are needed. Safe to use from many threads.

    ``objects`` are those that were read, ``targets`` what they say together. ``unreadable``: objects that could not be
    read, with why; ``unread_packs``: packs that frames were looked for in and whose index could not be read. ``gone``:
    packs that were asked for and are not there.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._indexes: OrderedDict[bytes, dict[bytes, BlockRef]] = OrderedDict()
        self._rows = 0
        self.objects: dict[str, dict[bytes, tuple[bytes, ...]]] = {}
        self.targets: dict[bytes, tuple[bytes, ...]] = {}
        self.unreadable: dict[str, VmkeepError] = {}
        self.unread_packs: dict[bytes, VmkeepError] = {}
        self.gone: set[bytes] = set()

    def refresh(self) -> bool:
        """Read the objects that are new; return whether there were any. Raises what listing them raises."""
        with self._lock:
            new = False
            for _ in range(_LISTINGS):
                names = {item.name.removeprefix(FORWARDS) for item in self._store.list(FORWARDS)}
                missed = False
                for name in sorted(names - self.objects.keys()):
                    try:
                        new = self._read(name) or new
                    except ObjectMissing:
                        missed = True  # merged into a newer one just now, which a new listing has
                if not missed:
                    break
            return new

    def _read(self, name: str) -> bool:
        try:
            moved = parse_forward(self._store.get(FORWARDS + name, most_bytes=LIST_BYTES_LIMIT), name)
        except ObjectMissing:
            raise
        except VmkeepError as error:
            self.unreadable[name] = error
            return False
        self.unreadable.pop(name, None)
        self.objects[name] = moved
        for old, targets in moved.items():
            self.targets[old] = tuple(sorted({*self.targets.get(old, ()), *targets}))
        return True

    def note_gone(self, packs: set[bytes]) -> bool:
        """Look which packs are not there any more; return whether any of them was not known to be gone."""
        gone = {pack for pack in packs - self.gone if not self._store.exists(pack_name(pack))}
        self.gone |= gone
        return bool(gone)

    def place(self, sealer: Sealer, kind: FrameKind, ref: BlockRef) -> BlockRef:
        """Return where a frame is read from: the place that is named, or another one when that pack is gone."""
        if ref.pack not in self.gone:
            return ref
        return next(self.elsewhere(sealer, kind, ref), ref)

    def elsewhere(self, sealer: Sealer, kind: FrameKind, ref: BlockRef) -> Iterator[BlockRef]:
        """Yield where copies of a frame lie besides the place that is named; forwards are read again at the end."""
        key = frame_key(kind, ref.id)
        known = len(self.objects)
        yield from (found for found in self.copies(sealer, key, ref.pack) if found.id == ref.id)
        self.refresh()
        if len(self.objects) > known:  # by whichever thread: what is new here another one may just have read
            yield from (found for found in self.copies(sealer, key, ref.pack) if found.id == ref.id)

    def copies(self, sealer: Sealer, key: bytes, pack: bytes) -> Iterator[BlockRef]:
        """Yield where frames of that ``frame_key`` lie among the packs that a pack was moved to.

        The order is the same for everybody: what a pack was moved to comes before it, by the packs' names.
        """
        for target in self._onwards(pack):
            try:
                found = self.index(sealer, target).get(key)
            except ObjectMissing:
                continue  # moved on
            except VmkeepError as error:
                self.unread_packs[target] = error
                continue
            if found is not None:
                yield found

    def _onwards(self, pack: bytes) -> Iterator[bytes]:
        """Yield each pack that forwards lead to from one, once, and what it was moved to before it.

        Who may add forwards may add long chains of them, and packs that many ways lead to.
        """
        met = {pack}
        way = [(pack, iter(self.targets.get(pack, ())))]
        while way:
            at, targets = way[-1]
            target = next((target for target in targets if target not in met), None)
            if target is not None:
                met.add(target)
                way.append((target, iter(self.targets.get(target, ()))))
                continue
            way.pop()
            if way:
                yield at

    def index(self, sealer: Sealer, pack: bytes) -> Mapping[bytes, BlockRef]:
        """Return where each frame of a pack lies, by its ``frame_key``; raises as reading its index does."""
        with self._lock:
            index = self._indexes.get(pack)
            if index is not None:
                self._indexes.move_to_end(pack)
                return index
        if pack in self.gone:
            raise ObjectMissing(f"{pack_name(pack)} is not in the repository", path=pack_name(pack))
        try:
            size_bytes = self._store.stat(pack_name(pack)).size_bytes
        except ObjectMissing:
            self.gone.add(pack)
            raise
        entries = read_index(self._store, sealer, pack, size_bytes)
        index = {
            frame_key(entry.kind, entry.id): BlockRef(entry.id, pack, entry.offset, entry.length)
            for entry in reversed(entries)  # of two with one id the first
        }
        with self._lock:
            if pack not in self._indexes:
                self._indexes[pack] = index
                self._rows += len(index)
                while self._rows > _ROWS and len(self._indexes) > 1:
                    self._rows -= len(self._indexes.popitem(last=False)[1])
        return index
