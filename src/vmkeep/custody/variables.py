"""UEFI variables read out of a firmware's variable store, as EDK2 (OVMF, AAVMF) writes it. No I/O.

The store begins with a firmware volume header (UEFI Platform Initialization specification, volume 3), then come the
header of the variable store and the variables one behind the other (EDK2: ``VARIABLE_STORE_HEADER``,
``VARIABLE_HEADER`` and ``AUTHENTICATED_VARIABLE_HEADER``, all numbers little-endian). A variable that is written anew
is put behind the others, and bits of the older one's state are cleared: so most of what lies there does not count.

A guest writes all of it, so every field is held against the store before it is used. Whatever the bytes are there is an
answer, in a time that grows with their number: what could be read, and a sentence about what could not.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import field
from enum import StrEnum
from typing import Final

from vmkeep.values import dataclass

GLOBAL: Final = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
IMAGE_SECURITY: Final = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"
SECURE_BOOT_ENABLE: Final = "f0a30bc7-af08-4556-99c4-001009c93a44"
_VENDORS: Final = {
    GLOBAL: "EFI global",
    IMAGE_SECURITY: "EFI image security",
    SECURE_BOOT_ENABLE: "EDK2 Secure Boot",
    "c076ec0c-7028-4399-a072-71ee5c448b9f": "EDK2 custom mode",
    "9073e4e0-60ec-4b6e-9903-4c223c260f3c": "EDK2 vendor keys",
    "d9bee56e-75dc-49d9-b4d7-b534210f637a": "EDK2 certificate database",
    "eb704011-1402-11d3-8e77-00a0c969723b": "EDK2 monotonic counter",
    "04b37fe8-f6ae-480b-bdd5-37d98c5e89aa": "EDK2 error flag",
    "4c19049f-4137-4dd3-9c10-8b97a83ffdfa": "EDK2 memory types",
    "59324945-ec44-4c0d-b1cd-9db139df070c": "EDK2 iSCSI",
    "4b47d616-a8d6-4552-9d44-ccad2e0f4cf9": "EDK2 iSCSI",
    "6339d487-26ba-424b-9a5d-687e25d740bc": "EDK2 TPM",
    "605dab50-e046-4300-abb6-3dd810dd8b23": "shim",
    "77fa9abd-0359-4d32-bd60-28f4e78f784b": "Microsoft",
    "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f": "boot loader interface",
}
KEY_DATABASES: Final = {"PK": GLOBAL, "KEK": GLOBAL, "db": IMAGE_SECURITY, "dbx": IMAGE_SECURITY}
"""The variables that hold certificates and hashes, and their vendors."""

_VOLUME: Final = struct.Struct("<16x16sQ4sIHHHBB")  # zeroes or code, GUID, length, "_FVH", ..., header length, checksum
_NV_DATA: Final = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_STORE: Final = struct.Struct("<16sIBBHI")  # GUID, size with this header, format, state
_AUTHENTICATED: Final = uuid.UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_PLAIN: Final = uuid.UUID("ddcf3616-3275-4164-98b6-fe85707ffe7d").bytes_le
_FORMATTED, _HEALTHY = 0x5A, 0xFE
# Start id, state, attributes, (monotonic count, time, key index,) bytes of the name, bytes of the data, vendor's GUID.
_AUTHENTICATED_HEADER: Final = struct.Struct("<HBxI28xII16s")
_PLAIN_HEADER: Final = struct.Struct("<HBxIII16s")
START_ID: Final = 0x55AA
ADDED: Final = 0x3F
_ADDED_AND_BEING_REPLACED: Final = 0x3E
_NOT_WRITTEN: Final = 0xFFFFFFFF
_ATTRIBUTES: Final = (
    (0x01, "non-volatile"),
    (0x02, "boot"),
    (0x04, "runtime"),
    (0x08, "hardware errors"),
    (0x10, "authenticated"),
    (0x20, "authenticated by time"),
    (0x40, "appended"),
)
QCOW2: Final = b"QFI\xfb"
"""What a store in a qcow2 image begins with, which is not looked into."""
_NAME_CHARACTERS: Final = 128


class SecureBoot(StrEnum):
    """Whether the firmware takes only signed boot loaders, as far as its variables tell."""

    ON = "on"
    OFF = "off"
    """A platform key is there, and SecureBootEnable says no."""
    NOT_SET_UP = "not-set-up"
    """There is no platform key (PK), so the firmware is in setup mode."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that counts. ``name`` can be shown: what steers a terminal is escaped, a long one is cut.

    ``key`` is name and vendor as they stand there, and tells two variables apart.
    """

    name: str
    vendor: str
    attributes: int
    size_bytes: int
    sha256: str
    key: bytes = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def vendor_name(self) -> str:
        """The vendor in words where its GUID is well known, else the GUID."""
        return _VENDORS.get(self.vendor, self.vendor)

    @property
    def attribute_words(self) -> tuple[str, ...]:
        """The attributes by their names."""
        return tuple(word for bit, word in _ATTRIBUTES if self.attributes & bit)

    @property
    def holds_signatures(self) -> bool:
        """Whether it is PK, KEK, db or dbx: a list of certificates and hashes (EFI_SIGNATURE_LIST)."""
        return KEY_DATABASES.get(self.name) == self.vendor


@dataclass(frozen=True, slots=True)
class VariableStore:
    """What could be read of a variable store. ``problem`` says why it is not all; None for a whole one.

    Of ``room_bytes`` for variables those that count take ``used_bytes``, and ``blank_bytes`` are not written yet. What
    is between was replaced or deleted, which the firmware clears when it needs room.
    """

    variables: tuple[Variable, ...] = ()
    problem: str | None = None
    room_bytes: int = 0
    used_bytes: int = 0
    blank_bytes: int = 0

    @property
    def secure_boot(self) -> SecureBoot | None:
        """How Secure Boot is set up; None where not all could be read.

        As EDK2 decides it: with a PK it is on, unless SecureBootEnable is 0.
        """
        if self.problem is not None:
            return None
        held = {(each.name, each.vendor): each.content for each in self.variables}
        if ("PK", GLOBAL) not in held:
            return SecureBoot.NOT_SET_UP
        return SecureBoot.OFF if held.get(("SecureBootEnable", SECURE_BOOT_ENABLE)) == b"\0" else SecureBoot.ON


@dataclass(frozen=True, slots=True)
class Record:
    """A variable as it lies in a store, with its header, from ``start`` to ``end``; ``state`` is the header's."""

    start: int
    end: int
    state: int
    variable: Variable


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """Where variables lie in a store: from ``first`` to ``end``, and nothing was written yet from ``blank`` on.

    ``records`` are those that may count; of those of one variable ``counting`` tells which does. ``volume_bytes`` is
    the length of the firmware volume. ``problem`` is as in VariableStore.
    """

    first: int = 0
    blank: int = 0
    end: int = 0
    volume_bytes: int = 0
    authenticated: bool = False
    records: tuple[Record, ...] = ()
    problem: str | None = None

    @property
    def counting(self) -> tuple[Record, ...]:
        """The records that count, in their order."""
        found: dict[bytes, Record] = {}
        for record in self.records:
            before = found.get(record.variable.key)
            # The firmware takes the first that is there, and one that is being replaced only where there is no other.
            if before is None or (record.state == ADDED and before.state != ADDED):
                found[record.variable.key] = record
        return tuple(sorted(found.values(), key=lambda record: record.start))

    @property
    def header_bytes(self) -> int:
        """The size of the header of a variable."""
        return (_AUTHENTICATED_HEADER if self.authenticated else _PLAIN_HEADER).size

    def has_shape_of(self, other: StoreLayout) -> bool:
        """Return whether a firmware that takes the one finds its way in the other."""
        one, two = (
            (each.first, each.end, each.volume_bytes, each.authenticated, each.problem is None)
            for each in (self, other)
        )
        return one == two


