"""Who made a point, a pin, a proof of deletion or a mark, proved: signatures, and the public keys of those who sign.

Pure, but for host objects.

The signature stands in the point's record and covers all else of it, so all that the record reaches by keyed hashes
(disks). What it reaches by names only is bound by hashes beside the signature: state versions with owner and mode, and
the envelope. docs/internals/repository-format.md, section 8b, specifies it. A key holder can always seal a record anew;
without the private key it cannot sign it.

Whether the key that signed belongs to somebody who is trusted is not decided here, but by the catalogue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from vmkeep.errors import ObjectDamaged, ObjectMissing, TargetExists
from vmkeep.keys.signing import fingerprint_of
from vmkeep.repository.layout import FORMAT_NAME, HOSTS, MAJOR, FrameKind, canonical, is_name, parse_canonical
from vmkeep.repository.record import PointRecord, StateVersion
from vmkeep.repository.seal import Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

FIELD: Final = "signature"
_HOST_DOMAIN: Final = b"vmkeep host key v1\n"
_KEY_DIGITS, _VALUE_DIGITS, _HASH_DIGITS = 64, 128, 64
_HOST_LENGTH, _TIME_LENGTH = 255, 40


class Signer(Protocol):
    """Who signs: ``vmkeep.keys.signing.SigningKey``, or what keeps a key elsewhere."""

    @property
    def installation(self) -> str: ...

    @property
    def public_key(self) -> bytes: ...

    @property
    def machine(self) -> str: ...

    @property
    def host(self) -> str: ...

    def sign(self, text: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Signature:
    """The signature of a point, as far as it concerns who made it and what the record reaches by names only.

    ``states`` are SHA-256 of the headers of the state versions, ``envelope`` is that of the envelope's object, in
    hexadecimal digits.
    """

    installation: str
    key: str
    machine: str
    states: Mapping[str, str]
    envelope: str | None

    @property
    def fingerprint(self) -> str:
        return fingerprint_of(bytes.fromhex(self.key))


@dataclass(frozen=True, slots=True)
class HostKey:
    """The public key of an installation, with the name of its host when it made its first point here (``created``)."""

    fingerprint: str
    key: str
    installation: str
    host: str
    created: str


def sign_point(
    record: Mapping[str, Any],
    repository: str,
    signer: Signer,
    *,
    states: Sequence[StateVersion],
    envelope: bytes | None,
) -> dict[str, Any]:
    """Return the signature of a point as it stands in the record, for the record without one as JSON.

    ``states`` are the versions that the record names, ``envelope`` is the point's envelope as stored.
    """
    return _POINT.sign(record, repository, signer, states, envelope)


def prove_point(value: Mapping[str, Any], repository: str, point_id: str, where: str) -> Signature | None:
    """Return the signature of a point that was read, proved; None for a point without one.

    ``value`` is the record as JSON, ``point_id`` the name of its object. Raises ObjectDamaged when the signature is
    wrong: somebody who has the repository's key changed the point, or made it in the name of another.
    """
    return _POINT.prove(value, repository, point_id, where)


@dataclass(frozen=True, slots=True)
class Signed:
    """A kind of object that is signed, by what it is called: a "point", a "pin", a "removal"."""

    noun: str

    def sign(
        self,
        record: Mapping[str, Any],
        repository: str,
        signer: Signer,
        states: Sequence[StateVersion] = (),
        envelope: bytes | None = None,
    ) -> dict[str, Any]:
        """Return the signature as it stands in the object, for the object without one as JSON.

        ``states`` are the versions that it names, ``envelope`` is its envelope as stored.
        """
        unsigned = {
            "envelope": _hash_of(envelope),
            "installation": signer.installation,
            "key": signer.public_key.hex(),
            "machine": signer.machine,
            "states": {version.id: header_hash(version) for version in states},
        }
        value = signer.sign(self._text({**record, FIELD: unsigned}, repository, str(record["id"])))
        return {**unsigned, "value": value.hex()}

    def prove(self, value: Mapping[str, Any], repository: str, name: str, where: str) -> Signature | None:
        """Return the signature of an object that was read, proved, as ``prove_point`` that of a point."""
        if FIELD not in value:
            return None
        found = value[FIELD]
        if not isinstance(found, dict) or not _is_hex(found.get("value"), _VALUE_DIGITS):
            raise self._damaged(name, where, "is not written as it should be")
        signature = _parsed(found)
        if signature is None:
            raise self._damaged(name, where, "is not written as it should be")
        unsigned = {field: content for field, content in found.items() if field != "value"}
        text = self._text({**value, FIELD: unsigned}, repository, name)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key)).verify(bytes.fromhex(found["value"]), text)
        except (InvalidSignature, ValueError) as error:
            raise self._damaged(name, where, f"is wrong: the {self.noun} is not as its host has signed it") from error
        if not _is_complete(value, signature):
            raise self._damaged(name, where, f"leaves out a part of the {self.noun}")
        return signature

    def _text(self, record: Mapping[str, Any], repository: str, name: str) -> bytes:
        """Return what is signed. ``record`` is all of the object but the value of the signature."""
        return b"vmkeep %b signature v1\n" % self.noun.encode() + canonical(
            {
                "format": f"{FORMAT_NAME} {MAJOR}",
                self.noun: name,
                "record": hashlib.sha256(canonical(record)).hexdigest(),
                "repository": repository,
            }
        )

    def _damaged(self, name: str, where: str, what: str) -> ObjectDamaged:
        return ObjectDamaged(
            f"the signature of {self.noun} {name} {what}",
            path=where,
            hint=f"Do not use this {self.noun}. Whoever changed it has the repository's key: look at the hosts that "
            "have it (`vmkeep host list`). `vmkeep verify --all` names all points that are harmed.",
        )


_POINT: Final = Signed("point")


def signature_of(record: PointRecord) -> Signature | None:
    """Return the signature of a record that was read from the repository, and proved there; None without one."""
    found = record.extra.get(FIELD)
    return _parsed(found) if isinstance(found, dict) else None


def require_signed_state(record: PointRecord, version: StateVersion) -> None:
    """Raise ObjectDamaged unless a state version is as the point was signed with: its owner and mode as well."""
    signature = signature_of(record)
    if signature is not None and signature.states.get(version.id) != header_hash(version):
        where = f"states/{version.id}"
        raise ObjectDamaged(f"{where} is not as it was when point {record.id} was signed", path=where)


def require_signed_envelope(signature: Signature | None, envelope: bytes, where: str, holder: str) -> None:
    """Raise ObjectDamaged unless the object of an envelope is the one that its point or pin, ``holder``, was signed
    with.
    """
    if signature is not None and signature.envelope != _hash_of(envelope):
        raise ObjectDamaged(f"{where} is not as it was when {holder} was signed", path=where)


def _hash_of(envelope: bytes | None) -> str | None:
    return None if envelope is None else hashlib.sha256(envelope).hexdigest()


def header_hash(version: StateVersion) -> str:
    """Return SHA-256 of a state version's header, which holds the hash of the content."""
    return hashlib.sha256(canonical(version.as_json())).hexdigest()


