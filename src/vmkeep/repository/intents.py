"""Intents and condemned packs: how writers and a prune keep out of each other's way without a lock.

A writer says that it writes by an object that it renews; a prune condemns packs, waits until every intent older than
that is gone or has lapsed, looks again, and only then deletes. Time is the store's: hosts' clocks are not compared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from vmkeep.errors import ObjectDamaged, ObjectMissing, VmkeepError
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import (
    CONDEMNED,
    INTENTS,
    LIST_BYTES_LIMIT,
    PACKS,
    PRUNED,
    RUN_PREFIX,
    canonical,
    is_name,
    pack_name,
    pack_of_name,
    parse_canonical,
)
from vmkeep.repository.store import ObjectStat, ObjectStore
from vmkeep.threads import carried
from vmkeep.values import dataclass

LAPSE_SECONDS = 900.0
LONGEST_LAPSE_SECONDS = 86400.0
"""What an intent may ask for; one that says anything else is waited for as long as this."""
DAMAGED = "damaged"
"""Why packs are condemned that were read twice and were wrong both times."""
_DAMAGED = (DAMAGED, "verify found damage")
"""The same with the words of earlier versions, which condemned what could not be read as well."""
# Up to this number, packs are looked up one by one; beyond it one listing of them all is cheaper, unless there are very
# many: a bucket lists so many with one request, and a directory in the time of one look.
_LOOKUPS = 64
_LISTED_AT_ONCE, _LISTED_MEANWHILE = 1000, 8


class Intent:
    """One writer's intent: put when it begins, renewed by a thread, deleted when it ends."""

    def __init__(
        self, store: ObjectStore, writer: str, *, host: str, purpose: str, lapse_seconds: float = LAPSE_SECONDS
    ) -> None:
        self._store = store
        self._name = INTENTS + writer
        self._lapse = timedelta(seconds=lapse_seconds)
        self._fields = {
            "host": host,
            "lapse_seconds": lapse_seconds,
            "purpose": purpose,
            "started": datetime.now(UTC).isoformat(timespec="microseconds"),
            "writer": writer,
        }
        self._renewals = 0
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._lapsed = False
        self._thread = threading.Thread(target=carried(self._keep), name="vmkeep-intent", daemon=True)

    def begin(self) -> None:
        """Put the intent; raises what the store raises."""
        self._store.put(self._name, self._content())
        self._thread.start()

    def renew(self) -> bool:
        """Put the intent again and return whether it was in force all the time since ``begin``."""
        with self._lock:
            try:
                before = self._store.stat(self._name).modified
            except ObjectMissing:
                self._lapsed = True
                before = None
            self._renewals += 1
            renewed = self._store.renew(self._name, self._content())
            if before is not None and renewed - before > self._lapse:
                self._lapsed = True
            return not self._lapsed

    def in_force_at(self, moment: datetime) -> bool:
        """Return whether the intent was in force from ``begin`` to a moment of the store's time; renews nothing."""
        with self._lock:
            try:
                renewed = self._store.stat(self._name).modified
            except ObjectMissing:
                return False
            return not self._lapsed and moment - renewed <= self._lapse

    def end(self) -> None:
        """Delete the intent, if the host may delete: it lapses by itself otherwise."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._store.delete(self._name)
        except VmkeepError:
            # A host may be allowed to append only, and a lapsed intent may have been swept.
            return

    def _content(self) -> bytes:
        # The number tells what was put last from what was there before, where a store may show either.
        return canonical({**self._fields, "renewals": self._renewals})

    def _keep(self) -> None:
        while not self._ending.wait(self._lapse.total_seconds() / 4):
            try:
                self.renew()
            except VmkeepError:
                # The commit renews once more and finds out from the store's time whether this mattered.
                continue


@dataclass(frozen=True, slots=True)
class Writer:
    """Whom an intent names: a writer's id, its host, and what it writes for; and when it was last put, by the store."""

    id: str
    host: str
    purpose: str
    renewed: datetime
    lapse_seconds: float = LAPSE_SECONDS


