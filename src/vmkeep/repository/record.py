"""What is recorded of a point and of a state version, as values and as JSON.

``from_json`` is the one way from JSON to a record, for everybody: it parses (``vmkeep.repository.fields``), so nobody
who has a record needs to look at it again before its target is a file's name, its time is shown, or its numbers are in
a query. A record that does not parse is one damaged point and harms nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType
from typing import Any

from vmkeep.errors import InvalidRequest, ObjectDamaged
from vmkeep.planning.codes import Mode
from vmkeep.planning.model import KnownDisk, KnownPoint
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import (
    BLOCK_BYTES_LIMIT,
    DISK_BYTES_LIMIT,
    FRAME_OVERHEAD_BYTES,
    NODE_BYTES_LIMIT,
    PACK_BYTES_LIMIT,
    sealed_bytes_limit,
)
from vmkeep.values import dataclass

FAN_OUT = 32
BLOCK_BYTES = 64 * 1024
STATE_LIMITS: Mapping[str, int] = MappingProxyType({"tpm": 1024 * 1024, "nvram": 8 * 1024 * 1024})
STATE_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"tpm": ("tpm2/tpm2-00.permall", "tpm1.2/tpm-00.permall"), "nvram": ("nvram.fd",)}
)
"""The names under which state files are kept: those of swtpm below a VM's directory, and ours."""


