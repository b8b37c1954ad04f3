"""The index of known blocks: a cache on this host that says where a block is stored already.

It is never needed for correctness: what it says is checked against the store before a commit, each row carries a
checksum, and a file that is damaged, or that was in use when the host went down, is thrown away and built again from
the packs' indexes. So it can do without fsync.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vmkeep.filesystem import make_directory, make_private_file
from vmkeep.repository.layout import PackEntry
from vmkeep.repository.record import BlockRef
from vmkeep.sqlite import sqlite_error

SCHEMA = 2
LISTED_SECONDS = 86400.0
"""For so long it is believed without a look at all packs, unless packs were deleted meanwhile."""
_TABLES = f"""
PRAGMA user_version = {SCHEMA};
CREATE TABLE pack (number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE);
CREATE TABLE block (id BLOB PRIMARY KEY, pack INTEGER NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
                    checksum INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE boot (id TEXT NOT NULL, listed REAL NOT NULL DEFAULT 0);
CREATE TABLE pruned (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
T = TypeVar("T")


class KnownBlocks:
    """Where blocks and manifest nodes of one domain lie. Safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; raises NoSpace, PermissionRefused or StoreError when that is impossible."""
        self._path = path
        self._lock = threading.Lock()
        self._packs: dict[int, bytes] = {}
        self._broken = False
        try:
            make_directory(path.parent.parent)
            make_directory(path.parent)
            try:
                self._open()
            except sqlite3.DatabaseError:
                self._remove()
                self._open()
        except (sqlite3.Error, OSError) as error:
            raise sqlite_error(error, path, "the index of known blocks") from error

    def refresh(self, present: set[bytes], read: Callable[[bytes], Iterable[PackEntry] | None]) -> None:
        """Forget packs that are gone and read the indexes of new ones; ``read`` returns None for one it cannot read."""
        with self._lock:
            nothing: dict[int, bytes] = {}
            known = {pack: number for number, pack in self._guarded(self._select_packs, nothing).items()}
        self.leave(known.keys() - present)
        for pack in present - known.keys():
            entries = read(pack)
            if entries is not None:
                self.add(pack, entries)

    def leave(self, packs: Iterable[bytes]) -> None:
        """Forget packs: those that are gone, or must not be used again."""
        gone = [(pack,) for pack in packs]
        with self._lock:
            self._packs = {}
            self._guarded(lambda: self._delete_packs(gone), None)

    def is_current(self, prunes: set[str], now: float) -> bool:
        """Return whether what is known may be believed without a look at all packs.

        ``prunes`` are the names of all deletions that are told of, and ``now`` is in seconds, by this host's clock: a
        look that was made longer ago than ``LISTED_SECONDS``, or that is to come, is none.
        """
        with self._lock:
            found = self._guarded(lambda: self._database.execute("SELECT listed FROM boot").fetchone(), None)
            rows: list[tuple[str]] = []
            rows = self._guarded(lambda: self._database.execute("SELECT name FROM pruned").fetchall(), rows)
        return found is not None and 0 <= now - found[0] < LISTED_SECONDS and prunes <= {name for (name,) in rows}

    @property
    def count(self) -> int:
        """How many packs are known, about."""
        with self._lock:
            found = self._guarded(lambda: self._database.execute("SELECT max(number) FROM pack").fetchone(), (0,))
        return int(found[0] or 0)

    def listed(self, prunes: Iterable[str], now: float) -> None:
        """Note that all packs were looked at, after ``prunes`` were told of."""
        with self._lock:
            self._guarded(lambda: self._note_listed(list(prunes), now), None)

    def distrust(self) -> None:
        """Have the next writer look at all packs."""
        self.listed((), 0.0)

    def add(self, pack: bytes, entries: Iterable[PackEntry]) -> None:
        """Remember the frames of a pack that is durable."""
        with self._lock:
            self._guarded(lambda: self._insert(pack, entries), None)

    def find(self, ids: Sequence[bytes]) -> dict[bytes, BlockRef]:
        """Return where blocks are, of those that are known; a row that does not fit its checksum counts as absent.

        One query for all: the cost of a query is that of several rows.
        """
        query = _FIND + ",".join("?" * len(ids)) + ")"
        nothing: list[tuple[bytes, int, int, int, int]] = []
        with self._lock:
            rows = self._guarded(lambda: self._database.execute(query, ids).fetchall(), nothing)
            missing = {number for _, number, _, _, _ in rows} - self._packs.keys()
            if missing:
                self._guarded(lambda: self._read_packs(missing), None)
            places = [
                (id_, self._packs.get(number), offset, length, check) for id_, number, offset, length, check in rows
            ]
        return {
            id_: BlockRef(id_, pack, offset, length)
            for id_, pack, offset, length, check in places
            if pack is not None and check == _checksum(id_, pack, offset, length)
        }

    def close(self) -> None:
        with self._lock, contextlib.suppress(sqlite3.Error):
            self._database.close()

    def _open(self) -> None:
        # Autocommit: every change below is a transaction of its own that begins where it says so.
        make_private_file(self._path)  # SQLite gives its journal the same mode
        database = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("journal_mode = WAL", "synchronous = OFF", "cache_size = -16384"):
                database.execute(f"PRAGMA {pragma}")
            database.execute("BEGIN IMMEDIATE")
            if database.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    database.execute(statement)
                database.execute("INSERT INTO boot (id) VALUES (?)", (_boot(),))
            database.execute("COMMIT")
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA or database.execute("SELECT id FROM boot").fetchall() != [(_boot(),)]:
                # Written without fsync under another boot: it cannot be known what reached the disk then.
                raise sqlite3.DatabaseError("of another version or boot")
        except BaseException:
            database.close()
            raise
        self._database = database

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def _select_packs(self) -> dict[int, bytes]:
        return dict(self._database.execute("SELECT number, id FROM pack"))

    def _read_packs(self, numbers: Iterable[int]) -> None:
        """Learn the names of packs when a block of theirs is found: there may be a million of them."""
        for number in numbers:
            for (pack,) in self._database.execute("SELECT id FROM pack WHERE number = ?", (number,)):
                self._packs[number] = pack

    def _delete_packs(self, gone: Sequence[tuple[bytes]]) -> None:
        if gone:
            with self._transaction() as database:
                database.executemany("DELETE FROM pack WHERE id = ?", gone)

    def _note_listed(self, prunes: Sequence[str], now: float) -> None:
        with self._transaction() as database:
            database.execute("DELETE FROM pruned")
            database.executemany("INSERT OR IGNORE INTO pruned VALUES (?)", [(name,) for name in prunes])
            database.execute("UPDATE boot SET listed = ?", (now,))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            yield database
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _insert(self, pack: bytes, entries: Iterable[PackEntry]) -> None:
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO pack (id) VALUES (?)", (pack,))
            (number,) = database.execute("SELECT number FROM pack WHERE id = ?", (pack,)).fetchone()
            rows = [
                (entry.id, number, entry.offset, entry.length, _checksum(entry.id, pack, entry.offset, entry.length))
                for entry in entries
            ]
            database.executemany("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?, ?)", rows)
        self._packs[number] = pack

    def _guarded(self, work: Callable[[], T], otherwise: T) -> T:
        """Do without the cache from the first failure on: blocks are then stored again, which is only slower."""
        if self._broken:
            return otherwise
        try:
            return work()
        except sqlite3.Error:
            self._broken = True
            with contextlib.suppress(sqlite3.Error, OSError):
                self._remove()
            return otherwise


_FIND = "SELECT id, pack, offset, length, checksum FROM block WHERE id IN ("


def _checksum(id_: bytes, pack: bytes, offset: int, length: int) -> int:
    return zlib.crc32(b"%b%b%d %d" % (id_, pack, offset, length))


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"