def writers(store: ObjectStore) -> tuple[Writer, ...]:
    """Return the writers whose intents are there, whether they live or not. What is no intent is left out."""
    found = (_writer(store, item) for item in store.list(INTENTS))
    return tuple(writer for writer in found if writer is not None)


def _writer(store: ObjectStore, item: ObjectStat) -> Writer | None:
    try:
        content = parse_canonical(store.get(item.name), item.name)
        taken = Fields(content)
        host, purpose = taken.take("host", fields.line), taken.take("purpose", fields.line)
        lapse = content.get("lapse_seconds")
    except (VmkeepError, WrongField):
        return None  # it ended just now, or is damaged: verify tells of that
    if not isinstance(lapse, int | float) or not 0 < lapse <= LONGEST_LAPSE_SECONDS:
        lapse = LONGEST_LAPSE_SECONDS
    return Writer(item.name.removeprefix(INTENTS), host, purpose, item.modified, float(lapse))


def unlapsed(store: ObjectStore) -> dict[str, Writer | None]:
    """Return the writers that may be at work, by the name of their intent: those that were put within their lapse.

    None for what cannot be read: who wrote it is taken for at work until the longest lapse is over.
    """
    found = {item.name: (item.modified, _writer(store, item)) for item in store.list(INTENTS)}
    now = store.now()
    lapses = {name: writer.lapse_seconds if writer else LONGEST_LAPSE_SECONDS for name, (_, writer) in found.items()}
    return {
        name: writer
        for name, (renewed, writer) in found.items()
        if now - renewed <= timedelta(seconds=lapses[name]) and store.exists(name)
    }


def forget_writer(store: ObjectStore, writer: str) -> None:
    """Delete the intent of a writer that is known to be gone; one that is gone already is fine."""
    with suppress(ObjectMissing):
        store.delete(INTENTS + writer)


def damaged_notes(store: ObjectStore) -> Iterator[VmkeepError]:
    """Yield what is wrong, with the object's name as ``path``, of each intent and condemned pack that is not as put."""
    for prefix, field, others in (
        (INTENTS, "writer", ("host", "purpose", "started")),
        (CONDEMNED, "pack", ("reason",)),
    ):
        for item in store.list(prefix):
            name = item.name.removeprefix(prefix)
            try:
                if item.name.startswith(CONDEMNED + RUN_PREFIX):
                    _listed(store, item.name)
                    continue
                content = parse_canonical(store.get(item.name), item.name)
            except ObjectMissing:
                continue  # its writer ended just now
            except VmkeepError as error:
                yield type(error)(error.message, path=item.name)
                continue
            if not is_name(name):
                yield ObjectDamaged("this is not an object of a repository", path=item.name)
            elif content.get(field) != name or not all(_is_line(content.get(other)) for other in others):
                yield ObjectDamaged(f"{item.name} was changed, or is another one", path=item.name)


def _is_line(value: object) -> bool:
    try:
        fields.line(value)
    except WrongField:
        return False
    return True


def condemned_alone(store: ObjectStore) -> set[bytes]:
    """Return the packs that are condemned one by one: those that verify found damaged."""
    return _packs_named(store.list(CONDEMNED))


def condemned_packs(store: ObjectStore) -> set[bytes]:
    """Return the packs that a writer must not use again.

    Raises ObjectDamaged, or what reading raises, for a list that cannot be read: then it may be any pack.
    """
    items = list(store.list(CONDEMNED))
    return _packs_named(items).union(*_lists(store, items).values())


def condemned_lists(store: ObjectStore) -> dict[str, set[bytes]]:
    """Return the packs that prunes have condemned, by the objects that name them; raises as ``condemned_packs``."""
    return _lists(store, list(store.list(CONDEMNED)))


def _packs_named(items: Iterable[ObjectStat]) -> set[bytes]:
    names = (item.name.removeprefix(CONDEMNED) for item in items)
    return {bytes.fromhex(name) for name in names if is_name(name)}