def read_variables(content: bytes) -> VariableStore:
    """Return the variables of a store in a raw image, by name; those that were deleted or replaced are left out."""
    layout = read_layout(content)
    variables = (record.variable for record in layout.counting)
    return VariableStore(
        tuple(sorted(variables, key=lambda each: (each.vendor_name, each.name))),
        layout.problem,
        room_bytes=max(0, layout.end - layout.first),
        used_bytes=sum(aligned(record.end) - record.start for record in layout.counting),
        blank_bytes=max(0, layout.end - layout.blank),
    )


def read_layout(content: bytes) -> StoreLayout:
    """Return where the variables of a store in a raw image lie."""
    found = _find_store(content)
    if isinstance(found, str):
        return StoreLayout(problem=found)
    first, end, header = found
    records: list[Record] = []
    blank, problem = first, None
    for step in _walk(content, first, end, header):
        if isinstance(step, str):
            problem = step
        elif isinstance(step, Record):
            records.append(step)
        else:
            blank = step
    (volume_bytes,) = struct.unpack_from("<Q", content, 32)
    return StoreLayout(first, blank, end, volume_bytes, header is _AUTHENTICATED_HEADER, tuple(records), problem)


def store_fault(content: bytes, before: bytes | None = None) -> str | None:
    """Return why a content is no good as a variable store; None for a whole one, and for what no such store ever was.

    ``before`` is the content of the version before: where that was a store of EDK2's, what is none is no good either.
    A firmware that meets such a store begins with empty variables.
    """
    found = _find_store(content)
    if not isinstance(found, str) or content.startswith(QCOW2):
        return None
    begun = content[16:32] == _NV_DATA or content[40:44] == b"_FVH"
    was_one = before is not None and not isinstance(_find_store(before), str)
    return found if begun or was_one else None


