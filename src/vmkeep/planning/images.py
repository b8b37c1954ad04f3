"""The images of a disk as they say they are: plain values."""

from __future__ import annotations

from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class ImageBitmap:
    """A dirty bitmap stored in a qcow2 image.

    ``in_use``: the image was not closed properly (or is open now), so the bitmap cannot be trusted. ``recording``:
    whoever opens the image for writing goes on recording in it.
    """

    name: str
    granularity_bytes: int
    in_use: bool
    recording: bool


@dataclass(frozen=True, slots=True)
class ImageSnapshot:
    """An internal snapshot in a qcow2 image; ``memory_bytes`` is the VM's memory that was saved with it, if any."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class ImageLayer:
    """One image of a chain. ``path`` is absolute.

    ``backing`` is the path of the next layer and ``backing_format`` what the header calls it, where it does.
    ``holds_bitmaps``: the format has room for bitmaps, as qcow2 has from its version 3 on ("compat 1.1"). ``bitmaps``
    are those in the file: what a running VM keeps in memory is not there, and what it loaded from the file is
    ``in_use`` while it runs. ``snapshots`` are the internal ones. ``corrupt``: QEMU marked it so, and opens it for
    reading only until it is repaired.
    """

    path: str
    format: str
    size_bytes: int
    bitmaps: tuple[ImageBitmap, ...]
    encrypted: bool
    data_file: str | None
    backing: str | None
    holds_bitmaps: bool = True
    snapshots: tuple[ImageSnapshot, ...] = ()
    corrupt: bool = False
    backing_format: str | None = None

    def bitmap(self, name: str) -> ImageBitmap | None:
        """Return the bitmap of that name."""
        return next((bitmap for bitmap in self.bitmaps if bitmap.name == name), None)
