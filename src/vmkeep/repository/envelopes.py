"""Envelopes: the secrets of a point, without which what it holds does not open. One sealed object for each point.

An envelope has its point's name and belongs to no other, so it goes with the point, and writers that share no lock
cannot take it from each other. The point says which secrets it holds; their values are nowhere else.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import field
from typing import Any

from vmkeep.errors import InvalidRequest, ObjectDamaged
from vmkeep.repository import fields
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import ENVELOPES, FrameKind, canonical, parse_canonical
from vmkeep.repository.record import PointRecord, SecretRef
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.signatures import require_signed_envelope
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

# What libvirt takes (REMOTE_SECRET_VALUE_MAX).
VALUE_LIMIT_BYTES = 64 * 1024
# The plain text is filled up to a multiple of this and not compressed, so that the length of the object, which who has
# the store sees, does not tell how long a passphrase is.
_GRAIN_BYTES = 1024


@dataclass(frozen=True, slots=True)
class PointSecret:
    """A secret of a VM as a point keeps it.

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
    store: ObjectStore, sealer: Sealer, point_id: str, vm_uuid: str, secrets: Sequence[PointSecret]
) -> tuple[SecretRef, ...]:
    """Seal the secrets of a point durably and return what the point says of them; nothing is stored for none."""
    if not secrets:
        return ()
    for secret in secrets:
        if not 1 <= len(secret.value) <= VALUE_LIMIT_BYTES:
            raise InvalidRequest(f"the secret {secret.uuid} has {len(secret.value)} bytes, which libvirt cannot hold")
    document = {"point": point_id, "secrets": [secret_as_json(secret) for secret in secrets], "vm_uuid": vm_uuid}
    short = len(canonical({**document, "padding": ""}))
    plain = canonical({**document, "padding": "0" * (-short % _GRAIN_BYTES)})
    name = ENVELOPES + point_id
    store.put(name, sealer.seal_alone(FrameKind.ENVELOPE, point_id, plain, compressed=False))
    return tuple(secret.ref() for secret in secrets)


def get_envelope(store: ObjectStore, sealer: Sealer, record: PointRecord) -> tuple[PointSecret, ...]:
    """Return the secrets of a point in the order that it names them; raises ObjectMissing or ObjectDamaged."""
    if not record.secrets:
        return ()
    where = ENVELOPES + record.id
    frame = stored_envelope(store, record.id)
    require_signed_envelope(record, frame, where)
    found = _opened(sealer, record.id, frame, where)
    if found.vm_uuid != record.vm_uuid or tuple(secret.ref() for secret in found.secrets) != record.secrets:
        raise ObjectDamaged(f"{where} holds other secrets than the point was made with", path=where)
    return found.secrets


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope as it stands, without its point."""

    vm_uuid: str
    secrets: tuple[PointSecret, ...]


def open_envelope(store: ObjectStore, sealer: Sealer, point_id: str) -> Envelope:
    """Return what is in the envelope of that name; raises ObjectMissing or ObjectDamaged."""
    where = ENVELOPES + point_id
    return _opened(sealer, point_id, stored_envelope(store, point_id), where)


def stored_envelope(store: ObjectStore, point_id: str) -> bytes:
    """Return the object of an envelope as it is stored; raises ObjectMissing or ObjectDamaged."""
    return store.get(ENVELOPES + point_id, most_bytes=frame_bytes_limit(FrameKind.ENVELOPE))


def _opened(sealer: Sealer, point_id: str, frame: bytes, where: str) -> Envelope:
    plain = sealer.open_alone(FrameKind.ENVELOPE, point_id, frame, where)
    value = parse_canonical(plain, where)
    try:
        taken = Fields(value)
        taken.take("point", fields.one_of(point_id))
        return Envelope(taken.take("vm_uuid", fields.uuid), taken.each("secrets", secret_from_json))
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
