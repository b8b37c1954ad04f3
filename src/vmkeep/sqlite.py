"""What an error of SQLite means to a user: which file, what of the system is behind it, and what to do.

SQLite tells of the system's error by a kind ("disk I/O error", SQLITE_IOERR_SHMSIZE); the errno itself is not to be
had from Python. So the directory is tried the same way: the answer is what the next attempt would meet as well. A file
is called damaged only when SQLite's own check says so of what can be read (`PRAGMA quick_check`).
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from vmkeep.errors import (
    CatalogDamaged,
    CatalogError,
    HostExhausted,
    NoSpace,
    PermissionRefused,
    StoreError,
    VmkeepError,
)
from vmkeep.filesystem import OF_STORAGE, file_error, require_room

ROOM_BYTES: Final = 1 << 20
"""More than the shared memory of a write-ahead log takes (32 KiB), and than most transactions do."""
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_REFUSED: Final = (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY)
_OF_SYSTEM: Final = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL, *_REFUSED)
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_READING: Final = frozenset({"SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS"})


def sqlite_error(error: BaseException, path: Path, name: str, *, copy: Path | None = None) -> VmkeepError:
    """Return the one error that a failure of a database file means.

    ``error`` is sqlite3's or the system's own. ``name`` is what the file is to people: "the catalogue". ``copy`` is the
    file that was opened in place of the one at ``path``.
    """
    where = str(path)
    if isinstance(error, OSError):
        return _named(file_error(error, path, "used"), name, path)
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_NOMEM or isinstance(error, MemoryError):
        return _named(file_error(OSError(12, "Cannot allocate memory"), path, "used"), name, path)
    if primary in _BUSY:
        hint = "Wait for the other command to end, or end it if it was stopped, and run this one again."
        return CatalogError(f"{name} {path} is in use by another process for too long", path=where, hint=hint)
    if primary in _DAMAGED:
        faults = quick_check(copy or path)
        if faults:
            return CatalogDamaged(f"{name} {path} is damaged: {faults[0]}", path=where)
        # Wrong when it was read first and right the second time, or not to be read at all: nothing is proved.
        again = "read again it is sound" if faults == () else "it could not be read again"
        return StoreError(f"{name} {path} could not be read: {error}; {again}", path=where)
    if primary not in _OF_SYSTEM:
        return CatalogError(f"{name} {path} failed: {error}", path=where)
    cause = _cause(path)
    if cause is not None and getattr(error, "sqlite_errorname", "") not in _READING:
        return _named(cause, name, path)
    if primary == sqlite3.SQLITE_FULL:
        return NoSpace(f"{name} {path} cannot grow: its file system is full", path=where)
    if primary in (*_REFUSED, sqlite3.SQLITE_CANTOPEN):
        return PermissionRefused(f"{name} {path} cannot be opened or written: {error}", path=where)
    return StoreError(f"the storage of {name} {path} failed: {error}", path=where)


def raised_within(error: BaseException) -> VmkeepError | None:
    """Return the error of ours, raised by a signal, that SQLAlchemy took for the failure of its statement."""
    wrapped = getattr(error, "orig", None)
    return wrapped if isinstance(wrapped, VmkeepError) else None


def quick_check(path: Path) -> tuple[str, ...] | None:
    """Return what SQLite finds wrong with a file; None for one that cannot be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            told = database.execute("PRAGMA quick_check").fetchall()
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return (str(error),) if code in _DAMAGED else None
    return tuple(str(fault) for (fault,) in told if fault != "ok")


def _cause(path: Path) -> VmkeepError | None:
    """Return what the system says when the file is opened and something is written beside it; None when all goes."""
    try:
        if path.exists():
            with path.open("r+b"):
                pass
        require_room(path.parent, ROOM_BYTES)
    except OSError as error:
        return file_error(error, path, "used")
    except (*OF_STORAGE, HostExhausted) as error:
        return error
    return None


def _named(error: VmkeepError, name: str, path: Path) -> VmkeepError:
    return type(error)(f"{name} {path} cannot be used: {error.message}", path=str(path), hint=error.hint)
