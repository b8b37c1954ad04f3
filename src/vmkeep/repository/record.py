"""What is recorded of a point and of a state version, as values and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from vmkeep.errors import ObjectDamaged
from vmkeep.repository.layout import BLOCK_BYTES_LIMIT, FRAME_OVERHEAD_BYTES, NAME_BYTES, is_name

FAN_OUT = 32
BLOCK_BYTES = 64 * 1024
STATE_LIMITS: Mapping[str, int] = MappingProxyType({"tpm": 1024 * 1024, "nvram": 8 * 1024 * 1024})


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
    def from_json(cls, value: Mapping[str, Any]) -> BlockRef:
        ref = cls(
            bytes.fromhex(value["id"]), bytes.fromhex(value["pack"]), _number(value["offset"]), _number(value["length"])
        )
        if len(ref.id) != 32 or len(ref.pack) != NAME_BYTES or ref.length < FRAME_OVERHEAD_BYTES:
            raise ValueError("block reference")
        return ref


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
    def from_json(cls, value: Mapping[str, Any]) -> StoredDisk:
        root = value["root"]
        disk = cls(
            _number(value["size_bytes"]),
            _number(value["block_bytes"]),
            _number(value["fan_out"]),
            str(value["domain"]),
            None if root is None else BlockRef.from_json(root),
        )
        if (
            not 512 <= disk.block_bytes <= BLOCK_BYTES_LIMIT
            or not 2 <= disk.fan_out <= 4096
            or not is_name(disk.domain)
        ):
            raise ValueError("disk geometry")
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
    """The state version that belongs to a point."""

    kind: str
    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    file: str


@dataclass(frozen=True, slots=True)
class SecretRef:
    """A secret that is in the envelope of a point: what libvirt uses it for, and its UUID. Never its value."""

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
        return {name: getattr(self, name) for name in _STATE_FIELDS}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> StateVersion:
        try:
            return cls(**{name: _typed(value[name], kind) for name, kind in _STATE_FIELDS.items()})
        except (KeyError, TypeError, ValueError) as error:
            raise ObjectDamaged(f"{where} lacks a field or has one of a wrong type", path=where) from error


_STATE_FIELDS: Mapping[str, type] = {
    "id": str,
    "vm_uuid": str,
    "kind": str,
    "generation": int,
    "file": str,
    "owner": str,
    "group": str,
    "mode": int,
    "sha256": str,
    "size_bytes": int,
    "created": str,
}


@dataclass(frozen=True, slots=True)
class PointRecord:
    """The complete state of a VM at one instant, as it stands in the repository.

    ``sequence`` is its order number among the points of its VM, 1 or more; None in one that was written before 1.2.
    ``extra`` holds top-level fields that a later minor version added; they survive being read and written.
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

    def as_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in _POINT_FIELDS}
        lists = {
            "disks": [{**_slots(disk), "stored": disk.stored.as_json()} for disk in self.disks],
            "excluded": [_slots(disk) for disk in self.excluded],
            "labels": dict(self.labels),
            "states": [_slots(state) for state in self.states],
            "warnings": list(self.warnings),
        }
        # A point without secrets is written as in 1.0, one without a number as in 1.1.
        secrets = {"secrets": [_slots(secret) for secret in self.secrets]} if self.secrets else {}
        sequence = {} if self.sequence is None else {"sequence": self.sequence}
        return {**self.extra, **plain, **lists, **secrets, **sequence}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> PointRecord:
        """Raises ObjectDamaged when a field is missing or of a wrong type."""
        try:
            plain = {name: _typed(value[name], kind) for name, kind in _POINT_FIELDS.items()}
            known = {*plain, "disks", "excluded", "states", "warnings", "labels", "secrets", "sequence"}
            return cls(
                **plain,
                labels={str(name): _typed(text, str) for name, text in value["labels"].items()},
                disks=tuple(_disk(disk) for disk in value["disks"]),
                excluded=tuple(ExcludedDisk(str(disk["target"]), str(disk["reason"])) for disk in value["excluded"]),
                states=tuple(_state_ref(state) for state in value["states"]),
                warnings=tuple(_typed(text, str) for text in value["warnings"]),
                secrets=tuple(
                    SecretRef(_typed(secret["usage"], str), _typed(secret["uuid"], str))
                    for secret in value.get("secrets", ())
                ),
                sequence=None if "sequence" not in value else _order_number(value["sequence"]),
                extra={name: content for name, content in value.items() if name not in known},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ObjectDamaged(f"{where} lacks a field or has one of a wrong type", path=where) from error


_POINT_FIELDS: Mapping[str, Any] = {
    "id": str,
    "vm_uuid": str,
    "vm_name": str,
    "kind": str,
    "parent": (str, type(None)),
    "created": str,
    "host": str,
    "checkpoint": (str, type(None)),
    "pause_ms": (int, float),
    "definition": str,
}


def _disk(value: Mapping[str, Any]) -> PointDisk:
    target, mode, reason, source, format_ = (
        _typed(value[name], str) for name in ("target", "mode", "reason", "source", "format")
    )
    return PointDisk(
        target,
        mode,
        reason,
        source,
        format_,
        _number(value["bytes_read"]),
        _number(value["bytes_stored"]),
        StoredDisk.from_json(value["stored"]),
    )


def _state_ref(value: Mapping[str, Any]) -> StateRef:
    kind, version, sha256, file = (_typed(value[name], str) for name in ("kind", "version_id", "sha256", "file"))
    if not is_name(version):
        raise ValueError("state version")
    return StateRef(kind, version, _number(value["generation"]), sha256, _number(value["size_bytes"]), file)


def _slots(value: PointDisk | ExcludedDisk | StateRef | SecretRef) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _typed(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{kind} is expected")
    return value


def _order_number(value: Any) -> int:
    if _number(value) == 0:
        raise ValueError("an order number begins with 1")
    return int(value)


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("a number is expected")
    return value
