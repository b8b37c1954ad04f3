"""When each pack of a repository was last read and proved by this installation: a file of SQLite beside its caches.

What it says decides only what is read first. So it is no loss when it is lost, or made anew because it is damaged:
then everything counts as unread. One that was written before the machine went down may know a little less.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from vmkeep.filesystem import make_directory, make_private_file
from vmkeep.planning.rota import GOAL, Coverage
from vmkeep.sqlite import sqlite_error

_SCHEMA: Final = 1
_TABLES: Final = f"""
CREATE TABLE pack (id BLOB PRIMARY KEY, size INTEGER NOT NULL, at INTEGER NOT NULL, bad TEXT) WITHOUT ROWID;
CREATE INDEX pack_at ON pack (at);
CREATE TABLE point (id TEXT PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE run (at INTEGER NOT NULL);
PRAGMA user_version = {_SCHEMA};
"""
_WHAT: Final = "the record of what was verified"
_MOST_WORDS: Final = 500


class Proofs:
    """The record; for one thread, and any number of processes. Use it with ``with``."""

    def __init__(self, path: Path) -> None:
        """Open or make it. Raises NoSpace, PermissionRefused and what else a file of SQLite may meet."""
        self._path = path
        try:
            make_directory(path.parent.parent)
            make_directory(path.parent)
            try:
                self._database = _opened(path)
            except sqlite3.DatabaseError:
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
                self._database = _opened(path)
        except (sqlite3.Error, OSError) as error:
            raise sqlite_error(error, path, _WHAT) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(sqlite3.Error):
            self._database.close()

    def meet(self, packs: Mapping[bytes, int], points: frozenset[str]) -> None:
        """Take in what the repository holds now: packs with their sizes, and points. What is gone is forgotten."""
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                known = {row[0] for row in self._database.execute("SELECT id FROM pack")}
                self._database.executemany("DELETE FROM pack WHERE id = ?", ((pack,) for pack in known - packs.keys()))
                new = ((pack, size) for pack, size in packs.items() if pack not in known)
                self._database.executemany("INSERT INTO pack VALUES (?, ?, 0, NULL)", new)
                walked = {row[0] for row in self._database.execute("SELECT id FROM point")}
                self._database.executemany("DELETE FROM point WHERE id = ?", ((each,) for each in walked - points))
                self._database.executemany("INSERT INTO point VALUES (?, 0)", ((each,) for each in points - walked))
        except sqlite3.Error as error:
            raise sqlite_error(error, self._path, _WHAT) from error

    def packs(self, *, bad: bool) -> Iterator[bytes]:
        """Yield the packs that were not sound, or the others: those first that were longest not read."""
        query = "bad IS NOT NULL" if bad else "bad IS NULL"
        yield from (row[0] for row in self._rows(f"SELECT id FROM pack WHERE {query} ORDER BY at, id"))  # noqa: S608

    def points(self) -> Iterator[str]:
        """Yield all points, those first whose manifests were longest not read."""
        yield from (row[0] for row in self._rows("SELECT id FROM point ORDER BY at, id"))

    def note_pack(self, pack: bytes, bad: str | None) -> None:
        """Say that a pack was read just now, and what was wrong with it."""
        words = None if bad is None else bad[:_MOST_WORDS]
        self._note("UPDATE pack SET at = ?, bad = ? WHERE id = ?", (int(time.time()), words, pack))

    def note_point(self, point_id: str) -> None:
        """Say that all manifests of a point were read just now."""
        self._note("UPDATE point SET at = ? WHERE id = ?", (int(time.time()), point_id))

    def end_run(self) -> None:
        """Say that a run has ended."""
        self._note("INSERT INTO run VALUES (?)", (int(time.time()),))
        self._note("DELETE FROM run WHERE at < (SELECT max(at) FROM run)", ())

    def coverage(self) -> Coverage | None:
        """Return how far it has come, as of the last run; None before one has ended."""
        (ended,) = self._rows("SELECT max(at) FROM run")[0]
        if ended is None:
            return None
        since = int(time.time() - GOAL.total_seconds())
        packs, size, oldest, unread, bad = self._rows(
            "SELECT count(*), coalesce(sum(size), 0), min(at), coalesce(sum(at = 0), 0), count(bad) FROM pack"
        )[0]
        proved, proved_bytes = self._rows(
            "SELECT count(*), coalesce(sum(size), 0) FROM pack WHERE bad IS NULL AND at >= ?", (since,)
        )[0]
        return Coverage(
            at=datetime.fromtimestamp(ended, UTC),
            packs=packs,
            size_bytes=size,
            proved=proved,
            proved_bytes=proved_bytes,
            unread=unread,
            bad=bad,
            oldest=datetime.fromtimestamp(oldest, UTC) if oldest else None,
        )

    def _rows(self, query: str, values: tuple[int, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise sqlite_error(error, self._path, _WHAT) from error

    def _note(self, query: str, values: tuple[object, ...]) -> None:
        try:
            self._database.execute(query, values)
        except sqlite3.Error as error:
            raise sqlite_error(error, self._path, _WHAT) from error


def proofs_path(cache: Path, repository: str) -> Path:
    """Return where the record lies of what was verified of a repository."""
    return cache / repository / "proofs.sqlite"


def read_coverage(path: Path) -> Coverage | None:
    """Return how far verification has come, by the record at a path; None where none is there. Raises as ``Proofs``."""
    if not path.is_file():
        return None
    with Proofs(path) as proofs:
        return proofs.coverage()


def _opened(path: Path) -> sqlite3.Connection:
    make_private_file(path)  # SQLite gives its journal the same mode
    database = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        # A run that ends with the machine may have proved a little more than is known afterwards.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("BEGIN IMMEDIATE")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
        elif version != _SCHEMA:
            raise sqlite3.DatabaseError("of another version")
        database.execute("COMMIT")
    except BaseException:
        database.close()
        raise
    return database
