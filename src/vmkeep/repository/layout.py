"""The bytes of the format: names of objects, headers, trailers, indexes.

docs/internals/repository-format.md specifies them. All numbers are little-endian. Nothing here touches a key or a
store.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeAlias

from vmkeep.errors import ObjectDamaged, RepositoryForeign
from vmkeep.values import dataclass

Buffer: TypeAlias = bytes | bytearray | memoryview

MAJOR, MINOR = 1, 0
FORMAT_NAME = "vmkeep repository"
FORMAT_OBJECT = "format"
KEYRING, PACKS, POINTS, STATES, INTENTS, CONDEMNED = (
    "keyring/",
    "packs/",
    "points/",
    "states/",
    "intents/",
    "condemned/",
)
ENVELOPES = "envelopes/"  # since 1.1: the secrets of points
HOSTS = "hosts/"  # since 1.3: the public keys of those who sign points
PINS = "pins/"  # since 1.4: what keeps state versions besides points
DELETIONS = "deletions/"  # since 1.6: proofs of what was deleted on hosts
REMOVALS = "removals/"  # since 1.10: what hides a point until it is gone
PROTECTIONS = "protections/"  # since 1.10: what keeps a point from being removed
FORWARDS = "forwards/"  # since 1.11: where the frames of packs are that a prune moved
FEATURES = "features/"  # since 1.11: what a reader or writer must know of, or stay out
PRUNED = "pruned/"  # since 1.14: that packs were deleted
LOCKED = "locked/"  # since 1.14: when objects were locked anew
FOLDERS = (
    *(KEYRING, PACKS, POINTS, STATES, INTENTS, CONDEMNED, ENVELOPES, HOSTS, PINS, DELETIONS),
    *(REMOVALS, PROTECTIONS, FORWARDS, FEATURES, PRUNED, LOCKED),
)
RUN_PREFIX = "run-"
"""What the name of an object below ``condemned/`` begins with that holds a list of packs; others are for one pack."""
FORWARDS_FEATURE = "forwards"
KNOWN_FEATURES = frozenset({FORWARDS_FEATURE})

ID_BYTES = 32
NAME_BYTES = 16
SALT_BYTES = 32
TAG_BYTES = 16

FRAME_MAGIC = b"VMKF"
PACK_MAGIC = b"VMKPACK\n"
TRAILER_MAGIC = b"VMKTAIL\n"
VERSION = 1

_FRAME = struct.Struct("<4sBBBB16s32sII")
_PACK = struct.Struct("<8sBB6s16s16s16s")
_TRAILER = struct.Struct("<8sQII")
_ENTRY = struct.Struct("<B3s32sIII")
FRAME_HEADER_BYTES = _FRAME.size
PACK_HEADER_BYTES = _PACK.size
TRAILER_BYTES = _TRAILER.size
FRAME_OVERHEAD_BYTES = FRAME_HEADER_BYTES + TAG_BYTES

# Bounds on what a header may claim, so that neither a damaged length nor a hostile writer makes a reader allocate
# without limit.
BLOCK_BYTES_LIMIT = 16 * 1024 * 1024
PLAIN_BYTES_LIMIT = 64 * 1024 * 1024
SMALL_BYTES_LIMIT = 1024 * 1024
"""Of an object that is not encrypted: format, keyring, intent, condemned."""
LIST_BYTES_LIMIT = 4 * 1024 * 1024
"""Of a list of packs: condemned ones, or forwards."""
POINT_BYTES_LIMIT = 16 * 1024 * 1024
"""Of a record as JSON: libvirt's definitions have 4 MiB, and JSON writes what is not ASCII up to 3 times as long."""
STATE_BYTES_LIMIT = 8 * 1024 * 1024 + 64 * 1024
"""Of a state version: the largest content, and its header."""
INDEX_BYTES_LIMIT = 8 * 1024 * 1024
"""Of a pack's index: more than twice what writers close a pack at."""
_DEPTH_LIMIT = 64
_VALUES_LIMIT = 500_000
"""Of values in one JSON object: each takes about 100 bytes of memory, and 3 bytes of text."""
PACK_BYTES_LIMIT = 1 << 31
NODE_BYTES_LIMIT = 256 * 1024
"""Of a manifest node: the greatest, of 4096 children that each have a pack of their own, takes 238,088 bytes."""
DISK_BYTES_LIMIT = 1 << 51
"""Of a disk: what a qcow2 image with clusters of 64 KiB can hold, as a restore makes it."""


