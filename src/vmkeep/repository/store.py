"""Objects in a store: durable puts, reads, lists, and the one place where a directory's errors are translated.

Into a directory objects are put by ``vmkeep.repository.directory``: obstore's directory store does not call fsync,
creates files with the umask's permissions and follows links (0.12). A bucket is the matter of
``vmkeep.repository.bucket``, which is imported when the location is one.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PermissionDeniedError
from obstore.store import LocalStore
from obstore.store import ObjectStore as ForeignStore

from vmkeep.errors import (
    InvalidRequest,
    NoSpace,
    ObjectDamaged,
    ObjectMissing,
    PermissionRefused,
    RepositoryNotFound,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.filesystem import file_error, sync_directory
from vmkeep.mounts import mount_of
from vmkeep.paths import ForeignLink, make_directories
from vmkeep.rates import count_stored, pass_stored
from vmkeep.repository.answers import under_way
from vmkeep.repository.directory import LARGE_BYTES, Directory
from vmkeep.repository.layout import SMALL_BYTES_LIMIT, Buffer
from vmkeep.repository.place import Place
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.buckets import BucketAccess

_OS_ERROR = re.compile(r"os error (\d+)")
_FULL = {28, 122}
# An object is written as NAME#1 first, and gets its name when it is whole.
_STAGED = re.compile(r"#[0-9]+$")
_REFUSED = {1, 13, 30}
_OF_HOST = {errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.EROFS}


@dataclass(frozen=True, slots=True)
class ObjectStat:
    name: str
    size_bytes: int
    modified: datetime


class ObjectStore:
    """A store of immutable objects. ``directory`` is set when it is one on this host, which is then fsynced."""

    def __init__(self, store: ForeignStore, *, location: str, directory: Path | None = None) -> None:
        self._store = store
        self.location = location
        self.directory = directory
        self._place = None if directory is None else Place(directory)
        self._folders = None if directory is None else Directory(directory)
        self._past_cache = True

    def put(
        self, name: str, content: Buffer | Sequence[Buffer], *, replace: bool = False, durable: bool = True
    ) -> None:
        """Store an object. Raises TargetExists unless ``replace``, NoSpace, PermissionRefused or StoreError.

        Without ``durable`` it is only on its way to the disk when this returns, and ``make_durable`` is owed.
        """
        assert self._folders is not None
        pieces = [content] if isinstance(content, bytes | bytearray | memoryview) else list(content)
        count_stored(sum(map(len, pieces)))
        with self._writing(name):
            self._folders.put(name, pieces, replace=replace)
            if durable:
                self._folders.make_durable(name)

    def put_pack(self, name: str, pieces: Sequence[Buffer]) -> None:
        """Store a pack, whose first piece begins an ``aligned_buffer``; ``make_durable`` is owed for it.

        Raises what ``put`` does.
        """
        if self._folders is not None and self._past_cache and len(pieces[0]) >= LARGE_BYTES:
            pass_stored(sum(map(len, pieces)))
            with self._writing(name):
                if self._folders.put_past_cache(name, pieces):
                    return
            self._past_cache = False
        pass_stored(0)  # what is put is counted there
        self.put(name, pieces, durable=False)

    def make_durable(self, name: str) -> None:
        """Return when an object that was put without ``durable`` is on the disk."""
        if self._folders is not None:
            with self._writing(name):
                self._folders.make_durable(name)

    def renew(self, name: str, content: bytes) -> datetime:
        """Put an object in the place of itself, and return when that was, by the store's time.

        ``content`` differs from what was there, if by a number alone. Raises what ``put`` does, and StoreError when the
        store goes on telling of what was there before.
        """
        self.put(name, content, replace=True)
        return self.stat(name).modified

    def is_kept(self, name: str, content: bytes) -> bool:
        """Return whether an object that was just put without ``replace`` is there as it was put.

        False where the store let another put the same name at the same time. Raises what ``get`` does.
        """
        return self.get(name) == content

    def get(self, name: str, *, most_bytes: int = SMALL_BYTES_LIMIT) -> bytes:
        """Return a whole object; raises ObjectMissing, PermissionRefused or StoreError.

        Raises ObjectDamaged, without reading it, for one that is larger than ``most_bytes``.
        """
        content = self._get(name, most_bytes)
        count_stored(len(content))
        return content

    def _get(self, name: str, most_bytes: int) -> bytes:
        with self._call(name):
            found = obstore.get(self._store, name)
            size_bytes = found.meta["size"]
            if size_bytes <= most_bytes:
                return bytes(found.bytes())
        raise ObjectDamaged(f"{name} has {size_bytes} bytes, and {most_bytes} is the most that it can have", path=name)

    def ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[memoryview]:
        """Return the bytes at each (start, length); raises ObjectDamaged when the object is shorter than that."""
        starts, lengths = [start for start, _ in ranges], [length for _, length in ranges]
        pass_stored(sum(lengths))
        try:
            pieces = self._get_ranges(name, starts, lengths)
        except StoreError as error:
            # Stores word a range beyond the end differently; the size tells it apart from a failure.
            if self.stat(name).size_bytes < max(start + length for start, length in ranges):
                raise ObjectDamaged(f"{name} is cut short", path=name) from error
            raise
        if any(len(piece) != length for piece, length in zip(pieces, lengths, strict=True)):
            raise ObjectDamaged(f"{name} is cut short", path=name)
        return pieces

    def _get_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        with self._call(name):
            found = obstore.get_ranges(self._store, name, starts=starts, lengths=lengths)
            return [memoryview(piece) for piece in found]

    def forget_cached(self, name: str) -> None:
        """Let the next read of an object come from the device again, as far as the host's page cache goes."""
        if self.directory is None:
            return
        with suppress(OSError):
            # What others put there in place of an object, a link or a pipe, is neither followed nor waited for.
            handle = os.open(self.directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)

    def stat(self, name: str) -> ObjectStat:
        """Raises ObjectMissing, PermissionRefused or StoreError."""
        with self._call(name):
            meta = obstore.head(self._store, name)
            return ObjectStat(name, meta["size"], meta["last_modified"])

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except ObjectMissing:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """Yield the objects below a prefix that ends with a slash, in no order."""
        with self._call(prefix):
            if self._folders is not None:
                self._folders.refuse_links_below(prefix)
            batches = iter(obstore.list(self._store, prefix=prefix.rstrip("/"), chunk_size=1000))
        while True:
            # What the caller does in between is no part of the call.
            with self._call(prefix):
                batch = next(batches, None)
            if batch is None:
                return
            for meta in batch:
                yield ObjectStat(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, name: str) -> None:
        """Raises ObjectMissing (not every store can tell), PermissionRefused or StoreError."""
        with self._writing(name, puts=False):
            assert self._folders is not None
            self._folders.remove(name)

    def delete_all(self, names: Sequence[str]) -> None:
        """Delete objects, as many at once as the store can; what is not there is fine. Raises what ``delete`` does."""
        if names:
            with self._writing(names[0], puts=False):
                assert self._folders is not None
                self._folders.remove_all(names)

    def free_bytes(self) -> int | None:
        """Return what may be written yet, as the file system of a directory says it; None where nothing says it."""
        if self.directory is None:
            return None
        with self._call(""):
            about = os.statvfs(self.directory)
        return about.f_bavail * about.f_frsize

    def names(self) -> set[str]:
        """Return what lies at the top, whether it is an object or not, without lost+found."""
        with self._call(""):
            return {path.name for path in Path(self.location).iterdir()} - {"lost+found"}

    def unfinished(self) -> bool:
        """Return whether there is at most what a repository begins with: a keyring, and no format."""
        with self._call(""):
            found = {str(path.relative_to(self.location)) for path in Path(self.location).rglob("*")}
        beginnings = {"keyring", "keyring/0000000001", "lost+found"}
        return all(_STAGED.sub("", name) in beginnings | {"format"} and name != "format" for name in found)

    def staged(self) -> dict[Path, datetime]:
        """Return the files of puts that have not ended, with the store's time of their last write."""
        if self.directory is None:
            return {}
        with self._call(""):
            found = {path: _staged_at(path) for path in self.directory.rglob("*#*")}
        return {path: written for path, written in found.items() if written is not None}

    def remove_staged(self, path: Path) -> None:
        """Remove what ``staged`` has told of."""
        assert self._folders is not None
        with self._writing(path.name, puts=False), suppress(FileNotFoundError):
            self._folders.remove(str(path.relative_to(self.location)))

    def now(self) -> datetime:
        """Return the time of a directory's storage, which may be another machine's with a clock of its own.

        A new file shows it. Where none may be made, the directory's last change is what is surely past: nothing is
        taken for older than it is.
        """
        assert self._folders is not None
        with self._call(""):
            return _changed(self._folders.probe(f"time-{secrets.token_hex(4)}#1"))

    def absence(self) -> RepositoryNotFound:
        """Return the error that says that there is no repository here."""
        mount = mount_of(Path(self.location))
        message = f"there is no repository at {self.location}, which is on the file system mounted at {mount}"
        return RepositoryNotFound(message, path=self.location)

    def protect(self) -> None:
        """Let only the owner into a directory store; for one that was made here or was empty."""
        if self._folders is not None:
            with self._call(""):
                self._folders.protect()

    def recognise(self, name: str, content: bytes) -> None:
        """Let an object tell this repository from what else may come to be at its place: its format object."""
        if self._place is not None:
            self._place.proof = (name, content)

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        """Translate the errors of one call. An object is called missing only while the repository is there."""
        try:
            with _translated(self.location, name):
                yield
        except (ObjectMissing, StoreError) as error:
            if self._place is not None:
                with under_way(self.location):
                    self._place.require(error)
            raise

    @contextmanager
    def _writing(self, name: str, *, puts: bool = True) -> Iterator[None]:
        """The same for a call that writes: never to what is at the place of a repository that is gone.

        What came there between two looks is taken back, when the call ``puts`` something.
        """
        if self._place is None:
            with self._call(name):
                yield
            return
        with under_way(self.location):
            self._place.require()
        try:
            with self._call(name):
                yield
            with under_way(self.location):
                self._place.require()
        except RepositoryNotFound:
            if puts:
                self._place.take_back(name)
            raise


