"""Envelopes: the secrets of a point or a pin, without which what it holds does not open. One sealed object for each.

An envelope has the name of its point or pin and belongs to no other, so it goes with that, and writers that share no
lock cannot take it from each other. The point, or the pin, says which secrets it holds; their values are nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import field
from typing import Any, Literal, TypeAlias

from vmkeep.errors import InvalidRequest, ObjectDamaged
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import ENVELOPES, FrameKind, canonical, parse_canonical
from vmkeep.repository.record import PointRecord, SecretRef
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.signatures import Signature, require_signed_envelope, signature_of
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

Holder: TypeAlias = Literal["point", "pin"]
"""What an envelope belongs to."""

# What libvirt takes (REMOTE_SECRET_VALUE_MAX).
VALUE_LIMIT_BYTES = 64 * 1024
# The plain text is filled up to a multiple of this and not compressed, so that the length of the object, which who has
# the store sees, does not tell how long a passphrase is.
_GRAIN_BYTES = 1024


@dataclass(frozen=True, slots=True)
class PointSecret:
    """A secret of a VM as a point or a pin keeps it.

    ``usage`` is libvirt's word for what it is for ("vtpm", "volume"), ``usage_id`` the name or path that goes with it.
    ``ephemeral``: the host it came from kept it in memory only.
    """

    usage: str
    uuid: str
    usage_id: str
    description: str
    ephemeral: bool
    value: bytes = field(repr=False)

    def ref(self) -> SecretRef:
        return SecretRef(self.usage, self.uuid)


def put_envelope(
    store: ObjectStore,
    sealer: Sealer,
    holder_id: str,
    vm_uuid: str,
    secrets: Sequence[PointSecret],
    *,
    holder: Holder = "point",
) -> tuple[SecretRef, ...]:
    """Seal the secrets of a point or a pin durably and return what that says of them; nothing is stored for none."""
    if not secrets:
        return ()
    for secret in secrets:
        if not 1 <= len(secret.value) <= VALUE_LIMIT_BYTES:
            raise InvalidRequest(f"the secret {secret.uuid} has {len(secret.value)} bytes, which libvirt cannot hold")
    document = {holder: holder_id, "secrets": [secret_as_json(secret) for secret in secrets], "vm_uuid": vm_uuid}
    short = len(canonical({**document, "padding": ""}))
    plain = canonical({**document, "padding": "0" * (-short % _GRAIN_BYTES)})
    name = ENVELOPES + holder_id
    store.put(name, sealer.seal_alone(FrameKind.ENVELOPE, holder_id, plain, compressed=False))
    return tuple(secret.ref() for secret in secrets)


def get_envelope(store: ObjectStore, sealer: Sealer, record: PointRecord) -> tuple[PointSecret, ...]:
    """Return the secrets of a point in the order that it names them; raises ObjectMissing or ObjectDamaged."""
    bound = Bound("point", record.id, record.vm_uuid, record.secrets, signature_of(record))
    return bound_secrets(store, sealer, bound)


@dataclass(frozen=True, slots=True)
class Bound:
    """What an envelope must be of: its point or pin, the VM and the secrets that this names, and its signature."""

    holder: Holder
    id: str
    vm_uuid: str
    secrets: tuple[SecretRef, ...]
    signature: Signature | None


def bound_secrets(store: ObjectStore, sealer: Sealer, bound: Bound) -> tuple[PointSecret, ...]:
    """Return the secrets of a point or a pin in the order that it names them; raises ObjectMissing or ObjectDamaged."""
    if not bound.secrets:
        return ()
    where = ENVELOPES + bound.id
    frame = stored_envelope(store, bound.id)
    require_signed_envelope(bound.signature, frame, where, f"{bound.holder} {bound.id}")
    found = _opened(sealer, bound.id, frame, where)
    named = tuple(secret.ref() for secret in found.secrets)
    if (found.holder, found.vm_uuid, named) != (bound.holder, bound.vm_uuid, bound.secrets):
        raise ObjectDamaged(f"{where} holds other secrets than the {bound.holder} was made with", path=where)
    return found.secrets


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope as it stands, without its point or pin."""

    holder: Holder
    vm_uuid: str
    secrets: tuple[PointSecret, ...]


def open_envelope(store: ObjectStore, sealer: Sealer, holder_id: str) -> Envelope:
    """Return what is in the envelope of that name; raises ObjectMissing or ObjectDamaged."""
    where = ENVELOPES + holder_id
    return _opened(sealer, holder_id, stored_envelope(store, holder_id), where)


def stored_envelope(store: ObjectStore, holder_id: str) -> bytes:
    """Return the object of an envelope as it is stored; raises ObjectMissing or ObjectDamaged."""
    return store.get(ENVELOPES + holder_id, most_bytes=frame_bytes_limit(FrameKind.ENVELOPE))


def _opened(sealer: Sealer, holder_id: str, frame: bytes, where: str) -> Envelope:
    plain = sealer.open_alone(FrameKind.ENVELOPE, holder_id, frame, where)
    value = parse_canonical(plain, where)
    try:
        taken = Fields(value)
        holder: Holder = "pin" if "pin" in value else "point"
        taken.take(holder, fields.one_of(holder_id))
        return Envelope(holder, taken.take("vm_uuid", fields.uuid), taken.each("secrets", secret_from_json))
    except WrongField as error:
        # Without its cause: an exception of a parser may quote what it could not parse.
        raise ObjectDamaged(f"{where} {error}", path=where) from None


def secret_as_json(secret: PointSecret) -> dict[str, Any]:
    """Return a secret, with its value, as it stands in what is sealed."""
    return {
        "description": secret.description,
        "ephemeral": secret.ephemeral,
        "usage": secret.usage,
        "usage_id": secret.usage_id,
        "uuid": secret.uuid,
        "value": base64.b64encode(secret.value).decode(),
    }


def secret_from_json(value: Any) -> PointSecret:
    """Return a secret out of what was sealed. Raises WrongField."""
    taken = Fields(value)
    return PointSecret(
        usage=taken.take("usage", fields.line),
        uuid=taken.take("uuid", fields.uuid),
        # A name, a path and a sentence as they stand in a secret's XML at libvirt, and go there again.
        usage_id=taken.take("usage_id", fields.xml),
        description=taken.take("description", fields.xml),
        ephemeral=taken.take("ephemeral", fields.yes_or_no),
        value=taken.take("value", _secret_value),
    )


def _secret_value(value: Any) -> bytes:
    try:
        content = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        content = b""
    if not 1 <= len(content) <= VALUE_LIMIT_BYTES:
        raise WrongField("no value of a secret")
    return content
