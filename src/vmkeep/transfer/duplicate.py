"""An image made once more, for a second VM: its blocks shared where that can be, else copied as a guest sees it.

the disk's map of zeroes -> windows of data -> threads (read, leave zeroes out, write) -> the image's close -> fsync
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from vmkeep.errors import TransferError
from vmkeep.filesystem import file_error
from vmkeep.paths import create_file
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer.delivery import deliver_windows
from vmkeep.transfer.imagechain import open_chain
from vmkeep.transfer.imagefile import remove_bitmap
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.transfer.qcow2 import CLUSTER_BYTES
from vmkeep.transfer.source import DiskSource, SourceConnection

_FICLONE: Final = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)."""
# What a file system says that shares no blocks, or not between these two files.
_NOT_SHARED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ETXTBSY, errno.EBADF}
)
_BLOCK_BYTES: Final = CLUSTER_BYTES
_WINDOW_BYTES: Final = 1 << 20
_ZEROES: Final = bytes(_BLOCK_BYTES)
_ZERO: Final = 2
"""NBD's flag of a range that reads as zero."""


def is_whole(chain: tuple[ImageLayer, ...]) -> bool:
    """Return whether the file of an image is all of a disk that a second VM can have as it is, but for bitmaps.

    Not what stands on another image or has its content in another file; not one with snapshots, which the second VM
    knows nothing of; and not an encrypted one, which a second passphrase could not tell from the first.
    """
    top = chain[0]
    return (
        len(chain) == 1
        and top.format in ("raw", "qcow2")
        and top.backing is None
        and top.data_file is None
        and not top.snapshots
        and not top.encrypted
    )


def share_image(image: ImageLayer, staged: Path) -> bool:
    """Make a file at ``staged`` that shares all blocks of an image, durable and without its bitmaps; False: it cannot.

    Then nothing is there. The image is one that ``is_whole``. Raises what reading and writing files raises.
    """
    with open_chain(image.path, image.format, chain=False) as opened:
        source = opened.layers[0].file
        if source.is_device:
            return False
        try:
            made = create_file(staged)
        except OSError as error:
            raise file_error(error, staged) from error
        try:
            try:
                fcntl.ioctl(made, _FICLONE, source.descriptor)
                os.fsync(made)
            finally:
                os.close(made)
        except OSError as error:
            staged.unlink(missing_ok=True)
            if error.errno in _NOT_SHARED:
                return False
            raise file_error(error, staged) from error
    for bitmap in image.bitmaps:
        # They are of checkpoints that the second VM has not, and would be in the way of one with that name.
        remove_bitmap(staged, image.format, bitmap.name)
    return True


def copy_disk(
    source: DiskSource,
    staged: Path,
    image_format: str,
    *,
    key: ImageKey | None = None,
    workers: int,
    stop: Callable[[], None],
    progress: Callable[[int], None],
) -> int:
    """Write what a disk holds into a new image, sparse and durable; return the bytes of data written.

    ``image_format``, ``key``, ``stop`` and ``progress`` are as in ``deliver_disk``, and so is the thread.
    """
    windows = (partial(_read, source.connect(), start, length) for start, length in data_windows(source))
    return deliver_windows(
        windows,
        staged,
        image_format,
        size_bytes=source.size_bytes,
        block_bytes=_BLOCK_BYTES,
        key=key,
        workers=workers,
        stop=stop,
        progress=progress,
    )


def data_windows(source: DiskSource) -> Iterator[tuple[int, int]]:
    """Yield the ranges, as (start, length), that may hold anything but zeroes, on the borders of blocks.

    They ascend and do not overlap; the last one may end with the disk. None is longer than a window.
    """
    done = 0
    for start, length, flags in source.zero_map():
        if flags & _ZERO:
            continue
        first = max(done, start // _BLOCK_BYTES * _BLOCK_BYTES)
        end = min(-(-(start + length) // _BLOCK_BYTES) * _BLOCK_BYTES, source.size_bytes)
        for place in range(first, end, _WINDOW_BYTES):
            yield place, min(_WINDOW_BYTES, end - place)
        done = max(done, end)


def _read(connection: SourceConnection, start: int, length: int) -> list[tuple[int, bytes]]:
    """Return the blocks of a window that hold something."""
    try:
        data = bytes(connection.read(start, length))
    finally:
        connection.close()
    if len(data) != length:
        raise TransferError(f"a read at {start} gave {len(data)} bytes of {length}")
    pieces = ((start + place, data[place : place + _BLOCK_BYTES]) for place in range(0, length, _BLOCK_BYTES))
    return [(place, piece) for place, piece in pieces if piece != _ZEROES[: len(piece)]]