@dataclass(frozen=True, slots=True)
class BlockRef:
    """Where a sealed block or manifest node lies: the pack (16 bytes) and the range of its frame."""

    id: bytes
    pack: bytes
    offset: int
    length: int

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id.hex(), "length": self.length, "offset": self.offset, "pack": self.pack.hex()}

    @classmethod
    def from_json(cls, value: Any) -> BlockRef:
        """Return a reference to a node. Raises WrongField."""
        taken = Fields(value)
        return cls(
            bytes.fromhex(taken.take("id", fields.digest)),
            bytes.fromhex(taken.take("pack", fields.name)),
            taken.take("offset", fields.numbered(most=PACK_BYTES_LIMIT)),
            taken.take(
                "length",
                fields.numbered(least=FRAME_OVERHEAD_BYTES, most=sealed_bytes_limit(NODE_BYTES_LIMIT)),
            ),
        )


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """A disk in the repository: its geometry and the root of its manifest (None when every block is zero)."""

    size_bytes: int
    block_bytes: int
    fan_out: int
    domain: str
    root: BlockRef | None

    @property
    def blocks(self) -> int:
        return -(-self.size_bytes // self.block_bytes)

    def plain_bytes(self, block: int) -> int:
        """Return the length of a block's content: the block size, or what remains of the disk for the last one."""
        return min(self.block_bytes, self.size_bytes - block * self.block_bytes)

    def as_json(self) -> dict[str, Any]:
        return {
            "block_bytes": self.block_bytes,
            "domain": self.domain,
            "fan_out": self.fan_out,
            "root": None if self.root is None else self.root.as_json(),
            "size_bytes": self.size_bytes,
        }

    @classmethod
    def from_json(cls, value: Any) -> StoredDisk:
        """Raises WrongField for a geometry that no tree has."""
        taken = Fields(value)
        disk = cls(
            taken.take("size_bytes", fields.numbered(most=DISK_BYTES_LIMIT)),
            taken.take("block_bytes", fields.numbered(least=512, most=BLOCK_BYTES_LIMIT)),
            taken.take("fan_out", fields.numbered(least=2, most=4096)),
            taken.take("domain", fields.name),
            taken.take("root", fields.optional(BlockRef.from_json)),
        )
        if disk.block_bytes % 512 or (disk.size_bytes == 0 and disk.root is not None):
            raise WrongField("no geometry of a disk")
        return disk


@dataclass(frozen=True, slots=True)
class PointDisk:
    """One disk of a point: how it was read ("full", "incremental", "scan", ...) and why, and where it is stored."""

    target: str
    mode: str
    reason: str
    source: str
    format: str
    bytes_read: int
    bytes_stored: int
    stored: StoredDisk


@dataclass(frozen=True, slots=True)
class ExcludedDisk:
    target: str
    reason: str


@dataclass(frozen=True, slots=True)
class StateRef:
    """The state version that belongs to a point. ``because`` is why it has its generation, empty where nobody says."""

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str
    because: str = field(default="", compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return it as a point or a pin has it."""
        value = _slots(self)
        if not self.because:
            del value["because"]
        return value


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret that is in the envelope of a point or a pin: what libvirt uses it for, and its UUID. Never its value."""

    usage: str
    uuid: str


@dataclass(frozen=True, slots=True)
class StateVersion:
    """What is known of one immutable copy of a state file. ``created`` is ISO 8601 in UTC with microseconds."""

    id: str
    vm_uuid: str
    kind: str
    generation: int
    file: str
    owner: str
    group: str
    mode: int
    sha256: str
    size_bytes: int
    created: str

    def ref(self) -> StateRef:
        return StateRef(self.kind, self.id, self.generation, self.sha256, self.size_bytes, self.file)

    def as_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> StateVersion:
        """Raises ObjectDamaged."""
        try:
            taken = Fields(value)
            kind = taken.take("kind", fields.one_of(*STATE_LIMITS))
            return cls(
                id=taken.take("id", fields.name),
                vm_uuid=taken.take("vm_uuid", fields.uuid),
                kind=kind,
                generation=taken.take("generation", fields.numbered(least=1)),
                file=taken.take("file", fields.one_of(*STATE_FILES[kind])),
                owner=taken.take("owner", fields.line),
                group=taken.take("group", fields.line),
                mode=taken.take("mode", fields.numbered(most=0o7777)),
                sha256=taken.take("sha256", fields.digest),
                size_bytes=taken.take("size_bytes", fields.numbered(least=1, most=STATE_LIMITS[kind])),
                created=taken.take("created", fields.instant),
            )
        except WrongField as error:
            raise ObjectDamaged(f"{where} {error}", path=where) from error


@dataclass(frozen=True, slots=True)
class PointRecord:
    """The complete state of a VM at one instant, as it stands in the repository.

    ``sequence`` is its order number among the points of its VM, 1 or more; None in one that was written before 1.2.
    ``extra`` holds top-level fields that a later minor version added; they survive being read and written. ``digest``
    is the SHA-256 of the record as it is stored, empty where it is not: two that differ in it are different points.
    """

    id: str
    vm_uuid: str
    vm_name: str
    kind: str
    parent: str | None
    created: str
    host: str
    checkpoint: str | None
    pause_ms: float
    labels: Mapping[str, str]
    disks: tuple[PointDisk, ...]
    excluded: tuple[ExcludedDisk, ...]
    states: tuple[StateRef, ...]
    definition: str
    warnings: tuple[str, ...] = ()
    secrets: tuple[SecretRef, ...] = ()
    sequence: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    digest: str = field(default="", compare=False)

    def as_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        lists = {
            "disks": [{**_slots(disk), "stored": disk.stored.as_json()} for disk in self.disks],
            "excluded": [_slots(disk) for disk in self.excluded],
            "labels": dict(self.labels),
            "states": [state.as_json() for state in self.states],
            "warnings": list(self.warnings),
        }
        # A point without secrets is written as in 1.0, one without a number as in 1.1.
        secrets = {"secrets": [_slots(secret) for secret in self.secrets]} if self.secrets else {}
        sequence = {} if self.sequence is None else {"sequence": self.sequence}
        return {**self.extra, **plain, **lists, **secrets, **sequence}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str, *, digest: str = "") -> PointRecord:
        """Parse a record, with the digest of the bytes that it was read from.

        Raises ObjectDamaged, with ``where`` and what is wrong, for one that no vmkeep writes.
        """
        try:
            return cls._parsed(value, digest)
        except WrongField as error:
            raise ObjectDamaged(f"{where} {error}", path=where) from error

    @classmethod
    def _parsed(cls, value: Mapping[str, Any], digest: str) -> PointRecord:
        taken = Fields(value)
        record = cls(
            id=taken.take("id", fields.name),
            vm_uuid=taken.take("vm_uuid", fields.uuid),
            vm_name=taken.take("vm_name", fields.vm_name),
            kind=taken.take("kind", fields.one_of("full", "incremental")),
            parent=taken.take("parent", fields.optional(fields.name)),
            created=taken.take("created", fields.instant),
            host=taken.take("host", fields.line),
            checkpoint=taken.take("checkpoint", fields.optional(fields.line)),
            pause_ms=taken.take("pause_ms", fields.milliseconds),
            labels=taken.take("labels", fields.texts_by_name),
            disks=taken.each("disks", _disk),
            excluded=taken.each("excluded", _excluded),
            states=taken.each("states", state_ref),
            definition=taken.take("definition", fields.xml),
            warnings=taken.each("warnings", fields.lines),
            secrets=taken.each("secrets", secret_ref) if "secrets" in value else (),
            sequence=taken.take("sequence", fields.numbered(least=1)) if "sequence" in value else None,
            extra=fields.later({name: content for name, content in value.items() if name not in _KNOWN_FIELDS}),
            digest=digest,
        )
        if record.parent == record.id:
            raise WrongField("is its own parent")
        # What stands twice would be one file for two, or the first for one reader and the last for another.
        targets = [disk.target for disk in record.disks] + [disk.target for disk in record.excluded]
        fields.all_different(targets, "a disk")
        fields.all_different((state.kind for state in record.states), "a kind of state file")
        fields.all_different((secret.uuid for secret in record.secrets), "a secret")
        return record


_PLAIN_FIELDS = (
    "id",
    "vm_uuid",
    "vm_name",
    "kind",
    "parent",
    "created",
    "host",
    "checkpoint",
    "pause_ms",
    "definition",
)
_KNOWN_FIELDS = frozenset({*_PLAIN_FIELDS, "disks", "excluded", "states", "warnings", "labels", "secrets", "sequence"})


def refuse_unreadable(record: PointRecord) -> None:
    """Raise InvalidRequest when a reader would take the record of a new point for damage."""
    try:
        PointRecord._parsed(record.as_json(), "")
    except WrongField as error:
        raise InvalidRequest(
            f"the point of VM {record.vm_name!r} {error}, so nothing could read it again",
            vm=record.vm_name,
            hint="Give the VM, the image or the label another name: virsh domrename renames a VM that is off.",
        ) from error


def _disk(value: Any) -> PointDisk:
    taken = Fields(value)
    return PointDisk(
        target=taken.take("target", fields.target),
        mode=taken.take("mode", fields.one_of(*Mode)),
        reason=taken.take("reason", fields.line),
        source=taken.take("source", fields.place_of_disk),
        format=taken.take("format", fields.word),
        bytes_read=taken.take("bytes_read", fields.number),
        bytes_stored=taken.take("bytes_stored", fields.number),
        stored=taken.take("stored", StoredDisk.from_json),
    )


def _excluded(value: Any) -> ExcludedDisk:
    taken = Fields(value)
    return ExcludedDisk(taken.take("target", fields.target), taken.take("reason", fields.line))


def state_ref(value: Any) -> StateRef:
    """Parse what a point or a pin says of a state version; raises WrongField."""
    taken = Fields(value)
    kind = taken.take("kind", fields.one_of(*STATE_LIMITS))
    return StateRef(
        kind=kind,
        version_id=taken.take("version_id", fields.name),
        generation=taken.take("generation", fields.numbered(least=1)),
        sha256=taken.take("sha256", fields.digest),
        size_bytes=taken.take("size_bytes", fields.numbered(least=1, most=STATE_LIMITS[kind])),
        file=taken.take("file", fields.one_of(*STATE_FILES[kind])),
        because=taken.take("because", fields.word) if "because" in value else "",
    )


def secret_ref(value: Any) -> SecretRef:
    """Parse what a point or a pin says of a secret; raises WrongField."""
    taken = Fields(value)
    return SecretRef(taken.take("usage", fields.line), taken.take("uuid", fields.uuid))


def _slots(value: PointDisk | ExcludedDisk | StateRef | SecretRef) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def known_point(record: PointRecord) -> KnownPoint:
    """Return what the plan of another point needs to know of this one."""
    disks = tuple(
        KnownDisk(disk.target, disk.source, disk.stored.size_bytes, disk.format, bitmap=disk.mode != Mode.SCAN)
        for disk in record.disks
    )
    return KnownPoint(record.id, disks, record.created, record.parent, record.sequence)
