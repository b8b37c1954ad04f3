"""Disk images being made: raw by the operating system, qcow2 by qemu-nbd."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from vmkeep.filesystem import file_error
from vmkeep.transfer.server import ImageServer
from vmkeep.transfer.tools import run_tool


class ImageWriter(Protocol):
    """One way into a new image; used by one thread."""

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes at ``start``."""
        ...


class NewImage(Protocol):
    """A new image in which all that is not written reads as zero."""

    def writer(self) -> ImageWriter:
        """Return one more way in, for one more thread."""
        ...

    def finish(self) -> None:
        """Make what was written durable and close the image."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class RawImage:
    """A raw image, sparse where nothing was written. Made anew; an existing file is an error of the caller."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._open = True
        os.ftruncate(self._descriptor, size_bytes)

    def writer(self) -> RawImage:
        """Return the image itself: a write at a place needs no state."""
        return self

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, start)
                start += written
                view = view[written:]
        except OSError as error:
            raise file_error(error, self._path) from error

    def finish(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise file_error(error, self._path) from error
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class Qcow2Image:
    """A qcow2 image of the current version, written through qemu-nbd, which closes it at the end.

    ``writers`` is how many there can be. To be entered and left in one thread, as the server is.
    """

    def __init__(self, path: Path, size_bytes: int, writers: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self._writers = writers
        self._stack = ExitStack()
        self._connections: list[ImageWriter] = []

    def __enter__(self) -> Self:
        path = str(self._path)
        run_tool(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            path,
            str(self._size_bytes),
            doing=f"make the image {path}",
            path=path,
        )
        self._path.chmod(0o600)
        directory = Path(tempfile.mkdtemp(prefix="vmkeep-"))
        try:
            server = ImageServer(
                self._path, "qcow2", directory / "nbd", writable=True, new=True, shared=self._writers + 1
            )
            self._stack.enter_context(server)
            self._connections = [server.connect() for _ in range(self._writers)]
        except BaseException:
            self._stack.close()
            raise
        finally:
            # Connected, nobody needs the socket's name, and none is left when vmkeep is killed.
            shutil.rmtree(directory, ignore_errors=True)
        return self

    def writer(self) -> ImageWriter:
        return self._connections.pop()

    def finish(self) -> None:
        self._stack.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
