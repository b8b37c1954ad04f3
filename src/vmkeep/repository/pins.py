"""Pins: what keeps state versions besides points, so that it is known from the repository alone.

A version that was captured by itself, and those that belong to a snapshot of libvirt's, are named by no point. Without
their pin they would be lost to whoever has the repository and not the catalogue, and a prune would take them for waste.
A pin is one sealed object, written once, and deleted when nothing needs it any more. Since 1.5 it may have an envelope,
with what opens its versions, which goes with it. Section 9b of docs/internals/repository-format.md specifies both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace
from typing import Any, Final

from vmkeep.errors import ObjectDamaged, ObjectMissing
from vmkeep.repository import fields
from vmkeep.repository.envelopes import Bound, PointSecret, bound_secrets, put_envelope, stored_envelope
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.intents import condemned_states
from vmkeep.repository.layout import ENVELOPES, PINS, POINTS, STATES, FrameKind, is_name
from vmkeep.repository.record import SecretRef, StateRef, StateVersion, secret_ref, state_ref
from vmkeep.repository.seal import Sealer
from vmkeep.repository.signatures import FIELD, Signature, Signed, Signer
from vmkeep.repository.signed import SignedKind, SignedObjects, require_readable
from vmkeep.repository.states import get_state
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

# Of versions that one pin names: a snapshot has one of each kind. Of secrets as many.
_MOST_STATES = 100


@dataclass(frozen=True, slots=True)
class PinnedSnapshot:
    """The snapshot of libvirt's that a pin belongs to: what the catalogue keeps beside libvirt's own record of it.

    ``creation_time`` (seconds since 1970) is libvirt's; ``current_point`` is the point that the VM descended from then.
    """

    id: str
    name: str
    creation_time: int
    current_point: str | None


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A pin: it keeps ``states`` of a VM, until a time (ISO 8601 in UTC) or, with None, until it is deleted.

    ``why`` is a word for people ("capture", "snapshot", ...). ``created`` is when the versions were met: of a version
    that was captured, its own time. ``secrets`` are those in its envelope, which open the versions; a pin with secrets
    and without states keeps the secret of a TPM that was never started. ``extra`` holds fields that a later minor
    version added.
    """

    id: str
    vm_uuid: str
    vm_name: str
    host: str
    created: str
    why: str
    states: tuple[StateRef, ...]
    until: str | None = None
    snapshot: PinnedSnapshot | None = None
    secrets: tuple[SecretRef, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    signature: Signature | None = field(default=None, compare=False)

    def as_json(self) -> dict[str, Any]:
        """Return the pin without its signature."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        snapshot = self.snapshot and {name: getattr(self.snapshot, name) for name in self.snapshot.__slots__}
        states = [state.as_json() for state in self.states]
        value = {**self.extra, **plain, "snapshot": snapshot, "states": states}
        if self.secrets:
            value["secrets"] = [{"usage": secret.usage, "uuid": secret.uuid} for secret in self.secrets]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str, signature: Signature | None = None) -> PinRecord:
        """Parse a pin. Raises ObjectDamaged, with ``where`` and what is wrong, for one that no vmkeep writes."""
        try:
            return cls._parsed(value, signature)
        except WrongField as error:
            raise ObjectDamaged(f"{where} {error}", path=where) from error

    @classmethod
    def _parsed(cls, value: Mapping[str, Any], signature: Signature | None) -> PinRecord:
        taken = Fields(value)
        record = cls(
            id=taken.take("id", fields.name),
            vm_uuid=taken.take("vm_uuid", fields.uuid),
            vm_name=taken.take("vm_name", fields.vm_name),
            host=taken.take("host", fields.line),
            created=taken.take("created", fields.instant),
            why=taken.take("why", fields.word),
            states=taken.each("states", state_ref),
            until=taken.take("until", fields.optional(fields.instant)),
            snapshot=taken.take("snapshot", fields.optional(_snapshot)),
            secrets=taken.each("secrets", secret_ref) if "secrets" in value else (),
            extra=fields.later({name: each for name, each in value.items() if name not in _KNOWN_FIELDS}),
            signature=signature,
        )
        if not (record.states or record.secrets) or len(record.states) > _MOST_STATES:
            raise WrongField(f"has not 1 to {_MOST_STATES} states")
        if len(record.secrets) > _MOST_STATES or ("secrets" in value and not record.secrets):
            raise WrongField(f"has not 1 to {_MOST_STATES} secrets")
        fields.all_different((secret.uuid for secret in record.secrets), "a secret")
        fields.all_different((state.version_id for state in record.states), "a state version")
        return record


_PLAIN_FIELDS = ("id", "vm_uuid", "vm_name", "host", "created", "why", "until")
_KNOWN_FIELDS = frozenset({*_PLAIN_FIELDS, "states", "snapshot", "secrets", FIELD})


_PIN: Final = SignedKind(PINS, FrameKind.PIN, Signed("pin"), "pin")


class Pins(SignedObjects):
    """The pins of a repository."""

    def __init__(
        self, store: ObjectStore, sealer: Sealer, repository: str, signer: Callable[[], Signer] | None
    ) -> None:
        super().__init__(_PIN, store, sealer, repository, signer)

    def get(self, pin_id: str) -> PinRecord:
        """Return a pin, with its signature proved, if it has one; raises ObjectMissing or ObjectDamaged."""
        value, signature = self._read(pin_id)
        return PinRecord.from_json(value, self._where(pin_id), signature)

    def secrets(self, record: PinRecord) -> tuple[PointSecret, ...]:
        """Return the secrets that a pin holds; raises ObjectMissing or ObjectDamaged."""
        return bound_secrets(self.store, self.sealer, _bound(record))

    def seal(self, vm_uuid: str, secrets: Sequence[PointSecret]) -> tuple[str, tuple[SecretRef, ...]]:
        """Seal secrets of a VM durably into the envelope of a pin that is still to be put.

        Returns the pin's id, which is drawn, and what the pin says of its secrets: of these is the record for ``put``.
        A kill before that leaves the envelope; a prune takes it, as all of whose name no point and no pin is there.
        """
        pin_id = self._drawn()
        return pin_id, put_envelope(self.store, self.sealer, pin_id, vm_uuid, secrets, holder="pin")

    def put(self, record: PinRecord) -> PinRecord:
        """Store a pin durably, and return it with its id, which is drawn when the record has none.

        Its secrets were sealed before (``seal``), which gave the id, and are read back. Raises TargetExists when one of
        its id is there, ObjectMissing or ObjectDamaged when a version or an envelope that it names is not there as it
        says, and InvalidRequest for what a reader would take for damage.
        """
        record = record if record.id else replace(record, id=self._drawn())
        value = record.as_json()
        called = f"the pin of VM {record.vm_name!r}"
        require_readable(lambda what: PinRecord.from_json(value, what), called, record.vm_name)
        versions = [self._version(state) for state in record.states]
        envelope = stored_envelope(self.store, record.id) if record.secrets else None
        bound_secrets(self.store, self.sealer, replace(_bound(record), signature=None))
        kept = replace(record, signature=self._put(value, states=versions, envelope=envelope))
        self._require_held(record)
        self.secrets(kept)
        return kept

    def delete(self, pin_id: str) -> bool:
        """Delete a pin with its secrets; False when there is none, also then without leaving an envelope.

        The versions stay until a prune finds that nothing needs them.
        """
        there = super().delete(pin_id)
        # Only when the pin is gone: what it keeps does not open without them. A point of its name is a stranger's, and
        # would lose an envelope of its own.
        if is_name(pin_id) and not self.store.exists(POINTS + pin_id):
            with suppress(ObjectMissing):
                self.store.delete(ENVELOPES + pin_id)
        return there

    def _version(self, state: StateRef) -> StateVersion:
        version, _ = get_state(self.store, self.sealer, state.version_id)
        if version.ref() != state:
            where = STATES + state.version_id
            raise ObjectDamaged(f"{where} is another version than it was", path=where)
        return version

    def _require_held(self, record: PinRecord) -> None:
        """Look once more: who holds a version may have let it go, and a prune have taken it, while the pin was put."""
        condemned = condemned_states(self.store)
        for state in record.states:
            if state.version_id in condemned or not self.store.exists(STATES + state.version_id):
                self.delete(record.id)
                raise ObjectMissing(
                    f"a state version of VM {record.vm_name!r} was deleted while it was to be kept",
                    vm=record.vm_name,
                    path=STATES + state.version_id,
                    hint="Run the command again.",
                )


def _bound(record: PinRecord) -> Bound:
    return Bound("pin", record.id, record.vm_uuid, record.secrets, record.signature)


def _snapshot(value: Any) -> PinnedSnapshot:
    taken = Fields(value)
    return PinnedSnapshot(
        id=taken.take("id", fields.name),
        # As libvirt has it, which takes names that cannot be shown on a line; it is compared with those, never shown.
        name=taken.take("name", lambda name: fields.xml(name, most_characters=fields.NAME_BYTES_LIMIT)),
        creation_time=taken.take("creation_time", fields.number),
        current_point=taken.take("current_point", fields.optional(fields.name)),
    )