class FrameKind(IntEnum):
    BLOCK = 1
    NODE = 2
    PACK_INDEX = 3
    POINT = 4
    STATE = 5
    ENVELOPE = 6
    HOST = 7
    PIN = 8
    DELETION = 10
    REMOVAL = 11
    PROTECTION = 12


class PackKind(IntEnum):
    DATA = 1
    METADATA = 2


class Codec(IntEnum):
    STORED = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What stands in clear before each sealed frame; all of it is associated data of the seal."""

    kind: FrameKind
    codec: Codec
    key_id: bytes
    salt: bytes
    counter: int
    plain_bytes: int

    def pack(self) -> bytes:
        return _FRAME.pack(
            FRAME_MAGIC, VERSION, self.kind, self.codec, 0, self.key_id, self.salt, self.counter, self.plain_bytes
        )

    @classmethod
    def parse(cls, data: bytes, where: str) -> FrameHeader:
        """Raises ObjectDamaged naming ``where``; a frame of a newer version counts as damage of this major version."""
        if len(data) < FRAME_OVERHEAD_BYTES:
            raise ObjectDamaged(f"{where} is cut short", path=where)
        magic, version, kind, codec, flags, key_id, salt, counter, plain = _FRAME.unpack_from(data)
        if magic != FRAME_MAGIC or version != VERSION or flags != 0 or plain > PLAIN_BYTES_LIMIT:
            raise ObjectDamaged(f"{where} does not begin with a frame header", path=where)
        try:
            return cls(FrameKind(kind), Codec(codec), key_id, salt, counter, plain)
        except ValueError as error:
            raise ObjectDamaged(f"{where} has an unknown kind or codec", path=where) from error


@dataclass(frozen=True, slots=True)
class PackHeader:
    kind: PackKind
    key_id: bytes
    domain: bytes
    pack: bytes

    def pack_bytes(self) -> bytes:
        return _PACK.pack(PACK_MAGIC, VERSION, self.kind, bytes(6), self.key_id, self.domain, self.pack)

    @classmethod
    def parse(cls, data: bytes, pack: bytes) -> PackHeader:
        """Raises ObjectDamaged when the header is not that of the pack of this name."""
        where = pack_name(pack)
        if len(data) != PACK_HEADER_BYTES:
            raise ObjectDamaged(f"{where} is cut short", path=where)
        magic, version, kind, reserved, key_id, domain, named = _PACK.unpack(data)
        if magic != PACK_MAGIC or version != VERSION or reserved != bytes(6) or kind not in (1, 2):
            raise ObjectDamaged(f"{where} does not begin with a pack header", path=where)
        if named != pack:
            raise ObjectDamaged(f"{where} holds another pack ({named.hex()})", path=where)
        return cls(PackKind(kind), key_id, domain, named)


@dataclass(frozen=True, slots=True)
class PackEntry:
    """Where one frame lies in its pack."""

    kind: FrameKind
    id: bytes
    offset: int
    length: int
    plain_bytes: int


def sealed_bytes_limit(plain_bytes: int) -> int:
    """Return the most bytes that a frame with so many bytes of content can have.

    Ours never grow by being compressed; those of another writer may, by what a compressor adds at most.
    """
    return FRAME_OVERHEAD_BYTES + plain_bytes + (plain_bytes >> 7) + 1024


def pack_index(entries: Sequence[PackEntry]) -> bytes:
    """Return the plain text of a pack's index: a count, then one 48-byte row for each frame in order of offset."""
    rows = [
        _ENTRY.pack(entry.kind, bytes(3), entry.id, entry.offset, entry.length, entry.plain_bytes) for entry in entries
    ]
    return struct.pack("<I", len(rows)) + b"".join(rows)


def parse_index(data: bytes, index_offset: int, pack: bytes) -> tuple[PackEntry, ...]:
    """Raises ObjectDamaged unless the rows cover every byte between the pack's header and its index."""
    where = pack_name(pack)
    if len(data) < 4 or len(data) != 4 + _ENTRY.size * int.from_bytes(data[:4], "little"):
        raise ObjectDamaged(f"the index of {where} has a wrong length", path=where)
    entries = []
    expected = PACK_HEADER_BYTES
    for kind, reserved, id_, offset, length, plain in _ENTRY.iter_unpack(data[4:]):
        if kind not in (FrameKind.BLOCK, FrameKind.NODE) or reserved != bytes(3):
            raise ObjectDamaged(f"the index of {where} has an unknown row", path=where)
        if offset != expected or length < FRAME_OVERHEAD_BYTES:
            raise ObjectDamaged(f"the index of {where} leaves a gap", path=where)
        expected = offset + length
        entries.append(PackEntry(FrameKind(kind), id_, offset, length, plain))
    if expected != index_offset:
        raise ObjectDamaged(f"the index of {where} leaves a gap", path=where)
    return tuple(entries)


