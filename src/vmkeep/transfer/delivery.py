"""Writing a stored disk into a new image.

    windows of the disk -> threads (read, open, prove, write) -> the image's close -> fsync

Each thread writes what it has read, on a way of its own: the order does not matter, and nobody waits for another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from vmkeep.filesystem import file_error
from vmkeep.paths import remove_file
from vmkeep.repository import Repository, StoredDisk
from vmkeep.repository.fetch import Window, ahead
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.images import LUKS, ImageWriter, NewImage, RawImage, ServedImage
from vmkeep.transfer.qcow2 import CLUSTER_BYTES, Qcow2File


def deliver_disk(
    repository: Repository,
    disk: StoredDisk,
    path: Path,
    image_format: str,
    *,
    key: ImageKey | None = None,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    """Write ``disk`` into a new image at ``path`` and make it durable; return the bytes of data written.

    ``image_format`` is qcow2, raw or luks. With a ``key`` the image is encrypted, a raw one with LUKS.

    Every block is checked against its id before it is written. On any failure the file is removed. ``progress``
    is told the position in the disk; ``stop`` raises when the operation was cancelled. To be called in a thread that
    lives until it returns (see ``vmkeep.transfer.server``).
    """
    return deliver_windows(
        repository.disk_windows(disk),
        path,
        image_format,
        size_bytes=disk.size_bytes,
        block_bytes=disk.block_bytes,
        key=key,
        workers=workers,
        stop=stop,
        progress=progress,
    )


def deliver_windows(
    windows: Iterable[Window],
    path: Path,
    image_format: str,
    *,
    size_bytes: int,
    block_bytes: int,
    key: ImageKey | None,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    """Write the windows of a disk into a new image, as ``deliver_disk``; a window may hold no block.

    All that no window holds reads as zero. Blocks have ``block_bytes`` and stand on their borders; the last one ends
    with the disk.
    """
    try:
        with _new_image(path, image_format, size_bytes, block_bytes, workers, key) as image:
            written = _deliver(windows, image, workers, stop, progress)
            progress(size_bytes)
            image.finish()
    except OSError as error:
        _remove(path)
        raise file_error(error, path) from error
    except BaseException:
        _remove(path)
        raise
    return written


def _remove(path: Path) -> None:
    with suppress(OSError):  # what went wrong first is what counts
        remove_file(path)


def _deliver(
    windows: Iterable[Window],
    image: NewImage,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    """Let the threads write all windows; one more than there are threads is in flight."""
    local = threading.local()

    def put(window: Window) -> list[tuple[int | None, int]]:
        writer: ImageWriter | None = getattr(local, "writer", None)
        if writer is None:
            writer = local.writer = image.writer()
        blocks = window()
        if not blocks:
            return [(None, 0)]
        writer.write_blocks(blocks)
        start, data = blocks[-1]
        return [(start + len(data), sum(len(data) for _, data in blocks))]

    written = 0
    stop()
    for position, length in ahead((partial(put, window) for window in windows), workers):
        stop()
        written += length
        if position is not None:
            progress(position)
    return written


def _new_image(
    path: Path, image_format: str, size_bytes: int, block_bytes: int, writers: int, key: ImageKey | None
) -> NewImage:
    if image_format == "raw" and key is None:
        return RawImage(path, size_bytes, block_bytes)
    if image_format == "qcow2" and key is None and block_bytes % CLUSTER_BYTES == 0:
        return Qcow2File(path, size_bytes)
    assert key is not None or image_format != LUKS, "LUKS without a key"
    return ServedImage(path, LUKS if image_format == "raw" else image_format, size_bytes, writers, key)
