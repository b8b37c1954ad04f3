"""Disk images being made: raw and plain qcow2 as files (``vmkeep.transfer.qcow2``), others by QEMU's tools."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from vmkeep.errors import TransferError
from vmkeep.filesystem import PAGE_BYTES, file_errors
from vmkeep.paths import create_file, remove_file
from vmkeep.transfer.imagekey import SECRET_ID, ImageKey, handed
from vmkeep.transfer.newfile import Lane, NewFile
from vmkeep.transfer.server import ImageConnection, ImageServer
from vmkeep.transfer.tools import run_tool

LUKS: Final = "luks"
"""The format of an image that is nothing but LUKS: a raw one that is encrypted."""
# qemu-img times the key derivation, and gives up when the clock of its thread did not move meanwhile: with 7.2.22
# about every other attempt on a processor that does 32768 rounds within one tick. It gives up within 10 ms.
_MISTIMED = "Unable to get accurate CPU usage"
_TIMING_ATTEMPTS = 40
_FAST_DERIVATION_MS = 10
# Each write is a round trip to qemu-nbd.
_WRITE_BYTES = 1 << 20


class ImageWriter(Protocol):
    """One way into a new image; used by one thread."""

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        """Write blocks of the disk, (start, content) ascending."""
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

    def __init__(self, path: Path, size_bytes: int, block_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._file = NewFile(path, aligned=block_bytes % PAGE_BYTES == 0)

    def writer(self) -> RawWriter:
        return RawWriter(self._file.lane())

    def finish(self) -> None:
        self._file.finish(self._size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class RawWriter:
    """One thread's way into a raw image."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        for start, pieces in runs(blocks):
            self._lane.write(start, pieces)


def runs(blocks: Iterable[tuple[int, bytes]], limit_bytes: int | None = None) -> Iterator[tuple[int, list[bytes]]]:
    """Yield (start, contents) of blocks, (start, content) ascending, that lie one behind the other.

    A run ends at the latest when it has ``limit_bytes``.
    """
    begun = end = 0
    pieces: list[bytes] = []
    for start, data in blocks:
        if pieces and (start != end or (limit_bytes is not None and end - begun >= limit_bytes)):
            yield begun, pieces
            pieces = []
        if not pieces:
            begun = start
        pieces.append(data)
        end = start + len(data)
    if pieces:
        yield begun, pieces


class ServedImage:
    """An image of qcow2 or LUKS, written through qemu-nbd, which closes it at the end; with a key it is encrypted.

    ``writers`` is how many there can be. To be entered and left in one thread, as the server is.
    """

    def __init__(self, path: Path, image_format: str, size_bytes: int, writers: int, key: ImageKey | None) -> None:
        self._path = path
        self._format = image_format
        self._size_bytes = size_bytes
        self._count = writers
        self._key = key
        self._stack = ExitStack()
        self._connections: list[ImageConnection] = []
        self._writers: list[_RecordingWriter] = []

    def __enter__(self) -> Self:
        create_image(self._path, self._format, self._size_bytes, self._key)
        directory = Path(tempfile.mkdtemp(prefix="vmkeep-"))
        try:
            server = ImageServer(
                self._path,
                self._format,
                directory / "nbd",
                writable=True,
                new=True,
                shared=self._count + 1,
                key=self._key,
            )
            self._stack.enter_context(server)
            self._connections = [server.connect() for _ in range(self._count)]
        except BaseException:
            self._stack.close()
            raise
        finally:
            # Connected, nobody needs the socket's name, and none is left when vmkeep is killed.
            shutil.rmtree(directory, ignore_errors=True)
        return self

    def writer(self) -> ImageWriter:
        writer = _RecordingWriter(self._connections[len(self._writers)])
        self._writers.append(writer)
        return writer

    def finish(self) -> None:
        if self._format == LUKS:
            self._zero_the_rest()
        self._stack.close()

    def _zero_the_rest(self) -> None:
        """Write zeroes where nothing was written: a LUKS image has no holes, and decrypts there to chance."""
        place = 0
        written = sorted(piece for writer in self._writers for piece in writer.written)
        for start, end in [*written, (self._size_bytes, self._size_bytes)]:
            if start > place:
                self._connections[0].zero(place, start - place)
            place = max(place, end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


class _RecordingWriter:
    """A connection that remembers what was written, as (start, end)."""

    def __init__(self, connection: ImageConnection) -> None:
        self._connection = connection
        self.written: list[tuple[int, int]] = []

    def write_blocks(self, blocks: Sequence[tuple[int, bytes]]) -> None:
        for start, pieces in runs(blocks, _WRITE_BYTES):
            data = b"".join(pieces)
            self._connection.write(start, data)
            if self.written and self.written[-1][1] == start:
                self.written[-1] = (self.written[-1][0], start + len(data))
            else:
                self.written.append((start, start + len(data)))


def create_image(
    path: Path, image_format: str, size_bytes: int, key: ImageKey | None = None, *, strong: bool = True
) -> None:
    """Make an empty image, encrypted if there is a key; nobody but us may read it.

    ``strong``: the derivation from the key takes two seconds, as QEMU has it by default. A key that is random needs
    no such protection.
    """
    arguments = ["create", "-q", "-f", image_format]
    if key is not None:
        prefix = "" if image_format == LUKS else "encrypt."
        options = [f"{prefix}key-secret={SECRET_ID}"]
        options += [] if image_format == LUKS else ["encrypt.format=luks"]
        options += [] if strong else [f"{prefix}iter-time={_FAST_DERIVATION_MS}"]
        arguments += ["-o", ",".join(options)]
    name = str(path)
    with handed(key) as secret:
        for attempt in range(_TIMING_ATTEMPTS):
            # Before qemu-img does, so that it is never more open than this, and given to it as a descriptor: in a
            # folder of another user its name may be a link by then. A qemu-img that outlived us would make a file that
            # nobody looks for any more.
            with file_errors(path):
                made = create_file(path)
            try:
                run_tool(
                    "qemu-img",
                    *[*arguments, *secret.arguments, "--", f"/proc/self/fd/{made}", str(size_bytes)],
                    doing=f"make the image {name}",
                    path=name,
                    descriptors=(*secret.descriptors, made),
                    dying=True,
                )
                return
            except TransferError as error:
                remove_file(path)
                if _MISTIMED not in error.message or attempt + 1 == _TIMING_ATTEMPTS:
                    raise
            finally:
                os.close(made)
