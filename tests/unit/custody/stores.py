"""Variable stores made by hand, as EDK2 lays them out."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGE_SECURITY = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SECURE_BOOT_ENABLE = "f0a30bc7-af08-4556-99c4-001009c93a44"
X509 = "a5c059a1-94e4-4aa7-87b5-ab155c2bf072"
SHA256 = "c1c41626-504c-4092-aca9-41f936934328"


@dataclass(frozen=True)
class Made:
    """A variable to be put into a store."""

    name: str
    content: bytes
    vendor: str = GLOBAL
    state: int = 0x3F
    attributes: int = 7


def make_store(variables: Sequence[Made], *, plain: bool = False, size_bytes: int = 0x10000) -> bytes:
    """Return a firmware volume with these variables, in this order; ``plain``: with the headers before UEFI 2.3.1."""
    volume = bytearray(
        struct.pack(
            "<16x16sQ4sIHHHBBIIII",
            uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le,
            size_bytes,
            b"_FVH",
            0x4FEFF,
            72,
            0,
            0,
            0,
            2,
            size_bytes // 4096,
            4096,
            0,
            0,
        )
    )
    struct.pack_into("<H", volume, 50, -sum(struct.unpack("<36H", volume)) & 0xFFFF)
    kind = "ddcf3616-3275-4164-98b6-fe85707ffe7d" if plain else "aaf32c78-947b-439a-a180-2e144ec37792"
    store = bytearray(struct.pack("<16sIBBHI", uuid.UUID(kind).bytes_le, size_bytes // 2, 0x5A, 0xFE, 0, 0))
    for made in variables:
        store += b"\xff" * (-(72 + len(store)) % 4)
        name, vendor = made.name.encode("utf-16-le") + b"\0\0", uuid.UUID(made.vendor).bytes_le
        sizes = (len(name), len(made.content))
        if plain:
            store += struct.pack("<HBxIII16s", 0x55AA, made.state, made.attributes, *sizes, vendor)
        else:
            store += struct.pack("<HBxI28xII16s", 0x55AA, made.state, made.attributes, *sizes, vendor)
        store += name + made.content
    content = bytes(volume + store)
    assert len(content) <= size_bytes // 2
    return content + b"\xff" * (size_bytes - len(content))


def make_signatures(kind: str, entries: Sequence[bytes]) -> bytes:
    """Return a list of signatures of one size."""
    (size,) = {len(entry) for entry in entries}
    owner = uuid.UUID("77fa9abd-0359-4d32-bd60-28f4e78f784b").bytes_le
    head = uuid.UUID(kind).bytes_le + struct.pack("<III", 28 + len(entries) * (16 + size), 0, 16 + size)
    return head + b"".join(owner + entry for entry in entries)
