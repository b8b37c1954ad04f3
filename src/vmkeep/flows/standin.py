"""A home for one command, where the real one cannot be written: a copy of the catalogue, and room for a flow's record.

SQLite reads a database with a write-ahead log only where it may make its shared memory beside it, or finds one there;
``immutable=1`` needs neither and leaves out what is in the log, which are the newest commits (tried with 3.40). So the
catalogue is read from a copy: database and log are copied to a private directory, where SQLite recovers the log as
after a crash. A copy during which either file changed is made again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from vmkeep.config import Settings
from vmkeep.errors import CatalogError, VmkeepError
from vmkeep.filesystem import OF_STORAGE, file_error, require_room
from vmkeep.ownership import exposures
from vmkeep.sqlite import ROOM_BYTES

_PREFIX: Final = "vmkeep-home-"
_ATTEMPTS: Final = 20
_MAKING_SECONDS: Final = 2.0
_LOG: Final = "-wal"


class StandIn:
    """A private directory (0700) that ends with ``close``; one whose process was killed goes with the next one."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        self.directory = directory
        self._descriptor = descriptor

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Copy the catalogue of a home to the first place that has room for it.

        Raises what reading the catalogue raises, and else the error of the last place.
        """
        needed = ROOM_BYTES + sum(size for size, _ in _state(settings.catalog_path).values())
        failure: VmkeepError | None = None
        for parent in _places(settings):
            try:
                require_room(parent, needed)
                made = cls._make(parent)
            except OF_STORAGE as error:
                failure = failure or error
                continue
            try:
                _copy(settings.catalog_path, made.directory)
            except BaseException:
                made.close()
                raise
            return made
        assert failure is not None, "there is no place for a private directory"
        raise failure

    @property
    def catalog_path(self) -> Path:
        return self.directory / "catalog.sqlite"

    def close(self) -> None:
        """Remove the directory."""
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._descriptor)

    @classmethod
    def _make(cls, parent: Path) -> Self:
        _remove_abandoned(parent)
        try:
            directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise file_error(error, parent) from error
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return cls(directory, descriptor)


def _places(settings: Settings) -> Iterator[Path]:
    """Yield the directories that may hold it: memory first, because the host's next start empties it."""
    # What anybody may write to is safe where it is sticky: mkdtemp draws the name and makes the directory 0700.
    wanted = [settings.run_dir.parent, Path("/dev/shm")]  # noqa: S108
    with suppress(FileNotFoundError):  # all of them are full
        wanted.append(Path(tempfile.gettempdir()))
    wanted.append(Path("/var/tmp"))  # noqa: S108
    for place in dict.fromkeys(wanted):
        # The directory is a home of its own: where others could exchange it, it would be refused.
        if place.is_dir() and place != settings.home and not exposures(place / _PREFIX):
            yield place


def _copy(catalog: Path, directory: Path) -> None:
    """Copy the database and its log as they are at one moment. Raises StoreError and the like with the file's path."""
    for _ in range(_ATTEMPTS):
        before = _state(catalog)
        for path in before:
            target = directory / path.name
            with suppress(FileNotFoundError):  # the log of a process that ended just now
                try:
                    shutil.copyfile(path, target)
                    target.chmod(0o600)
                except FileNotFoundError:
                    target.unlink(missing_ok=True)
                except OSError as error:
                    raise file_error(error, path, "read") from error
        if _state(catalog) == before:
            return
        for path in before:
            (directory / path.name).unlink(missing_ok=True)
    raise CatalogError(
        f"The catalogue {catalog} changes all the time, so no copy of it could be made", path=str(catalog)
    )


def _state(catalog: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of change of the database and of its log, of those that are there."""
    found = {}
    for path in (catalog, catalog.with_name(catalog.name + _LOG)):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise file_error(error, path, "read") from error
        found[path] = (about.st_size, about.st_mtime_ns)
    return found


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of processes of this user that are dead: their lock is free."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                about = os.fstat(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # One that was made just now may not be locked yet.
                if about.st_uid == os.geteuid() and abs(time.time() - about.st_mtime) > _MAKING_SECONDS:
                    shutil.rmtree(directory, ignore_errors=True)
            finally:
                os.close(descriptor)