def pack_trailer(index_offset: int, index_length: int) -> bytes:
    return _TRAILER.pack(TRAILER_MAGIC, index_offset, index_length, 0)


def parse_trailer(data: bytes, size_bytes: int, pack: bytes) -> tuple[int, int]:
    """Return (start, length) of the index frame; raises ObjectDamaged when the trailer cannot be right."""
    where = pack_name(pack)
    if len(data) != TRAILER_BYTES:
        raise ObjectDamaged(f"{where} is cut short", path=where)
    magic, offset, length, reserved = _TRAILER.unpack(data)
    if (
        magic != TRAILER_MAGIC
        or reserved != 0
        or offset < PACK_HEADER_BYTES
        or offset + length + TRAILER_BYTES != size_bytes
    ):
        raise ObjectDamaged(f"{where} does not end with a pack trailer", path=where)
    return offset, length


def pack_name(pack: bytes) -> str:
    name = pack.hex()
    return f"{PACKS}{name[:2]}/{name}"


_PACK_NAME = re.compile(r"packs/([0-9a-f]{2})/(\1[0-9a-f]{30})")
_NAME = re.compile(r"[0-9a-f]{32}")


def pack_of_name(path: str) -> bytes | None:
    """Return the pack id of an object's name, or None for what is not a pack's name."""
    match = _PACK_NAME.fullmatch(path)
    return bytes.fromhex(match[2]) if match else None


def is_name(text: str) -> bool:
    """Whether the text is the name of a point, a state version or a writer: 32 hexadecimal digits, small letters."""
    return _NAME.fullmatch(text) is not None


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return the one way in which JSON is written here: sorted keys, no spaces, ASCII, a line feed at the end."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"


def parse_canonical(data: bytes, where: str) -> dict[str, Any]:
    """Return the object; raises ObjectDamaged when it is no JSON object or is written in any other way.

    What it would take in memory is looked at before it is parsed, and how deep it is before anybody goes into it: what
    can just be parsed here may be too deep for whoever writes it again with more calls above.
    """
    value: dict[str, Any]
    # Each value but the first has a comma or a bracket before it. Texts have some too, so this is an upper bound.
    if len(data) > _VALUES_LIMIT and data.count(b",") + data.count(b"[") + data.count(b"{") > _VALUES_LIMIT:
        raise ObjectDamaged(f"{where} has more than {_VALUES_LIMIT} values", path=where)
    try:
        value = json.loads(data)
        same = isinstance(value, dict) and canonical(value) == data
    except (ValueError, RecursionError) as error:
        raise ObjectDamaged(f"{where} is not readable", path=where) from error
    if not same:
        raise ObjectDamaged(f"{where} is not written as it should be", path=where)
    if data.count(b"[") + data.count(b"{") > _DEPTH_LIMIT and _is_deeper(value, _DEPTH_LIMIT):
        raise ObjectDamaged(f"{where} is deeper than {_DEPTH_LIMIT}", path=where)
    return value


def _is_deeper(value: Any, limit: int) -> bool:
    waiting: list[tuple[Any, int]] = [(value, 1)]
    while waiting:
        held, depth = waiting.pop()
        if depth > limit:
            return True
        inner = held.values() if isinstance(held, dict) else held if isinstance(held, list) else ()
        waiting += [(each, depth + 1) for each in inner if isinstance(each, dict | list)]
    return False


def format_object(repository: str) -> bytes:
    return canonical({"format": FORMAT_NAME, "major": MAJOR, "minor": MINOR, "repository": repository})


def parse_format(data: bytes, location: str) -> str:
    """Return the repository's id; raises RepositoryForeign for anything that this reader must not touch."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("format") != FORMAT_NAME:
        raise RepositoryForeign(f"{location} holds something that is not a vmkeep repository", path=location)
    major, repository = value.get("major"), value.get("repository")
    if isinstance(major, int) and major > MAJOR:
        raise RepositoryForeign(
            f"{location} is a vmkeep repository of a newer format ({major}); this vmkeep reads format {MAJOR}",
            path=location,
            hint="Use a newer vmkeep; nothing was changed.",
        )
    if major != MAJOR or not isinstance(repository, str) or not is_name(repository):
        raise RepositoryForeign(f"{location} has a damaged object {FORMAT_OBJECT}", path=location)
    return repository