def _lists(store: ObjectStore, items: Iterable[ObjectStat]) -> dict[str, set[bytes]]:
    found = {}
    for item in items:
        if item.name.startswith(CONDEMNED + RUN_PREFIX):
            with suppress(ObjectMissing):  # its prune ended just now
                found[item.name] = _listed(store, item.name).packs
    return found


def condemned_states(store: ObjectStore) -> set[str]:
    """Return the state versions that a prune is about to delete; raises as ``condemned_packs``."""
    found: set[str] = set()
    for item in list(store.list(CONDEMNED)):
        if item.name.startswith(CONDEMNED + RUN_PREFIX):
            with suppress(ObjectMissing):
                found |= _listed(store, item.name).states
    return found


def condemn_list(store: ObjectStore, name: str, packs: Iterable[bytes], states: Iterable[str] = ()) -> str:
    """Condemn many objects with one, for a prune that will delete them; return its name."""
    where = CONDEMNED + RUN_PREFIX + name
    listed = sorted(pack.hex() for pack in packs)
    content = {"packs": listed, "reason": "prune", "run": name, "states": sorted(states)}
    store.put(where, canonical(content))
    return where


class _Condemned(NamedTuple):
    packs: set[bytes]
    states: set[str]


def _listed(store: ObjectStore, where: str) -> _Condemned:
    value = parse_canonical(store.get(where, most_bytes=LIST_BYTES_LIMIT), where)
    packs, states = value.get("packs"), value.get("states")
    if (
        value.get("run") != where.removeprefix(CONDEMNED + RUN_PREFIX)
        or not isinstance(packs, list)
        or not isinstance(states, list)
    ):
        raise ObjectDamaged(f"{where} was changed, or is another one", path=where)
    if not all(isinstance(each, str) and is_name(each) for each in (*packs, *states)):
        raise ObjectDamaged(f"{where} names what is no object", path=where)
    return _Condemned({bytes.fromhex(pack) for pack in packs}, set(states))


def condemn(store: ObjectStore, packs: Iterable[bytes], *, reason: str) -> None:
    """Condemn packs one by one, so that no later point uses their blocks again."""
    for pack in packs:
        store.put(CONDEMNED + pack.hex(), canonical({"pack": pack.hex(), "reason": reason}), replace=True)


def pardon(store: ObjectStore, packs: Iterable[bytes]) -> int:
    """Free packs that were condemned as damaged, and return how many were; those of another reason stay."""
    freed = 0
    for pack in packs:
        name = CONDEMNED + pack.hex()
        try:
            if parse_canonical(store.get(name), name).get("reason") not in _DAMAGED:
                continue
            store.delete(name)
        except (ObjectMissing, ObjectDamaged):
            continue  # freed by another one just now; or a mark that says nothing, which stays
        freed += 1
    return freed


def stored_packs(store: ObjectStore) -> dict[bytes, int]:
    """Return the size in bytes of every pack."""
    return {pack: item.size_bytes for item in store.list(PACKS) if (pack := pack_of_name(item.name)) is not None}


def prunes(store: ObjectStore) -> set[str]:
    """Return the names of the deletions of packs that are told of: who has not met one of them looks at all packs."""
    return {item.name for item in store.list(PRUNED)}


def tell_of_prune(store: ObjectStore, name: str) -> None:
    """Tell all who know packs that some are about to be deleted, which are condemned until they are."""
    store.put(PRUNED + name, canonical({"run": name}))


def unusable(store: ObjectStore, packs: set[bytes], *, of: int = 0) -> set[bytes]:
    """Return which of the packs are condemned or gone, or may be. ``of``: how many packs there are in all, about."""
    if not packs:
        return set()
    try:
        condemned = condemned_packs(store) & packs
    except ObjectDamaged:
        return packs
    if len(packs) > max(_LOOKUPS, of // (_LISTED_AT_ONCE if store.directory is None else _LISTED_MEANWHILE)):
        return condemned | (packs - stored_packs(store).keys())
    return condemned | {pack for pack in packs if not store.exists(pack_name(pack))}
