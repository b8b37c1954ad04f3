"""Writing a stored disk into a new image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from vmkeep.errors import VmkeepError
from vmkeep.filesystem import file_error
from vmkeep.repository import Repository, StoredDisk
from vmkeep.transfer.images import ImageWriter, Qcow2Image, RawImage

# Each write is a round trip to qemu-nbd, or a system call.
WRITE_BYTES = 1 << 20


def deliver_disk(
    repository: Repository,
    disk: StoredDisk,
    path: Path,
    image_format: Literal["qcow2", "raw"],
    *,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    """Write ``disk`` into a new image at ``path`` and make it durable; return the bytes of data written.

    Every block is checked against its id before it is written. On any failure the file is removed. ``progress``
    is told the position in the disk; ``stop`` raises when the operation was cancelled.
    """
    written = 0
    try:
        with _new_image(path, image_format, disk.size_bytes) as image:
            for start, data in joined(repository.read_disk(disk, workers=workers)):
                stop()
                image.write(start, data)
                written += len(data)
                progress(start + len(data))
            progress(disk.size_bytes)
            image.finish()
    except OSError as error:
        path.unlink(missing_ok=True)
        raise file_error(error, path) from error
    except VmkeepError:
        path.unlink(missing_ok=True)
        raise
    return written


def joined(blocks: Iterable[tuple[int, bytes]], limit_bytes: int = WRITE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Join neighbouring blocks, (start, content) ascending, into writes of at most about ``limit_bytes``."""
    begun, length = 0, 0
    pieces: list[bytes] = []
    for start, data in blocks:
        if pieces and (start != begun + length or length >= limit_bytes):
            yield begun, b"".join(pieces)
            pieces, length = [], 0
        if not pieces:
            begun = start
        pieces.append(data)
        length += len(data)
    if pieces:
        yield begun, b"".join(pieces)


def _new_image(path: Path, image_format: Literal["qcow2", "raw"], size_bytes: int) -> ImageWriter:
    return RawImage(path, size_bytes) if image_format == "raw" else Qcow2Image(path, size_bytes)
