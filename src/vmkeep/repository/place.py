"""Whether the directory of a repository is still the one that was opened.

A file system that is unmounted leaves its mount point behind: an empty directory in which every object is missing, and
into which a writer would put what nobody finds again. Directories are told apart by device and inode; where these have
changed (a server that was mounted anew), the repository's own format object decides.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Final

from vmkeep.errors import RepositoryNotFound
from vmkeep.mounts import mount_of
from vmkeep.repository.layout import FORMAT_OBJECT

# What stat says of a place that is not there. Any other error is of the storage, and says nothing of where it is.
_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
_HINT: Final = (
    "Mount it again, and run the command again: what was interrupted is undone or finished then. Nothing was written "
    "to what is at its place now."
)


class Place:
    """The directory of a repository, as it was when it was opened. ``proof``: an object of it, by name and content."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proof: tuple[str, bytes] | None = None
        self._identity = _identity(directory)
        self._mount = mount_of(directory)

    def require(self, cause: BaseException | None = None) -> None:
        """Raise RepositoryNotFound, from ``cause``, when the directory is gone, or another one."""
        try:
            identity = _identity(self.directory)
        except OSError as error:
            if error.errno not in _GONE:
                return
            identity = None
        if identity == self._identity:
            return
        if identity is not None and self._is_proved():
            self._identity = identity
            return
        raise RepositoryNotFound(
            self._told(there=identity is not None), path=str(self.directory), hint=_HINT
        ) from cause

    def take_back(self, name: str) -> None:
        """Remove an object that was just put, and the directories made for it, from what is no repository."""
        if (self.directory / FORMAT_OBJECT).exists():
            return  # another one, which has objects of these names of its own
        path = self.directory / name
        for left in (path, *path.parent.glob(f"{path.name}#*")):
            with suppress(OSError):
                left.unlink()
        # A store makes every directory on the way. Below an empty mount point there was none before.
        unmounted = mount_of(self.directory) != self._mount
        highest = Path(self._mount) if unmounted else self.directory
        with suppress(OSError):
            for parent in path.parents:
                if parent == highest:
                    break
                parent.rmdir()

    def _is_proved(self) -> bool:
        if self.proof is None:
            return False
        name, content = self.proof
        try:
            return (self.directory / name).read_bytes() == content
        except OSError:
            return False

    def _told(self, *, there: bool) -> str:
        text = f"the repository is not at {self.directory} any more"
        mount = mount_of(self.directory)
        if mount != self._mount:
            return f"{text}: the file system that was mounted at {self._mount} is gone"
        if not there:
            return f"{text}: the directory, on the file system mounted at {mount}, is gone"
        return f"{text}: another directory is in its place, on what is mounted at {mount}"


def _identity(directory: Path) -> tuple[int, int]:
    about = directory.stat()
    return about.st_dev, about.st_ino