def _staged_at(path: Path) -> datetime | None:
    """Return when a staged file was last written; None for one that is gone, or is none."""
    try:
        about = path.lstat()
    except FileNotFoundError:
        return None  # its put has ended
    return _changed(about) if _STAGED.search(path.name) and stat.S_ISREG(about.st_mode) else None


def _changed(about: os.stat_result) -> datetime:
    return datetime.fromtimestamp(about.st_mtime, UTC)


def open_store(location: str, access: BucketAccess | None = None) -> ObjectStore:
    """Return the store at a location: a directory, or a bucket that is reached by ``access``.

    Raises RepositoryNotFound for a directory that is not there, and InvalidRequest for what is no location. Of a bucket
    nothing is asked yet.
    """
    if "://" in location:
        return _bucket(location, access)
    directory = Path(location).absolute()
    with _translated(str(directory), ""):
        present = directory.is_dir()
    if not present:
        raise RepositoryNotFound(f"{directory} is not a directory", path=str(directory))
    return _local(directory)


def create_store(location: str, access: BucketAccess | None = None) -> ObjectStore:
    """Return a store at a directory that is made (0700) when it is absent; one that is there, or a bucket, stays."""
    if "://" in location:
        return _bucket(location, access)
    directory = Path(location).absolute()
    with _translated(str(directory), ""):
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        if missing:
            make_directories(directory, 0o700)
        for path in reversed(missing):
            sync_directory(path.parent)
        if not directory.is_dir():
            raise NotADirectoryError(20, "Not a directory")
    return _local(directory)


