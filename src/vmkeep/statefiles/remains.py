"""State in libvirt's directories that may belong to nobody: looked at, and deleted, by descriptors and single names.

The directories belong to QEMU's and swtpm's users, who can put anything in the way at any time: a link, a pipe, a
million files. So no link is followed below the root, nothing is opened but regular files and directories, and there is
a limit to everything. What is deleted is what was seen, name by name; what came since stays, and is told.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from vmkeep.custody.orphans import Entry, Orphan, OrphanFile
from vmkeep.errors import VmBusy
from vmkeep.paths import open_directory, reopen
from vmkeep.statefiles.capture import LIMIT_BYTES
from vmkeep.values import dataclass

MOST_ENTRIES: Final = 10_000
"""Of a directory of state; libvirt has one for each VM."""
_MOST_FILES: Final = 32
_DEEPEST: Final = 2
"""UUID/tpm2/tpm2-00.permall; a directory that a definition names has its file one higher."""
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK: Final = ".lock"
Kind = Literal["tpm", "nvram"]


def entries_of(root: Path) -> tuple[Entry, ...]:
    """Return the regular files and the directories in a directory of state; none where it is not there.

    Raises OSError, ForeignLink for a link of another user on the way, and TooManyNames for more than MOST_ENTRIES.
    """
    try:
        folder = open_directory(root)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    found: list[Entry] = []
    try:
        for name in _names(folder, MOST_ENTRIES):
            with suppress(FileNotFoundError):
                about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
                    found.append(Entry(name, (about.st_dev, about.st_ino), stat.S_ISDIR(about.st_mode)))
    finally:
        os.close(folder)
    return tuple(found)


def inventory(root: Path, name: str, kind: Kind, *, contents: bool = True) -> Orphan | None:
    """Return what lies at a name of a directory of state, with hashes of the contents; None when nothing does.

    Raises OSError. Nothing is waited for, and nothing is read that is larger than such state can be.
    """
    with _opened(root) as folder:
        try:
            place = os.open(name, _PLACE, dir_fd=folder)
        except FileNotFoundError:
            return None
        try:
            about = os.fstat(place)
            look = _Look(kind, contents)
            if kind == "nvram":
                look.file("", place, about)
            elif stat.S_ISDIR(about.st_mode):
                look.folder("", place, about, 1)
            else:
                return None
        finally:
            os.close(place)
    return Orphan(
        kind,
        str(root / name),
        name if kind == "tpm" else "",
        tuple(look.files),
        tuple(look.folders),
        tuple(look.strange),
        look.in_use,
    )


class _Look:
    """What is found at a place, and below it."""

    def __init__(self, kind: Kind, contents: bool) -> None:
        self.files: list[OrphanFile] = []
        self.folders: list[tuple[str, str]] = []
        self.strange: list[str] = []
        self.in_use = False
        self._kind, self._contents = kind, contents

    def folder(self, name: str, place: int, about: os.stat_result, depth: int) -> None:
        self.folders.append((name, _identity(about)))
        folder = os.open(".", _FOLDER, dir_fd=place)
        try:
            for inner in sorted(_names(folder, _MOST_FILES)):
                self._inner(folder, inner, f"{name}/{inner}" if name else inner, depth)
        except TooManyNames:
            self.strange.append(f"{name or 'it'} holds more than {_MOST_FILES} files")
        finally:
            os.close(folder)

    def _inner(self, folder: int, inner: str, name: str, depth: int) -> None:
        try:
            place = os.open(inner, _PLACE, dir_fd=folder)
        except FileNotFoundError:
            return
        try:
            about = os.fstat(place)
            if stat.S_ISREG(about.st_mode):
                self.file(name, place, about)
                self.in_use = self.in_use or (inner == _LOCK and _is_locked(place))
            elif stat.S_ISDIR(about.st_mode) and depth < _DEEPEST:
                self.folder(name, place, about, depth + 1)
            else:
                self.strange.append(f"{name} is a {_word(about)}")
        finally:
            os.close(place)

    def file(self, name: str, place: int, about: os.stat_result) -> None:
        if not stat.S_ISREG(about.st_mode):
            self.strange.append(f"it is a {_word(about)}")
            return
        sha256 = problem = None
        if self._contents:
            try:
                sha256 = _hash(place, LIMIT_BYTES[self._kind])
            except OSError as error:
                problem = error.strerror or str(error)
            if sha256 is None and problem is None:
                problem = f"it has more than the {LIMIT_BYTES[self._kind]} bytes that it can have"
        modified = _time_text(about.st_mtime)
        self.files.append(OrphanFile(name, about.st_size, modified, _mark(about), sha256, problem))


# -- deletion ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Removed:
    """``paths`` are gone; ``left`` are sentences about what is not."""

    paths: tuple[str, ...]
    left: tuple[str, ...]


def delete(orphan: Orphan, *, folders: bool = True) -> Removed:
    """Delete what was found, name by name, as long as each is what it was; what is not, or came since, stays.
    ``folders`` False leaves the directories.

    A kill in between leaves less of it, which is found again. Raises OSError when it cannot be begun, VmBusy when a
    swtpm works there.
    """
    path = Path(orphan.path)
    gone: list[str] = []
    left: list[str] = []
    with ExitStack() as stack:
        root = stack.enter_context(_opened(path.parent))
        if orphan.kind == "nvram":
            _remove_files(orphan, "", root, path.name, gone, left)
            os.fsync(root)
            return Removed(tuple(gone), tuple(left))
        opened = {"": (root, path.name)}
        descriptors: dict[str, int] = {}
        for name, identity in orphan.folders:
            above, inner = opened[name] if name == "" else (descriptors[_above(name)], Path(name).name)
            try:
                descriptor = os.open(inner, _FOLDER, dir_fd=above)
            except OSError as error:
                return Removed((), (f"{path / name}: {error.strerror}",))
            stack.callback(os.close, descriptor)
            if _identity(os.fstat(descriptor)) != identity:
                return Removed((), (f"{path / name} is another directory than before",))
            descriptors[name] = descriptor
            stack.enter_context(_kept_from_swtpm(descriptor, path / name))
        for name in reversed(descriptors):
            _remove_files(orphan, name, descriptors[name], None, gone, left)
            above, inner = opened[name] if name == "" else (descriptors[_above(name)], Path(name).name)
            place = path / name if name else path
            try:
                os.fsync(descriptors[name])
                if not folders:
                    continue
                os.rmdir(inner, dir_fd=above)
            except OSError as error:
                left.append(f"{place}: {error.strerror}")
            else:
                gone.append(str(place))
        os.fsync(root)
    return Removed(tuple(gone), tuple(left))


def _remove_files(
    orphan: Orphan, within: str, folder: int, alone: str | None, gone: list[str], left: list[str]
) -> None:
    """Unlink the files of one folder; ``alone`` is the name of an orphan that is one file."""
    # swtpm's lock goes last: while it is there and locked, no swtpm begins.
    files = sorted(orphan.files, key=lambda file: Path(file.name).name == _LOCK)
    for file in files:
        if alone is None and _above(file.name) != within:
            continue
        place = orphan.place_of(file)
        name = alone or Path(file.name).name
        try:
            if _mark(os.stat(name, dir_fd=folder, follow_symlinks=False)) != file.mark:
                left.append(f"{place} has changed meanwhile")
                continue
            os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            left.append(f"{place} is gone already")
        except OSError as error:
            left.append(f"{place}: {error.strerror}")
        else:
            gone.append(place)


@contextmanager
def _kept_from_swtpm(folder: int, path: Path) -> Iterator[None]:
    """Hold swtpm's own lock of a directory, if it has one. Raises VmBusy while a swtpm has it."""
    try:
        place = os.open(_LOCK, _PLACE, dir_fd=folder)
    except OSError:
        yield
        return
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            yield
            return
        lock = reopen(place, os.O_RDWR)
    finally:
        os.close(place)
    try:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise VmBusy(f"a swtpm works in {path}", path=str(path), hint="Nothing was deleted.") from error
        yield
    finally:
        os.close(lock)


