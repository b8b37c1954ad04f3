"""A bundle: state versions of one VM in a file of their own, with the libvirt secrets that open them, sealed.

docs/internals/state-bundle.md specifies it. Whoever has the file may have written it, so its length is bounded before
it is read, its checksum needs no key, and nothing of its content is looked at before the seal was proved. What is in it
is parsed as what a repository holds.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable
from dataclasses import field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmkeep.errors import InvalidRequest, ObjectDamaged, WrongKey
from vmkeep.keys import KeyMaterial
from vmkeep.keys.passphrase import SCRYPT
from vmkeep.repository import fields
from vmkeep.repository.envelopes import PointSecret, secret_as_json, secret_from_json
from vmkeep.repository.fields import Fields, WrongField
from vmkeep.repository.layout import canonical, parse_canonical
from vmkeep.repository.record import StateVersion
from vmkeep.values import dataclass

BUNDLE_BYTES_LIMIT: Final = 24 << 20
"""More than the largest state of both kinds, and all the secrets that there can be."""
_MAGIC: Final = b"vmkeep states 1\n"
# Magic, what it is sealed to, log2 of scrypt's n, r and p (zero for a key file), the key's id, the wrapped key.
_HEADER: Final = struct.Struct(">16sBBBB16s80s")
_BOUND_BYTES: Final = 36  # of the header: what the wrapped key is bound to
_KINDS: Final = {"passphrase": 1, "key-file": 2}
_CHECK_BYTES: Final = 32
_TAG_BYTES: Final = 16
_LENGTH: Final = struct.Struct("<I")
_MOST_VERSIONS: Final = 16
_MOST_SECRETS: Final = 16
# As in an envelope: the length does not tell how long a passphrase of libvirt's is.
_GRAIN_BYTES: Final = 1024
_WRAP: Final = b"vmkeep state bundle v1 key\n"
_SEAL: Final = b"vmkeep state bundle v1\n"


@dataclass(frozen=True, slots=True)
class BundledState:
    """A state version and its content."""

    version: StateVersion
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class StateBundle:
    """Versions of one VM, and the libvirt secrets that open them. ``created`` is ISO 8601 in UTC."""

    vm_uuid: str
    vm_name: str
    created: str
    states: tuple[BundledState, ...]
    secrets: tuple[PointSecret, ...] = ()


def seal_bundle(bundle: StateBundle, key: KeyMaterial, *, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """Return the bundle as the bytes of its file, for whoever has the key (a Passphrase, or a KeyFile)."""
    document = {
        "created": bundle.created,
        "secrets": [secret_as_json(secret) for secret in bundle.secrets],
        "versions": [state.version.as_json() for state in bundle.states],
        "vm_name": bundle.vm_name,
        "vm_uuid": bundle.vm_uuid,
    }
    contents = b"".join(state.content for state in bundle.states)
    short = len(canonical({**document, "padding": ""})) + len(contents)
    head = canonical({**document, "padding": "0" * (-short % _GRAIN_BYTES)})
    scrypt = SCRYPT if key.kind == "passphrase" else (0, 0, 0)
    bound = struct.pack(">16sBBBB16s", _MAGIC, _KINDS[key.kind], *scrypt, bytes.fromhex(key.key_id))
    secret = random(32)
    header = bound + key.wrap(secret, _WRAP + bound)
    # The key is of this bundle alone, and so is the nonce.
    sealed = AESGCM(secret).encrypt(bytes(12), _LENGTH.pack(len(head)) + head + contents, _SEAL + header)
    body = header + sealed
    return body + hashlib.sha256(body).digest()


def bundle_key(data: bytes, where: str) -> str | None:
    """Return the id of the key file that a bundle is sealed to; None when it is a passphrase.

    Raises InvalidRequest for what is no bundle, is cut off or damaged, or asks for work that was never asked for.
    """
    least = _HEADER.size + _LENGTH.size + _TAG_BYTES + _CHECK_BYTES
    if not data.startswith(_MAGIC):
        raise _refused(where, "is no bundle of state that this vmkeep knows")
    if not least <= len(data) <= BUNDLE_BYTES_LIMIT:
        raise _refused(where, f"has {len(data)} bytes, and a bundle has {least} to {BUNDLE_BYTES_LIMIT}")
    if hashlib.sha256(memoryview(data)[:-_CHECK_BYTES]).digest() != data[-_CHECK_BYTES:]:
        raise _refused(where, "was damaged or cut off: its checksum is wrong")
    _, kind, *scrypt, key_id, _ = _HEADER.unpack_from(data)
    if kind == _KINDS["passphrase"] and tuple(scrypt) == SCRYPT and not any(key_id):
        return None
    if kind == _KINDS["key-file"] and not any(scrypt):
        return str(key_id.hex())
    raise _refused(where, "was written by a newer vmkeep, or by nobody: it asks for work that was never asked for")


def open_bundle(data: bytes, key: KeyMaterial, where: str) -> StateBundle:
    """Return what a bundle holds.

    Raises WrongKey, and InvalidRequest as ``bundle_key`` does and for a content that no vmkeep writes.
    """
    bundle_key(data, where)
    header, sealed = data[: _HEADER.size], memoryview(data)[_HEADER.size : -_CHECK_BYTES]
    try:
        secret = key.unwrap(header[_BOUND_BYTES:], _WRAP + header[:_BOUND_BYTES])
    except WrongKey as error:
        what = "the passphrase" if key.kind == "passphrase" else f"key {key.key_id}"
        raise WrongKey(
            f"{what} does not open {where}", path=where, hint="The file itself is complete: it is another one's."
        ) from error
    try:
        plain = AESGCM(secret).decrypt(bytes(12), sealed, _SEAL + header)
    except (InvalidTag, ValueError) as error:
        what = "was put together from two: its key opens, and its content is another's"
        raise _refused(where, what) from error
    try:
        return _parsed(plain, where)
    except (WrongField, ObjectDamaged) as error:
        # Without its cause: an exception of a parser may quote what it could not parse.
        told = re.sub(re.escape(where) + " ", "", str(error))
        raise InvalidRequest(f"{where} {told}", path=where, hint=_HINT) from None


def _parsed(plain: bytes, where: str) -> StateBundle:
    length = _LENGTH.unpack_from(plain)[0]
    if length > len(plain) - _LENGTH.size:
        raise WrongField("holds less than it says")
    place = _LENGTH.size + length
    taken = Fields(parse_canonical(plain[_LENGTH.size : place], where))
    uuid = taken.take("vm_uuid", fields.uuid)
    versions = taken.each("versions", lambda value: StateVersion.from_json(value, where))
    secrets = taken.each("secrets", secret_from_json)
    if not 1 <= len(versions) <= _MOST_VERSIONS or len(secrets) > _MOST_SECRETS:
        raise WrongField("holds another number of states or secrets than a bundle can")
    if any(secret.usage != "vtpm" for secret in secrets):
        raise WrongField("holds a secret that is not for a TPM")
    fields.all_different((secret.uuid for secret in secrets), "a secret")
    states = []
    for version in versions:
        content = plain[place : place + version.size_bytes]
        place += version.size_bytes
        _hold_against(version, content, uuid)
        states.append(BundledState(version, content))
    if place != len(plain):
        raise WrongField("holds more than it says")
    return StateBundle(
        uuid, taken.take("vm_name", fields.vm_name), taken.take("created", fields.instant), tuple(states), secrets
    )


def _hold_against(version: StateVersion, content: bytes, vm_uuid: str) -> None:
    if version.vm_uuid != vm_uuid:
        raise WrongField("holds a state of another VM")
    if len(content) != version.size_bytes or hashlib.sha256(content).hexdigest() != version.sha256:
        raise WrongField("holds another state than it says")
    if not content.strip(content[:1]):
        raise WrongField(f"holds a blank {version.kind} state")


_HINT: Final = "Nothing was read of it. Export the state again where it is kept."


def _refused(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {what}", path=where, hint=_HINT)