def _bucket(location: str, access: BucketAccess | None) -> ObjectStore:
    from vmkeep.buckets import BucketAddress

    address = BucketAddress.parse(location)
    if access is None:
        raise InvalidRequest(f"{location} is a bucket, and it is not said how it is reached", path=location)
    from vmkeep.repository.bucket import Bucket  # those with a directory do without it

    return Bucket(address, access)


def _local(directory: Path) -> ObjectStore:
    with _translated(str(directory), ""):
        Directory(directory).refuse_links()
        return ObjectStore(LocalStore(directory), location=str(directory), directory=directory)


@contextmanager
def _translated(location: str, name: str) -> Iterator[None]:
    """Translate the errors of one call to the store, and note that it is under way."""
    try:
        with under_way(f"{location}/{name}".rstrip("/")):
            yield
    except (BaseError, OSError) as error:
        raise _translation(error, location, name) from error


def _translation(error: BaseException, location: str, name: str) -> VmkeepError:
    path = f"{location}/{name}".rstrip("/")
    if isinstance(error, ForeignLink):
        return file_error(error, Path(path))
    own = error.strerror if isinstance(error, OSError) else None  # str() would tell the number and the path as well
    text = own or str(error).partition("\n")[0]
    # obstore reports most failures of the system as generic errors whose text ends with the number.
    found = _OS_ERROR.search(str(error))
    number = (error.errno if isinstance(error, OSError) else None) or (int(found[1]) if found else None)
    if number in _OF_HOST:
        return file_error(OSError(number, os.strerror(number or 0)), Path(path), "used")
    if number in _FULL:
        return NoSpace(f"the repository's file system is full while {path} was written", path=path)
    if isinstance(error, NotFoundError | FileNotFoundError) or number == 2:
        return ObjectMissing(f"{name} is not in the repository", path=path)
    if isinstance(error, AlreadyExistsError | FileExistsError) or number == 17:
        return TargetExists(f"{name} is in the repository already", path=path)
    if isinstance(error, PermissionDeniedError | PermissionError) or number in _REFUSED:
        return PermissionRefused(f"access to {path} was refused: {text}", path=path)
    return StoreError(f"the repository's storage failed at {path}: {text}", path=path)
