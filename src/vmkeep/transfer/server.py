"""A disk image served by qemu-nbd while no VM has it open: for reading a stopped VM's disk, or writing it in place.

Read-only, QEMU's image locks are left alone (``force-share``), so that our reading never keeps a guest from being
started; whoever reads watches the VM, and gives up what was read when it starts. Writable, the locks are taken, so
that the VM cannot start meanwhile; its bitmaps record what is written.

The server dies with the thread that started it (``PR_SET_PDEATHSIG`` is bound to the thread, not the process): also
when vmkeep is killed with SIGKILL. So it is entered and left in one thread, which stays until the end; connections may
be used in others. A server that writes over an image gets SIGTERM instead of SIGKILL then, upon which it closes the
image in order.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket as sockets
import struct
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import nbd

from vmkeep.errors import HostFileMissing, NoSpace, TransferError, VmkeepError
from vmkeep.filesystem import file_error, passes_cache
from vmkeep.logs import get_logger
from vmkeep.transfer.confinement import Confined, start_confined
from vmkeep.transfer.connections import Connections
from vmkeep.transfer.imagechain import OpenChain, OpenFile, open_chain
from vmkeep.transfer.imagefile import image_error, image_node
from vmkeep.transfer.imagekey import HandedKey, ImageKey, handed
from vmkeep.transfer.nbd import NbdSource, export_names
from vmkeep.transfer.tools import find_tool

_log = get_logger(__name__)

# sun_path has 108 bytes on Linux, with the final zero.
_MAX_SOCKET_BYTES = 107
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
# The close of a writable image waits for the storage to take all that was written.
_CLOSE_SECONDS = 600.0
_POLL_SECONDS = 0.02
# qemu-nbd is ready after some 20 ms: to look that seldom would add half of it to each disk.
_FIRST_POLL_SECONDS = 0.002
_EXPORT = ""
# Those that write, and one that asks whether it answers.
_CONNECTIONS_FOR_OTHERS = 4
_NOISE = ("Disconnect client", "option negotiation failed")
# A request counts in 32 bits; libnbd refuses more than 64 MiB of data at once.
_WRITE_BYTES = 32 << 20
_ZERO_BYTES = 1 << 30


class ImageConnection:
    """One connection for writing an image in place; used by one thread at a time.

    Raises NoSpace when the image's file system is full, else TransferError, with the path of the image.
    """

    def __init__(self, socket: str, path: str) -> None:
        self._path = path
        handle = nbd.NBD()
        try:
            handle.set_export_name(_EXPORT)
            handle.connect_unix(socket)
            self.size_bytes: int = handle.get_size()
        except nbd.Error as error:
            raise TransferError(f"qemu-nbd's export of {path} cannot be opened: {error.string}", path=path) from error
        self._handle: nbd.NBD | None = handle

    def read(self, start: int, length: int) -> bytearray:
        """Return ``length`` bytes from ``start``."""
        try:
            return self._open_handle().pread(length, start)
        except nbd.Error as error:
            raise self._error("reading", start, error) from error

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes at ``start``; they are durable after ``flush``."""
        view = memoryview(data).cast("B")
        try:
            for offset in range(0, len(view), _WRITE_BYTES):
                self._open_handle().pwrite(view[offset : offset + _WRITE_BYTES], start + offset)
        except nbd.Error as error:
            raise self._error("writing", start, error) from error

    def zero(self, start: int, length: int) -> None:
        """Make a range read as zero, giving its space back where the image can."""
        try:
            for offset in range(0, length, _ZERO_BYTES):
                self._open_handle().zero(min(_ZERO_BYTES, length - offset), start + offset)
        except nbd.Error as error:
            raise self._error("writing zeroes to", start, error) from error

    def flush(self) -> None:
        """Make what was written so far durable."""
        try:
            self._open_handle().flush()
        except nbd.Error as error:
            raise self._error("flushing", None, error) from error

    def close(self) -> None:
        """End the connection; may be called again. A connection that is broken already has nothing to say."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(nbd.Error):
                handle.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_handle(self) -> nbd.NBD:
        assert self._handle is not None, "used after the end"
        return self._handle

    def _error(self, doing: str, start: int | None, error: nbd.Error) -> TransferError | NoSpace:
        if error.errno == "ENOSPC" or "No space left" in error.string:
            return NoSpace(f"the file system of {self._path} is full", path=self._path)
        where = "" if start is None else f" at {start}"
        return TransferError(f"{doing} {self._path}{where} failed: {error.string}", path=self._path)


def end_abandoned(sockets_dir: Path, *, but: Path) -> None:
    """End the servers whose sockets a killed vmkeep left in a directory of its own, but not that on the socket ``but``.

    They got SIGTERM when vmkeep died, and qemu-nbd (7.2) forgets one that comes while it starts: it would stay for
    ever.
    """
    for path in sockets_dir.glob("nbd*"):
        if path == but:
            continue
        with sockets.socket(sockets.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                continue  # nobody listens there any more
            pid, _, _ = struct.unpack("3i", probe.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12))
        deadline = time.monotonic() + _STOP_SECONDS
        with suppress(OSError):  # it ended
            while f"--socket={path}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGTERM)
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)


class ImageServer:
    """qemu-nbd on a unix socket, for as long as the ``with`` block lasts. See the module about threads.

    The image is served as the guest sees it, backing files included; ``bitmap`` names a bitmap of the top image
    that is exported with it. ``key`` opens an encrypted image, of which the plain content is served. ``shared`` is how
    many connections it takes at once. ``new``: the image counts for nothing until it was closed and synced, so QEMU
    need not sync it in between (its qcow2 driver would, to keep its tables in order). Raises what ``describe_image``
    does, WrongKey when the key does not open it, and VmBusy when a writable image is open elsewhere. A socket path that
    is too long or in use, a bitmap that is not there or cannot be trusted, and a close that lost something are
    TransferErrors.
    """

    def __init__(
        self,
        path: str | Path,
        image_format: str,
        socket: Path,
        *,
        bitmap: str | None = None,
        writable: bool = False,
        new: bool = False,
        shared: int = 16,
        key: ImageKey | None = None,
    ) -> None:
        self._path = str(Path(path).absolute())
        self._format = image_format
        self._socket = socket
        self._bitmap = bitmap
        self._writable = writable
        self._new = new
        self._shared = shared
        self._key = key
        self._node = ""
        self._files: tuple[OpenFile, ...] = ()
        self._thread = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._confined: Confined | None = None
        self._words: IO[bytes] | None = None
        self._connections: list[ImageConnection] = []
        self._readers = Connections(str(socket))

    @property
    def pid(self) -> int:
        """Return the process id of qemu-nbd."""
        assert self._process is not None, "not started"
        return self._process.pid

    def source(self, label: str | None = None) -> NbdSource:
        """Return the image as a disk to capture; errors name it by ``label``, by its path without one."""
        bitmap = None if self._bitmap is None else f"qemu:dirty-bitmap:{self._bitmap}"
        most = self._shared - _CONNECTIONS_FOR_OTHERS
        return NbdSource(self._readers.export(_EXPORT, bitmap=bitmap, most=most, label=label or self._path), bitmap)

    def connect(self) -> ImageConnection:
        """Return a new connection, for writing if the server is writable; closed at the latest with the server."""
        connection = ImageConnection(str(self._socket), self._path)
        self._connections.append(connection)
        return connection

    def __enter__(self) -> Self:
        self._check_socket()
        with open_chain(self._path, self._format) as opened:
            self._node = self._checked_node(opened)
            self._files = tuple(opened.files)
            self._thread = threading.get_ident()
            self._words = tempfile.TemporaryFile()
            try:
                self._start(opened.descriptors)
                self._wait_until_ready()
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert threading.get_ident() == self._thread, "left in another thread than it was entered in"
        try:
            self._stop()
        except VmkeepError as failure:
            if error is None:
                raise
            # What went wrong first is what the user must hear.
            _log.warning("image server ended badly", path=self._path, error=failure.message)
        finally:
            self._release()

    def _check_socket(self) -> None:
        name = str(self._socket)
        if len(os.fsencode(name)) > _MAX_SOCKET_BYTES:
            raise TransferError(
                f"the socket path {name} is longer than {_MAX_SOCKET_BYTES} bytes",
                path=name,
                hint="Set run_dir in vmkeep.toml to a shorter directory.",
            )
        if not self._socket.parent.is_dir():
            raise HostFileMissing(
                f"the directory of the socket, {self._socket.parent}, does not exist", path=str(self._socket.parent)
            )
        with sockets.socket(sockets.AF_UNIX) as probe:
            try:
                probe.connect(name)
            except OSError:
                return  # nothing there, or what a killed server left behind: qemu-nbd replaces it
        raise TransferError(f"the socket {name} is in use by another process", path=name)

    def _checked_node(self, opened: OpenChain) -> str:
        top = opened.layers[0].layer
        if self._bitmap is not None:
            # qemu-nbd would go on looking in the backing files, whose bitmaps know nothing of the overlay.
            found = top.bitmap(self._bitmap)
            if found is None:
                raise TransferError(f"{self._path} has no bitmap {self._bitmap}", path=self._path)
            if found.in_use:
                raise TransferError(
                    f"the bitmap {self._bitmap} of {self._path} is in use, or was when its VM was killed",
                    path=self._path,
                )
        return image_node(
            opened.layers,
            read_only=not self._writable,
            encrypted=self._key is not None,
            # A new image is written once and whole: through the page cache each byte would be copied once more, and
            # push out what the guests of the host have there.
            past_cache=self._new and passes_cache(Path(self._path)),
        )

    def _command(self, secret: HandedKey) -> list[str]:
        opening = f"open {self._path}"
        find_tool("setpriv", opening)
        command = [find_tool("qemu-nbd", opening), "--persistent", f"--shared={self._shared}"]
        command += [f"--socket={self._socket}"]
        if self._writable:
            cache = "unsafe" if self._new else "writeback"
            command += [f"--cache={cache}", "--discard=unmap", "--detect-zeroes=off"]
        else:
            command += ["--read-only"]
        if self._bitmap is not None:
            command += [f"--bitmap={self._bitmap}"]
        return [*command, *secret.arguments, "--", self._node]

    def _start(self, descriptors: tuple[int, ...]) -> None:
        with handed(self._key) as secret:
            command = self._command(secret)
            _log.debug("running", command=shlex.join(command))
            # In a session of its own, because Ctrl-C would end it at once, with the image open.
            self._confined = start_confined(
                command,
                folders=(self._socket.parent.absolute(),),
                pdeathsig="TERM" if self._writable and not self._new else "KILL",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                start_new_session=True,
                pass_fds=(*descriptors, *secret.descriptors),
            )
            self._process = self._confined.process

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _START_SECONDS
        poll_seconds = _FIRST_POLL_SECONDS
        while True:
            if self._process.poll() is not None:
                raise image_error(
                    f"qemu-nbd cannot open {self._path}: {self._said()}", self._path, self._node, self._files
                )
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransferError(
                    f"qemu-nbd of {self._path} did not answer within {_START_SECONDS:.0f} s: {self._said()}",
                    path=self._path,
                )
            if export_names(str(self._socket), left) is not None:
                return
            time.sleep(poll_seconds)
            poll_seconds = min(poll_seconds * 1.25, _POLL_SECONDS)

    def _stop(self) -> None:
        assert self._process is not None
        self._readers.close()
        for connection in self._connections:
            connection.close()
        died = self._process.poll()
        if died is None:
            self._process.terminate()
            try:
                self._process.wait(_CLOSE_SECONDS if self._writable else _STOP_SECONDS)
            except subprocess.TimeoutExpired as error:
                self._process.kill()
                if self._writable:
                    raise TransferError(
                        f"qemu-nbd did not close {self._path} within {_CLOSE_SECONDS:.0f} s and was killed",
                        path=self._path,
                    ) from error
        if not self._writable:
            return
        said = self._said()
        if died is not None or self._process.returncode != 0 or said:
            # A process that was killed can still be in its last throes when it is looked at.
            was_killed = died is not None or self._process.returncode < 0
            what = "died with the image open" if was_killed else "could not close the image"
            raise image_error(
                f"qemu-nbd of {self._path} {what} (status {self._process.returncode}): {said}",
                self._path,
                self._node,
                self._files,
            )
        self._sync()

    def _sync(self) -> None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise file_error(error, Path(self._path)) from error

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        # SIGKILL would leave every bitmap of a writable image in use, so that is for one that hangs.
        if self._writable and process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_CLOSE_SECONDS)
        if process.poll() is None:
            process.kill()
        process.wait()

    def _said(self) -> str:
        """Return what qemu-nbd said, without what it says of clients that went away."""
        assert self._words is not None
        self._words.seek(0)
        lines = self._words.read().decode(errors="replace").splitlines()
        return "\n".join(line for line in lines if not any(noise in line for noise in _NOISE)).strip()

    def _release(self) -> None:
        if self._process is not None:
            self._end(self._process)
            self._process = None
        if self._confined is not None:
            self._confined.end()
            self._confined = None
        if self._words is not None:
            self._words.close()
            self._words = None
        with suppress(FileNotFoundError):
            self._socket.unlink()
