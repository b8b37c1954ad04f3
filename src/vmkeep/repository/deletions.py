"""Proofs of deletion: what became of a TPM's state on a host when it was removed, or gave way to another one.

They are signed, for whoever asks later.

One sealed object for each removal, and one for each thing that was learned of it since (a file that could not be
deleted then went, somebody let it be, the VM got a TPM again), which names the first. None is ever written again.
Section 9d of docs/internals/repository-format.md specifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from enum import StrEnum
from typing import Any, Final

from vmkeep.errors import ObjectDamaged
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import DELETIONS, FrameKind
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import FIELD, Signature, Signed, Signer
from vmkeep.repository.signed import SignedKind, SignedObjects, require_readable
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

MOST_FILES: Final = 64
MOST_VERSIONS: Final = 1000
"""Of a record: what else there is of an older TPM is told by the catalogue."""
_MOST_HOLDERS: Final = 100
_LINE_BYTES: Final = 1024
_PATH_BYTES: Final = 16 * 1024


class DeletionEvent(StrEnum):
    """What a record is about."""

    REMOVAL = "removal"
    """A TPM was removed, or what it was gave way to another state."""
    SETTLED = "settled"
    """What could not be deleted then is gone."""
    WAIVED = "waived"
    """Somebody said that it stays, or was dealt with otherwise."""
    SUPERSEDED = "superseded"
    """It is needed again."""
    RETURNED = "returned"
    """The VM was given a TPM again."""


class Renewal(StrEnum):
    """What took the place of the state that was deleted."""

    RESET = "reset"
    """A new, blank TPM."""
    REKEY = "rekey"
    """The state of the same TPM, with another key or in plain."""


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """A file of the state. ``outcome``: deleted, failed (it was to go), left (it is no version), or gone (before).

    ``sha256`` and ``version`` are None for one whose content was not read, or is no version. ``at`` is when it was
    deleted (ISO 8601 in UTC), ``why`` a sentence about one that was not.
    """

    path: str
    sha256: str | None
    size_bytes: int
    version: str | None
    outcome: str
    at: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class SecretHolder:
    """What still holds a secret's value: a "point" or a "pin" with its envelope; ``until`` None is for good."""

    kind: str
    id: str
    until: str | None = None


