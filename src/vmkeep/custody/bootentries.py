"""The boot entries among UEFI variables, in words. No I/O.

EFI_LOAD_OPTION (UEFI 2.10, 3.1.3): attributes, the length of the device paths, a description, the paths. A device
path is a chain of nodes, each a type, a subtype and a length (10.3). A guest writes them, so nothing is believed before
it was held against the bytes that are there.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping
from typing import Final

from vmkeep.custody.variables import GLOBAL, VariableStore, shown
from vmkeep.values import dataclass

_OPTION: Final = struct.Struct("<IH")  # attributes, bytes of the device paths
_NODE: Final = struct.Struct("<BBH")  # type, subtype, bytes of the node with this header
_ACTIVE, _HIDDEN = 0x1, 0x8
_END: Final = 0x7F
_TEXT_CHARACTERS: Final = 120
_MOST_NODES: Final = 32
_MOST_ENTRIES: Final = 200
_NUMBER_DIGITS: Final = frozenset("0123456789ABCDEF")

# What a node says, by type and subtype, where its name says enough.
_PLAIN_NODES: Final[Mapping[tuple[int, int], str]] = {
    (1, 1): "PCI",
    (2, 1): "ACPI",
    (3, 1): "ATAPI",
    (3, 2): "SCSI",
    (3, 5): "USB",
    (3, 9): "I2O",
    (3, 10): "vendor",
    (3, 11): "network",
    (3, 12): "IPv4",
    (3, 13): "IPv6",
    (3, 15): "USB class",
    (3, 18): "SATA",
    (3, 19): "iSCSI",
    (3, 23): "NVMe",
    (4, 2): "CD",
    (4, 6): "firmware file",
    (4, 7): "firmware volume",
    (4, 9): "RAM disk",
    (5, 1): "legacy boot",
}


@dataclass(frozen=True, slots=True)
class BootEntry:
    """A Boot#### variable. ``number`` are its four digits, ``target`` the device path in words.

    ``problem`` says why not all of it could be read.
    """

    number: str
    description: str
    target: str
    active: bool = True
    hidden: bool = False
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Booting:
    """What a firmware boots. ``order`` are numbers, also of entries that are not there; ``next`` is for one time."""

    order: tuple[str, ...] = ()
    entries: tuple[BootEntry, ...] = ()
    next: str | None = None


def read_booting(store: VariableStore) -> Booting:
    """Return the boot entries of a store, those of the order first."""
    held = {each.name: each.content for each in store.variables if each.vendor == GLOBAL}
    numbers = [name[4:] for name in held if _is_entry(name)][:_MOST_ENTRIES]
    order = tuple(_numbers(held.get("BootOrder", b"")))[:_MOST_ENTRIES]
    place = {number: index for index, number in reversed(list(enumerate(order)))}
    numbers.sort(key=lambda number: (place.get(number, len(order)), number))
    once = next(_numbers(held.get("BootNext", b"")[:2]), None)
    return Booting(order, tuple(_entry(number, held[f"Boot{number}"]) for number in numbers), once)


def _is_entry(name: str) -> bool:
    return len(name) == 8 and name.startswith("Boot") and set(name[4:]) <= _NUMBER_DIGITS


def _numbers(content: bytes) -> Iterator[str]:
    return (f"{number:04X}" for (number,) in struct.iter_unpack("<H", content[: len(content) & ~1]))


def _entry(number: str, content: bytes) -> BootEntry:
    if len(content) < _OPTION.size:
        return BootEntry(number, "", "", problem="it is cut off")
    attributes, paths_bytes = _OPTION.unpack_from(content)
    text = content[_OPTION.size :]
    end = next((at for at in range(0, len(text) - 1, 2) if text[at : at + 2] == b"\0\0"), None)
    if end is None:
        return BootEntry(number, "", "", problem="its description has no end")
    description = shown(text[:end].decode("utf-16-le", "replace"), _TEXT_CHARACTERS)
    paths = text[end + 2 : end + 2 + paths_bytes]
    problem = None if len(paths) == paths_bytes else "its device path is cut off"
    target = shown("/".join(_words(paths)), _TEXT_CHARACTERS)
    return BootEntry(number, description, target, bool(attributes & _ACTIVE), bool(attributes & _HIDDEN), problem)


def _words(path: bytes) -> Iterator[str]:
    """Yield what the nodes of the first device path say."""
    place = 0
    for _ in range(_MOST_NODES):
        if len(path) - place < _NODE.size:
            return
        kind, sub, length = _NODE.unpack_from(path, place)
        if kind == _END or length < _NODE.size or place + length > len(path):
            return
        yield _node(kind, sub, path[place + _NODE.size : place + length])
        place += length


def _node(kind: int, sub: int, body: bytes) -> str:
    match kind, sub:
        case 4, 1 if len(body) >= 38 and body[37] == 2:  # number, start, size, signature, format, GPT
            return f"partition {uuid.UUID(bytes_le=body[20:36])}"
        case 4, 1 if len(body) >= 4:
            return f"partition {int.from_bytes(body[:4], 'little')}"
        case 4, 4:
            return body.decode("utf-16-le", "replace").partition("\0")[0].lstrip("\\").replace("\\", "/")
        case 3, 24:
            return body.decode("utf-8", "replace").partition("\0")[0] or "HTTP"
        case 3, 11 if len(body) >= 6:
            return f"network {body[:6].hex(':')}"
    return _PLAIN_NODES.get((kind, sub), f"node {kind}.{sub}")
