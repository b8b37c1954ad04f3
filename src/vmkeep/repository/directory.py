"""A repository's directory, written by descriptors: no link in it is followed, and nothing of it is taken on trust.

Who owns the storage may not be who runs vmkeep. A link in the place of a folder would have root make, open and remove
files in any other one, so each folder is opened by its own name in the one above it. The way to the directory itself is
the host's: links of root and of this user lead there, those of others do not (docs/adr/0027).

A pack is read again at a restore, not soon. Through the page cache it costs the copy into it (0.4 s of processor time a
GB, and ten times that where the machine's memory is given to it at the first touch), and pushes out what the host's
guests have there. Written with O_DIRECT it costs neither, and what is left for fsync is little (docs/performance.md).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import RepositoryForeign
from vmkeep.filesystem import PAGE_BYTES, aligned_buffer, write_all
from vmkeep.paths import open_directory, open_place
from vmkeep.repository.layout import FOLDERS, PACKS, Buffer

LARGE_BYTES: Final = 1 << 20
"""From here on an object is worth it; a smaller one is written through the page cache."""
_BOUNCE_BYTES: Final = 1 << 20
# What a file system says that has no O_DIRECT (older tmpfs, some FUSE), or wants more alignment.
_UNABLE: Final = {22, 95}
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Directory:
    """The directory of a repository, and what is written there. Names are those of objects: ``packs/ab/...``.

    Everything here raises OSError as the system does, and RepositoryForeign for a folder that is a link.
    """

    def __init__(self, top: Path) -> None:
        self.top = top

    def refuse_links(self) -> None:
        """Raise RepositoryForeign when a folder is a link, and ForeignLink when one of another user leads here."""
        os.close(open_place(self.top))
        for name in FOLDERS:
            folder = self.top / name.rstrip("/")
            if folder.is_symlink():
                raise self._link(folder)
        self.refuse_links_below(PACKS)

    def refuse_links_below(self, prefix: str) -> None:
        """Raise RepositoryForeign when a folder is a link, or holds one to a folder: a list would go through it."""
        folder = self.top / prefix.rstrip("/")
        if folder.is_symlink():
            raise self._link(folder)
        with suppress(OSError), os.scandir(folder) as entries:  # what stands in the way is told by the list itself
            for entry in entries:
                if entry.is_symlink() and entry.is_dir():
                    raise self._link(Path(entry.path))

    def put(self, name: str, pieces: Sequence[Buffer], *, replace: bool) -> None:
        """Make an object (0600) of the pieces, in folders (0700) that are made as well. It is not durable yet.

        It is written beside and then named, so under its name it is whole. Raises FileExistsError for a name that is
        taken, unless ``replace``.
        """
        with self._staged(name, 0) as (folder, staged, handle):
            place = 0
            for piece in pieces:
                write_all(handle, memoryview(piece), place)
                place += len(piece)
            last = Path(name).name
            if replace:
                os.fsync(handle)  # until then what is there is the only copy
                os.rename(staged, last, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                os.link(staged, last, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)

    def put_past_cache(self, name: str, pieces: Sequence[Buffer]) -> bool:
        """Do as ``put`` past the page cache; return False, with nothing made, where that cannot be done.

        The first piece begins an ``aligned_buffer``.
        """
        try:
            with self._staged(name, os.O_DIRECT) as (folder, staged, handle):
                _write_direct(handle, pieces)
                os.link(staged, Path(name).name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno in _UNABLE:
                return False
            raise
        return True

    def make_durable(self, name: str) -> None:
        """Sync an object and its name to the disk."""
        with self._folder(name) as folder:
            handle = os.open(Path(name).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.fsync(folder)

    def remove(self, name: str) -> None:
        """Remove an object, durably."""
        with self._folder(name) as folder:
            os.unlink(Path(name).name, dir_fd=folder)
            os.fsync(folder)

    def remove_all(self, names: Sequence[str]) -> None:
        """Remove objects that may be gone, durably; each folder is synced once."""
        folders: dict[str, list[str]] = {}
        for name in names:
            folders.setdefault(str(Path(name).parent), []).append(name)
        for inside in folders.values():
            with suppress(FileNotFoundError), self._folder(inside[0]) as folder:
                for name in inside:
                    with suppress(FileNotFoundError):
                        os.unlink(Path(name).name, dir_fd=folder)
                os.fsync(folder)

    def probe(self, name: str) -> os.stat_result:
        """Return what is told of a new file, which is gone again; of the directory, where none may be made."""
        with self._folder(name) as folder:
            try:
                handle = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
            except OSError:
                return os.fstat(folder)
            try:
                return os.fstat(handle)
            finally:
                os.close(handle)
                os.unlink(name, dir_fd=folder)

    def protect(self) -> None:
        """Let only the owner into the directory."""
        top = open_directory(self.top)
        try:
            os.fchmod(top, 0o700)
        finally:
            os.close(top)

    @contextmanager
    def _staged(self, name: str, flags: int) -> Iterator[tuple[int, str, int]]:
        """Yield a folder, and name and descriptor of a new file there, which has lost that name afterwards."""
        with self._folder(name, make=True) as folder:
            # One that a killed process left keeps its name until somebody has made sure that nobody writes it.
            for number in count(1):
                staged = f"{Path(name).name}#{number}"
                with suppress(FileExistsError):
                    handle = os.open(staged, _NEW_FILE | flags, 0o600, dir_fd=folder)
                    break
            try:
                try:
                    yield folder, staged, handle
                finally:
                    os.close(handle)
            finally:
                with suppress(OSError):
                    os.unlink(staged, dir_fd=folder)

    @contextmanager
    def _folder(self, name: str, *, make: bool = False) -> Iterator[int]:
        """Yield the folder of an object; ``make`` those that are not there."""
        here, path = open_directory(self.top), self.top
        try:
            for part in name.split("/")[:-1]:
                path /= part
                below = self._below(here, path, make=make)
                os.close(here)
                here = below
            yield here
        finally:
            os.close(here)

    def _below(self, here: int, path: Path, *, make: bool) -> int:
        try:
            return os.open(path.name, _FOLDER, dir_fd=here)
        except FileNotFoundError:
            if not make:
                raise
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and _is_link(path.name, here):
                raise self._link(path) from error
            raise
        made = False
        with suppress(FileExistsError):  # another process may make it at the same time
            os.mkdir(path.name, 0o700, dir_fd=here)
            made = True
        below = self._below(here, path, make=False)
        if made:
            try:
                os.fchmod(below, 0o700)  # whatever the umask is
                os.fsync(here)
            except BaseException:
                os.close(below)
                raise
        return below

    def _link(self, path: Path) -> RepositoryForeign:
        target = str(path.readlink()) if path.is_symlink() else "another folder"
        remedy = command_line("mount --bind", target, path)
        return RepositoryForeign(
            f"{path} is a link to {target}, and no folder of a repository may be one",
            path=str(path),
            hint="Nothing was read or written through it: who owns the storage may have made it. If you did, put an "
            f"empty folder in its place and mount the other one there: {remedy}",
        )


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _write_direct(handle: int, pieces: Sequence[Buffer]) -> None:
    """Write whole pages of the first piece from where they lie, and the rest through memory that is aligned."""
    first = memoryview(pieces[0])
    whole = len(first) // PAGE_BYTES * PAGE_BYTES
    write_all(handle, first[:whole], 0)
    rest = b"".join([first[whole:], *pieces[1:]])
    # Not closed but let go: after a write that fails, its traceback still holds a view of it.
    bounce = aligned_buffer(_BOUNCE_BYTES)
    for at in range(0, len(rest), _BOUNCE_BYTES):
        part = rest[at : at + _BOUNCE_BYTES]
        bounce[: len(part)] = part
        length = -(-len(part) // PAGE_BYTES) * PAGE_BYTES
        write_all(handle, memoryview(bounce)[:length], whole + at)
    os.ftruncate(handle, whole + len(rest))
