"""Frames: compressing, sealing and opening them, and the ids of what is inside.

Each object draws a 256-bit salt, which with a data key gives a key of its own; the nonce is a counter under
that key. So no nonce is used twice whatever number of writers share a data key, and a frame can be copied
into another pack as it is, because its salt and counter travel with it.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from types import MappingProxyType
from typing import TypeAlias

import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from vmkeep.errors import ObjectDamaged
from vmkeep.repository.compression import zstd
from vmkeep.repository.layout import (
    BLOCK_BYTES_LIMIT,
    FRAME_HEADER_BYTES,
    INDEX_BYTES_LIMIT,
    NODE_BYTES_LIMIT,
    POINT_BYTES_LIMIT,
    SALT_BYTES,
    SMALL_BYTES_LIMIT,
    STATE_BYTES_LIMIT,
    Buffer,
    Codec,
    FrameHeader,
    FrameKind,
    sealed_bytes_limit,
)
from vmkeep.values import dataclass

Random: TypeAlias = Callable[[int], bytes]
Compress: TypeAlias = Callable[[Sequence[Buffer]], Sequence[Buffer]]

FRAME_INFO = b"vmkeep frame v1"
ID_CONTEXT = "vmkeep 2026 repository v1 id "
ID_NAMES = {
    FrameKind.BLOCK: "block",
    FrameKind.NODE: "node",
    FrameKind.PACK_INDEX: "pack index",
    FrameKind.POINT: "point",
    FrameKind.STATE: "state version",
    FrameKind.ENVELOPE: "envelope",
    FrameKind.HOST: "host",
    FrameKind.PIN: "pin",
    FrameKind.DELETION: "deletion",
    FrameKind.REMOVAL: "removal",
    FrameKind.PROTECTION: "protection",
}
PLAIN_LIMITS: Mapping[FrameKind, int] = MappingProxyType(
    {
        FrameKind.BLOCK: BLOCK_BYTES_LIMIT,
        FrameKind.NODE: NODE_BYTES_LIMIT,
        FrameKind.PACK_INDEX: INDEX_BYTES_LIMIT,
        FrameKind.POINT: POINT_BYTES_LIMIT,
        FrameKind.STATE: STATE_BYTES_LIMIT,
        FrameKind.ENVELOPE: POINT_BYTES_LIMIT,
    }
)
"""What the plain text of each kind can have, in bytes; a kind that is not named has small objects only."""
_UNDECLARED = -1
_NONCE = struct.Struct("<Q4x")
_CACHED_KEYS = 1024
_local = threading.local()


def _expand(data: bytes, plain_bytes: int) -> bytes:
    """Expand a frame of zstd. Raises ZstdError, before anything is allocated, when it declares another length.

    python-zstandard 0.25 allocates what a frame declares, whatever ``max_output_size`` is.
    """
    declared = zstandard.frame_content_size(data)
    if declared not in (plain_bytes, _UNDECLARED):
        raise zstandard.ZstdError(f"the frame declares {declared} bytes")
    try:
        decompressor = _local.decompressor
    except AttributeError:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor()
    return bytes(decompressor.decompress(data, max_output_size=plain_bytes, allow_extra_data=False))


@dataclass(frozen=True, slots=True)
class Domain:
    """The secrets of a dedup domain: blocks are shared within it, and their ids mean nothing outside."""

    id: bytes
    name: str
    id_key: bytes = field(repr=False)
    data_keys: Mapping[bytes, bytes] = field(repr=False)
    active: bytes

    def id_keys(self) -> dict[FrameKind, bytes]:
        """Return one key for each kind, so that a block and a node with the same bytes never share an id."""
        return {
            kind: blake3(self.id_key, derive_key_context=ID_CONTEXT + name).digest() for kind, name in ID_NAMES.items()
        }


def _data_keys(domains: Mapping[bytes, Domain]) -> dict[bytes, tuple[bytes, bytes]]:
    return {key: (value.id, data) for value in domains.values() for key, data in value.data_keys.items()}


def frame_bytes_limit(kind: FrameKind) -> int:
    """Return what the frame of that kind can have at most, in bytes."""
    return sealed_bytes_limit(PLAIN_LIMITS.get(kind, SMALL_BYTES_LIMIT))


class SealingKey:
    """The key that one salt gives: seals the frames of one object under counters the caller gives out once each."""

    __slots__ = ("_aead", "key_id", "salt")

    def __init__(self, key_id: bytes, data_key: bytes, salt: bytes) -> None:
        self.key_id = key_id
        self.salt = salt
        self._aead = AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=FRAME_INFO).derive(data_key))

    def seal(self, kind: FrameKind, id_: bytes, codec: Codec, body: Buffer, plain_bytes: int, counter: int) -> bytes:
        header = FrameHeader(kind, codec, self.key_id, self.salt, counter, plain_bytes).pack()
        return header + self._aead.encrypt(_NONCE.pack(counter), body, header + id_)

    def seal_into(
        self, kind: FrameKind, id_: bytes, codec: Codec, body: Buffer, plain_bytes: int, counter: int, room: memoryview
    ) -> None:
        """Write the frame that ``seal`` returns into ``room``, which has exactly its length, without another copy."""
        header = FrameHeader(kind, codec, self.key_id, self.salt, counter, plain_bytes).pack()
        room[: len(header)] = header
        self._aead.encrypt_into(_NONCE.pack(counter), body, header + id_, room[len(header) :])

    def open(self, counter: int, header: bytes, sealed: bytes | memoryview, id_: bytes) -> bytes:
        return self._aead.decrypt(_NONCE.pack(counter), sealed, header + id_)


class Sealer:
    """Seals for one domain and opens for all domains whose keys are given; safe to use from many threads.

    ``later`` returns the domains with data keys that another process has added since.
    """

    def __init__(
        self,
        domains: Mapping[bytes, Domain],
        domain: Domain,
        *,
        random: Random = os.urandom,
        compress: Compress = zstd,
        later: Callable[[], Mapping[bytes, Domain]] | None = None,
    ) -> None:
        self.domain = domain
        self.random = random
        self._compress = compress
        self._id_keys = {key: value.id_keys() for key, value in domains.items()}
        self._data_keys = _data_keys(domains)
        self._later = later
        self._cache: OrderedDict[tuple[bytes, bytes], SealingKey] = OrderedDict()
        self._lock = threading.Lock()

    def id_of(self, kind: FrameKind, data: Buffer, domain: bytes | None = None) -> bytes:
        """Return the 32-byte id of a plain text (or of a name) of that kind within the domain."""
        return blake3(data, key=self._id_keys[domain or self.domain.id][kind]).digest()

    def id_of_header(self, header: bytes, domain: bytes, where: str) -> bytes:
        """Return the id under which a pack's index is sealed; raises ObjectDamaged for a domain that is not known."""
        if domain not in self._id_keys:
            raise ObjectDamaged(f"{where} names a dedup domain that is not in the keyring", path=where)
        return self.id_of(FrameKind.PACK_INDEX, header, domain)

    def new_key(self) -> SealingKey:
        """Return a key under a fresh salt: one for each pack, and for each object that is a single frame."""
        active = self.domain.active
        return SealingKey(active, self.domain.data_keys[active], self.random(SALT_BYTES))

    def compress(self, pieces: Sequence[Buffer]) -> list[tuple[Codec, Buffer]]:
        """Return codec and body of each piece: compressed when that saves at least one part in 32."""
        return [
            (Codec.ZSTD, body)
            if len(body) <= len(plain) - (len(plain) >> 5) and len(body) < len(plain)
            else (Codec.STORED, plain)
            for plain, body in zip(pieces, self._compress(pieces) if pieces else (), strict=True)
        ]

    def seal_alone(self, kind: FrameKind, name: str, data: bytes, *, compressed: bool = True) -> bytes:
        """Return an object of one frame whose id is that of its own name, so that a renamed object does not open."""
        ((codec, body),) = self.compress([data]) if compressed else [(Codec.STORED, data)]
        return self.new_key().seal(kind, self.id_of(kind, name.encode()), codec, body, len(data), 0)

    def open_alone(self, kind: FrameKind, name: str, frame: bytes, where: str) -> bytes:
        """Return what ``seal_alone`` sealed; raises ObjectDamaged."""
        header = FrameHeader.parse(frame, where)
        domain = self._data_key(header.key_id, where)[0]
        return self._open(kind, self.id_of(kind, name.encode(), domain), frame, where)

    def open(self, kind: FrameKind, id_: bytes, frame: bytes | memoryview, where: str) -> bytes:
        """Return the plain text of a block or node and prove that it has this id; raises ObjectDamaged."""
        plain = self._open(kind, id_, frame, where)
        key_id = bytes(frame[8:24])
        if self.id_of(kind, plain, self._data_keys[key_id][0]) != id_:
            raise ObjectDamaged(f"{where} holds other data than its id says", path=where)
        return plain

    def open_index(self, id_: bytes, frame: bytes | memoryview, where: str) -> bytes:
        """Return the plain text of a pack's index, whose id is that of the pack's header; raises ObjectDamaged."""
        return self._open(FrameKind.PACK_INDEX, id_, frame, where)

    def _open(self, kind: FrameKind, id_: bytes, frame: bytes | memoryview, where: str) -> bytes:
        head = bytes(frame[:FRAME_HEADER_BYTES])
        header = FrameHeader.parse(head + bytes(16), where) if len(frame) >= FRAME_HEADER_BYTES + 16 else None
        if header is None:
            raise ObjectDamaged(f"{where} is cut short", path=where)
        if header.kind is not kind:
            raise ObjectDamaged(f"{where} is of another kind", path=where)
        if header.plain_bytes > PLAIN_LIMITS.get(kind, SMALL_BYTES_LIMIT):
            raise ObjectDamaged(f"{where} is larger than what can be there", path=where)
        key = self._sealing_key(header, where)
        try:
            body = key.open(header.counter, head, memoryview(frame)[FRAME_HEADER_BYTES:], id_)
            plain = _expand(body, header.plain_bytes) if header.codec is Codec.ZSTD else body
        except (InvalidTag, zstandard.ZstdError) as error:
            raise ObjectDamaged(f"{where} was changed: its seal does not open", path=where) from error
        if len(plain) != header.plain_bytes:
            raise ObjectDamaged(f"{where} has a wrong length", path=where)
        return plain

    def _data_key(self, key_id: bytes, where: str) -> tuple[bytes, bytes]:
        try:
            if key_id not in self._data_keys and self._later is not None:
                self._data_keys = _data_keys(self._later())
            return self._data_keys[key_id]
        except KeyError as error:
            raise ObjectDamaged(
                f"{where} names a key ({key_id.hex()}) that is not in the keyring", path=where
            ) from error

    def _sealing_key(self, header: FrameHeader, where: str) -> SealingKey:
        name = (header.key_id, header.salt)
        with self._lock:
            key = self._cache.get(name)
            if key is not None:
                self._cache.move_to_end(name)
                return key
        key = SealingKey(header.key_id, self._data_key(header.key_id, where)[1], header.salt)
        with self._lock:
            self._cache[name] = key
            if len(self._cache) > _CACHED_KEYS:
                self._cache.popitem(last=False)
        return key
