"""The passphrase of an encrypted disk image, and how QEMU's tools get it: never in an argument, never in a file.

It is written to memory that has a descriptor and no name (``memfd_create``). The tool inherits the descriptor and is
told to read ``/dev/fd/NUMBER``. When vmkeep and the tool are gone, so is the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vmkeep.values import dataclass

SECRET_ID: Final = "vmkeep-key"  # noqa: S105  a name, not a password
"""What the passphrase is called on the command lines of QEMU's tools."""


class ImageKey:
    """A passphrase that opens images; it stands in no repr."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    @classmethod
    def random(cls) -> ImageKey:
        """Return a passphrase that nobody could guess."""
        return cls(os.urandom(32).hex().encode())

    def reveal(self) -> bytes:
        """Return the passphrase, for what must have it."""
        return self._value

    def __repr__(self) -> str:
        return "ImageKey(hidden)"


@dataclass(frozen=True, slots=True)
class HandedKey:
    """What a tool of QEMU's is given to open an image: descriptors that it inherits, and arguments that name them."""

    descriptors: tuple[int, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What makes the tool read the passphrase, as ``SECRET_ID``; nothing when there is none."""
        return tuple(
            word
            for descriptor in self.descriptors
            for word in ("--object", f"secret,id={SECRET_ID},file=/dev/fd/{descriptor}")
        )


@contextmanager
def handed(key: ImageKey | None) -> Iterator[HandedKey]:
    """Keep a passphrase where a tool can read it, for as long as the ``with`` block lasts; None: there is none."""
    if key is None:
        yield HandedKey()
        return
    descriptor = os.memfd_create("vmkeep")
    try:
        os.write(descriptor, key.reveal())
        yield HandedKey((descriptor,))
    finally:
        os.close(descriptor)