# -- small things ------------------------------------------------------------------------------------------------


class TooManyNames(Exception):
    """There are more names than there may be."""


@contextmanager
def _opened(root: Path) -> Iterator[int]:
    folder = open_directory(root)
    try:
        yield folder
    finally:
        os.close(folder)


def _names(folder: int, most: int) -> list[str]:
    names: list[str] = []
    with os.scandir(folder) as scanned:
        for entry in scanned:
            if len(names) == most:
                raise TooManyNames
            names.append(entry.name)
    return names


def _above(name: str) -> str:
    return name.rpartition("/")[0]


def _hash(place: int, limit: int) -> str | None:
    """Return the hash of a regular file; None when it is longer than the limit."""
    with os.fdopen(reopen(place, os.O_RDONLY), "rb") as stream:
        content = stream.read(limit + 1)
    return hashlib.sha256(content).hexdigest() if len(content) <= limit else None


def _is_locked(place: int) -> bool:
    """Return whether a process has swtpm's lock."""
    try:
        descriptor = reopen(place, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _identity(about: os.stat_result) -> str:
    return f"{about.st_dev}:{about.st_ino}"


def _mark(about: os.stat_result) -> str:
    return f"{about.st_dev}:{about.st_ino}:{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}"


def _time_text(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return ""  # somebody set a time that is none


def _word(about: os.stat_result) -> str:
    for test, word in (
        (stat.S_ISLNK, "link"),
        (stat.S_ISDIR, "directory"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
    ):
        if test(about.st_mode):
            return word
    return "device"