@dataclass(frozen=True, slots=True)
class DeletedSecret:
    """The secret that encrypts the state. ``outcome``: undefined, failed (it was to go), or stays."""

    uuid: str
    outcome: str
    at: str | None = None
    why: str = ""
    held_by: tuple[SecretHolder, ...] = ()


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version of the state that is kept on: by points and snapshots for as long as they are there, or until a time.

    ``until`` is None for one without a term. ``held_by`` are ids.
    """

    version_id: str
    generation: int
    sha256: str
    size_bytes: int
    held_by: tuple[str, ...] = ()
    until: str | None = None


@dataclass(frozen=True, slots=True)
class DeletionRecord:
    """A proof of deletion, or a later fact about the one of id ``of``.

    ``host`` is the name of the host on which all of it was, ``host_uuid`` its UUID. ``tombstones`` are the ids of those
    that say what is still to be done, or that the fact is about. ``renewal`` is None for a TPM that was taken out.
    ``extra`` holds fields that a later minor version added.
    """

    id: str
    of: str | None
    event: DeletionEvent
    vm_uuid: str
    vm_name: str
    host: str
    host_uuid: str
    created: str
    files: tuple[DeletedFile, ...] = ()
    secret: DeletedSecret | None = None
    versions: tuple[KeptVersion, ...] = ()
    kept_until: str | None = None
    tombstones: tuple[str, ...] = ()
    who: str = ""
    why: str = ""
    renewal: Renewal | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the record without its signature."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        secret = self.secret and {**_json(self.secret), "held_by": [_json(holder) for holder in self.secret.held_by]}
        renewal = {} if self.renewal is None else {"renewal": str(self.renewal)}
        return {
            **self.extra,
            **plain,
            **renewal,
            "event": str(self.event),
            "files": [_json(file) for file in self.files],
            "secret": secret,
            "tombstones": list(self.tombstones),
            "versions": [{**_json(version), "held_by": list(version.held_by)} for version in self.versions],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str, signature: Signature | None = None) -> DeletionRecord:
        """Parse a record. Raises ObjectDamaged, with ``where`` and what is wrong, for one that no vmkeep writes."""
        try:
            return cls._parsed(value, signature)
        except WrongField as error:
            raise ObjectDamaged(f"{where} {error}", path=where) from error

    @classmethod
    def _parsed(cls, value: Mapping[str, Any], signature: Signature | None) -> DeletionRecord:
        taken = Fields(value)
        record = cls(
            id=taken.take("id", fields.name),
            of=taken.take("of", fields.optional(fields.name)),
            event=DeletionEvent(taken.take("event", fields.one_of(*DeletionEvent))),
            vm_uuid=taken.take("vm_uuid", fields.uuid),
            vm_name=taken.take("vm_name", fields.vm_name),
            host=taken.take("host", fields.line),
            host_uuid=taken.take("host_uuid", fields.uuid),
            created=taken.take("created", fields.instant),
            files=taken.each("files", _file),
            secret=taken.take("secret", fields.optional(_secret)),
            versions=taken.each("versions", _version),
            kept_until=taken.take("kept_until", fields.optional(fields.instant)),
            tombstones=taken.each("tombstones", fields.name),
            who=taken.take("who", _sentence),
            why=taken.take("why", _sentence),
            renewal=Renewal(taken.take("renewal", fields.one_of(*Renewal))) if "renewal" in value else None,
            extra=fields.later({name: each for name, each in value.items() if name not in _KNOWN_FIELDS}),
            signature=signature,
        )
        if (record.of is None) is not (record.event is DeletionEvent.REMOVAL):
            raise WrongField("is a removal that names another one, or a fact about none")
        if record.renewal is not None and record.of is not None:
            raise WrongField("is a fact that says what took the place of a state")
        _at_most(record.files, MOST_FILES, "files")
        _at_most(record.versions, MOST_VERSIONS, "versions")
        _at_most(record.tombstones, MOST_FILES, "tombstones")
        return record


_PLAIN_FIELDS: Final = ("id", "of", "vm_uuid", "vm_name", "host", "host_uuid", "created", "kept_until", "who", "why")
_KNOWN_FIELDS: Final = frozenset(
    {*_PLAIN_FIELDS, "event", "files", "secret", "versions", "tombstones", "renewal", FIELD}
)


_DELETION: Final = SignedKind(DELETIONS, FrameKind.DELETION, Signed("deletion"), "proof of deletion")


class Deletions(SignedObjects):
    """The proofs of deletion of a repository."""

    def __init__(
        self, store: ObjectStore, sealer: Sealer, repository: str, signer: Callable[[], Signer] | None
    ) -> None:
        super().__init__(_DELETION, store, sealer, repository, signer)

    def get(self, deletion_id: str) -> DeletionRecord:
        """Return one, with its signature proved, if it has one; raises ObjectMissing or ObjectDamaged."""
        value, signature = self._read(deletion_id)
        return DeletionRecord.from_json(value, self._where(deletion_id), signature)

    def put(self, record: DeletionRecord) -> DeletionRecord:
        """Store one durably, and return it with its id, which is drawn when the record has none.

        Raises TargetExists when one of its id is there, and InvalidRequest for what a reader would take for damage.
        """
        record = record if record.id else replace(record, id=self._drawn())
        value = record.as_json()
        called = f"the proof of deletion of VM {record.vm_name!r}"
        require_readable(lambda what: DeletionRecord.from_json(value, what), called, record.vm_name)
        return replace(record, signature=self._put(value))


def as_line(text: str, *, most_bytes: int = _LINE_BYTES) -> str:
    """Return a text of anybody's, a file's name for instance, as one line that a record can hold."""
    shown = " ".join(fields.as_lines(text).split())
    return shown.encode()[:most_bytes].decode("utf-8", "ignore")


def as_path(text: str) -> str:
    """Return a path as a record can hold it: what is no text in it, or steers a terminal, is escaped."""
    shown = fields.as_lines(text).replace("\n", "\\n").replace("\t", "\\t")
    return shown.encode()[:_PATH_BYTES].decode("utf-8", "ignore")


def _json(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _at_most(values: tuple[object, ...], most: int, what: str) -> None:
    if len(values) > most:
        raise WrongField(f"has more than {most} {what}")


def _sentence(value: Any) -> str:
    return fields.line(value, most_bytes=_LINE_BYTES)


def _path(value: Any) -> str:
    return fields.line(value, most_bytes=_PATH_BYTES)


def _file(value: Any) -> DeletedFile:
    taken = Fields(value)
    return DeletedFile(
        path=taken.take("path", _path),
        sha256=taken.take("sha256", fields.optional(fields.digest)),
        size_bytes=taken.take("size_bytes", fields.number),
        version=taken.take("version", fields.optional(fields.name)),
        outcome=taken.take("outcome", fields.one_of("deleted", "failed", "left", "gone")),
        at=taken.take("at", fields.optional(fields.instant)),
        why=taken.take("why", _sentence),
    )


def _secret(value: Any) -> DeletedSecret:
    taken = Fields(value)
    held_by = taken.each("held_by", _holder)
    _at_most(held_by, _MOST_HOLDERS, "holders of the secret")
    return DeletedSecret(
        uuid=taken.take("uuid", fields.uuid),
        outcome=taken.take("outcome", fields.one_of("undefined", "failed", "stays")),
        at=taken.take("at", fields.optional(fields.instant)),
        why=taken.take("why", _sentence),
        held_by=held_by,
    )


def _holder(value: Any) -> SecretHolder:
    taken = Fields(value)
    return SecretHolder(
        taken.take("kind", fields.one_of("point", "pin")),
        taken.take("id", fields.name),
        taken.take("until", fields.optional(fields.instant)),
    )


def _version(value: Any) -> KeptVersion:
    taken = Fields(value)
    held_by = taken.each("held_by", fields.name)
    _at_most(held_by, _MOST_HOLDERS, "holders of a version")
    return KeptVersion(
        version_id=taken.take("version_id", fields.name),
        generation=taken.take("generation", fields.number),
        sha256=taken.take("sha256", fields.digest),
        size_bytes=taken.take("size_bytes", fields.number),
        held_by=held_by,
        until=taken.take("until", fields.optional(fields.instant)),
    )
