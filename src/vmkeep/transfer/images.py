"""Disk images being written: raw by the operating system, qcow2 by qemu-nbd.

qemu-nbd is started by libnbd with a socket of its own (systemd socket activation), so no name of a socket can
clash and the server ends with the connection, also when vmkeep is killed.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import nbd

from vmkeep.errors import NoSpace, TransferError
from vmkeep.filesystem import file_error
from vmkeep.transfer.tools import find_tool, run_tool


class ImageWriter(Protocol):
    """A new image in which all that is not written reads as zero. Used by one thread."""

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Write bytes at ``start``."""
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

    def write(self, start: int, data: bytes | memoryview) -> None:
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
    """A qcow2 image of the current version, written through qemu-nbd."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        run_tool(
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            str(path),
            str(size_bytes),
            doing=f"make the image {path}",
            path=str(path),
        )
        path.chmod(0o600)
        handle = nbd.NBD()
        # "--image-opts" would parse commas in the path as options; with --format the path is taken as it is.
        command = [find_tool("qemu-nbd"), "--format", "qcow2", "--cache", "writeback", "--", str(path)]
        try:
            handle.connect_systemd_socket_activation(command)
        except nbd.Error as error:
            raise TransferError(f"qemu-nbd cannot open {path}: {error.string}", path=str(path)) from error
        self._handle: nbd.NBD | None = handle

    def write(self, start: int, data: bytes | memoryview) -> None:
        assert self._handle is not None, "written after the end"
        try:
            self._handle.pwrite(data, start)
        except nbd.Error as error:
            raise self._error(error) from error

    def finish(self) -> None:
        assert self._handle is not None, "finished twice"
        try:
            self._handle.flush()
            self._handle.shutdown()
        except nbd.Error as error:
            raise self._error(error) from error
        self._close()
        # qemu-nbd writes its last metadata when the connection ends; the file is durable only after that.
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _error(self, error: nbd.Error) -> TransferError | NoSpace:
        if error.errno == "ENOSPC" or "No space left" in error.string:
            return NoSpace(f"the file system of {self._path} is full", path=str(self._path))
        return TransferError(f"writing {self._path} failed: {error.string}", path=str(self._path))

    def _close(self) -> None:
        # libnbd's binding has no close before 1.20 (Debian 12 has 1.14): the handle, and with it qemu-nbd, goes
        # with its last reference.
        self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