def _parsed(found: Mapping[str, Any]) -> Signature | None:
    states, envelope, machine = found.get("states"), found.get("envelope"), found.get("machine")
    if (
        not is_name(str(found.get("installation")))
        or not _is_hex(found.get("key"), _KEY_DIGITS)
        or not is_name(str(machine))
        or not isinstance(states, dict)
        or not all(is_name(name) and _is_hex(digest, _HASH_DIGITS) for name, digest in states.items())
        or not (envelope is None or _is_hex(envelope, _HASH_DIGITS))
    ):
        return None
    return Signature(str(found["installation"]), str(found["key"]), str(machine), dict(states), envelope)


def _is_complete(value: Mapping[str, Any], signature: Signature) -> bool:
    """Return whether the signature covers all that the record reaches by name."""
    states = value.get("states")
    named = {state.get("version_id") for state in states if isinstance(state, dict)} if isinstance(states, list) else {}
    return not (set(named) - signature.states.keys() or (value.get("secrets") and signature.envelope is None))


def _is_hex(text: object, digits: int) -> bool:
    return isinstance(text, str) and len(text) == digits and set(text) <= set("0123456789abcdef")


# -- public keys -------------------------------------------------------------------------------------------------


def put_host_key(store: ObjectStore, sealer: Sealer, repository: str, signer: Signer, created: str) -> None:
    """Store the signer's public key unless it is there; ``created`` is the time of the point that needs it."""
    fingerprint = fingerprint_of(signer.public_key)
    name = HOSTS + fingerprint
    if store.exists(name):
        return
    value = {
        "created": created,
        "host": signer.host,
        "installation": signer.installation,
        "key": signer.public_key.hex(),
    }
    signed = {**value, FIELD: signer.sign(_host_text(value, repository)).hex()}
    with suppress(TargetExists):  # another process of this installation was first
        store.put(name, sealer.seal_alone(FrameKind.HOST, fingerprint, canonical(signed)))


def get_host_key(store: ObjectStore, sealer: Sealer, repository: str, fingerprint: str) -> HostKey:
    """Return a public key, which proves itself; raises ObjectMissing or ObjectDamaged."""
    where = HOSTS + fingerprint
    if not is_name(fingerprint):
        raise ObjectMissing(f"{fingerprint!r} is not the fingerprint of a key")
    frame = store.get(where, most_bytes=frame_bytes_limit(FrameKind.HOST))
    value = parse_canonical(sealer.open_alone(FrameKind.HOST, fingerprint, frame, where), where)
    signed = {name: content for name, content in value.items() if name != FIELD}
    created, host, installation, key = (value.get(name) for name in ("created", "host", "installation", "key"))
    if (
        not _is_hex(key, _KEY_DIGITS)
        or not _is_hex(value.get(FIELD), _VALUE_DIGITS)
        or not is_name(str(installation))
        or not isinstance(created, str)
        or len(created) > _TIME_LENGTH
        or not isinstance(host, str)
        or len(host) > _HOST_LENGTH
        or not host.isprintable()
    ):
        raise ObjectDamaged(f"{where} lacks a field or has one of a wrong type", path=where)
    public_key = bytes.fromhex(str(key))
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(
            bytes.fromhex(value[FIELD]), _host_text(signed, repository)
        )
    except (InvalidSignature, ValueError) as error:
        raise ObjectDamaged(f"{where} is not as its host has signed it", path=where) from error
    if fingerprint_of(public_key) != fingerprint:
        raise ObjectDamaged(f"{where} holds another key", path=where)
    return HostKey(fingerprint, str(key), str(installation), host, created)


def _host_text(value: Mapping[str, Any], repository: str) -> bytes:
    return _HOST_DOMAIN + canonical({**value, "format": f"{FORMAT_NAME} {MAJOR}", "repository": repository})