def _find_store(content: bytes) -> tuple[int, int, struct.Struct] | str:
    """Return where variables begin and end, and the layout of their headers; or why there are none."""
    if content.startswith(QCOW2):
        return "it is a qcow2 image, which is not looked into"
    if len(content) < _VOLUME.size:
        return "it is too short for a firmware volume"
    guid, length, signature, _, header_length, *_ = _VOLUME.unpack_from(content)
    if signature != b"_FVH" or guid != _NV_DATA:
        return "it is no firmware volume of variables"
    if header_length % 2 or not _VOLUME.size <= header_length <= len(content) - _STORE.size:
        return "its firmware volume header has a wrong length"
    if sum(struct.unpack_from(f"<{header_length // 2}H", content)) & 0xFFFF:
        return "the checksum of its firmware volume header is wrong"
    if length > len(content):
        return f"it is cut off: {len(content)} of {length} bytes are there"
    kind, size, form, state, *_ = _STORE.unpack_from(content, header_length)
    if kind not in (_AUTHENTICATED, _PLAIN):
        return "it holds a variable store of another kind"
    if form != _FORMATTED or state != _HEALTHY:
        return "its variable store is not formatted, or not marked as healthy"
    if not _STORE.size <= size <= length - header_length:
        return "its variable store is larger than its firmware volume"
    header = _AUTHENTICATED_HEADER if kind == _AUTHENTICATED else _PLAIN_HEADER
    return aligned(header_length + _STORE.size), header_length + size, header


def _walk(content: bytes, place: int, end: int, header: struct.Struct) -> Iterator[Record | str | int]:
    """Yield each that may count, at most one sentence about what follows the last, and where that begins."""
    while place + header.size <= end:
        start, state, attributes, name_bytes, data_bytes, vendor = header.unpack_from(content, place)
        if start != START_ID:
            break
        begin, name_at = place, place + header.size
        # A header whose writing was interrupted: the firmware takes it for one of nothing.
        written = _NOT_WRITTEN not in (attributes, name_bytes, data_bytes)
        data_at = name_at + (name_bytes if written else 0)
        behind = data_at + (data_bytes if written else 0)
        if behind > end:
            yield f"the variable at byte {place} reaches beyond the store"
            yield end
            return
        if state in (ADDED, _ADDED_AND_BEING_REPLACED) and written:
            variable = _variable(content[name_at:data_at], content[data_at:behind], vendor, attributes)
            yield Record(begin, behind, state, variable)
        place = aligned(behind)
    if content[place:end].strip(b"\xff"):
        yield f"what follows the last variable, at byte {place}, is not blank"
    yield min(place, end)


def _variable(name: bytes, data: bytes, vendor: bytes, attributes: int) -> Variable:
    text = name[: 2 * _NAME_CHARACTERS + 2].decode("utf-16-le", "replace").partition("\0")[0]
    return Variable(
        name=shown(text, _NAME_CHARACTERS),
        vendor=str(uuid.UUID(bytes_le=vendor)),
        attributes=attributes,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        key=vendor + name,
        content=data,
    )


def shown(text: str, most: int) -> str:
    """Return a guest's text as it can be shown on one line: what cannot be is escaped, and what is too much cut."""
    plain = "".join(char if char.isprintable() and char != "\\" else ascii(char)[1:-1] for char in text[: most + 1])
    return plain if len(plain) <= most else f"{plain[:most]}…"


def aligned(place: int) -> int:
    """Return where the next variable begins at the earliest."""
    return (place + 3) & ~3
