"""The keyring: a repository's keys, each in an envelope for one or more recipients.

A generation is never changed; a rotation writes the next one and the highest is in force. Envelopes are carried
over as they are, so adding a data key never needs the other recipients' keys.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blake3 import blake3

from vmkeep.errors import KeyMissing, ObjectDamaged, ObjectMissing, WrongKey
from vmkeep.keys import KeyMaterial
from vmkeep.repository.layout import FORMAT_OBJECT, KEYRING, NAME_BYTES, canonical, parse_canonical
from vmkeep.repository.seal import Domain, Random
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

KEY_BYTES = 32
SEAL_CONTEXT = "vmkeep 2026 repository v1 keyring seal"
ENVELOPE_LABEL = b"vmkeep envelope v1\n"


@dataclass(frozen=True, slots=True)
class Keyring:
    """One generation of the keyring, opened. ``value`` is its JSON, with fields of later minor versions."""

    generation: int
    value: Mapping[str, Any]
    domains: Mapping[bytes, Domain]

    @property
    def default(self) -> Domain:
        return next(domain for domain in self.domains.values() if domain.name == "default")

    def to_bytes(self) -> bytes:
        return canonical(self.value)

    def with_new_data_key(self, format_bytes: bytes, key: KeyMaterial, *, random: Random = os.urandom) -> Keyring:
        """Return the next generation, in which the default domain seals with a new data key and opens with all."""
        value = {name: content for name, content in self.value.items() if name != "seals"}
        domain = self.default
        key_id, data_key = random(NAME_BYTES), random(KEY_BYTES)
        entries = []
        for entry in value["domains"]:
            if entry["id"] == domain.id.hex():
                sealed = {
                    "id": key_id.hex(),
                    "envelopes": [_wrap(key, data_key, domain.id, key_id, "data key", format_bytes)],
                }
                entry = {**entry, "active": key_id.hex(), "data_keys": [*entry["data_keys"], sealed]}
            entries.append(entry)
        value |= {"domains": entries, "generation": self.generation + 1}
        changed = Domain(domain.id, domain.name, domain.id_key, {**domain.data_keys, key_id: data_key}, key_id)
        return _sealed(value, {**self.domains, domain.id: changed})


def keyring_name(generation: int) -> str:
    return f"{KEYRING}{generation:010d}"


def new_keyring(format_bytes: bytes, key: KeyMaterial, *, random: Random = os.urandom) -> Keyring:
    """Return the first generation: one domain "default" with an id key and one data key, for one recipient."""
    domain, key_id = random(NAME_BYTES), random(NAME_BYTES)
    id_key, data_key = random(KEY_BYTES), random(KEY_BYTES)
    entry = {
        "active": key_id.hex(),
        "data_keys": [
            {"id": key_id.hex(), "envelopes": [_wrap(key, data_key, domain, key_id, "data key", format_bytes)]}
        ],
        "id": domain.hex(),
        "id_key": {"envelopes": [_wrap(key, id_key, domain, bytes(NAME_BYTES), "id key", format_bytes)]},
        "name": "default",
    }
    value = {
        "domains": [entry],
        "format": "vmkeep keyring",
        "generation": 1,
        "recipients": [{"key_id": key.key_id, "kind": key.kind}],
    }
    return _sealed(value, {domain: Domain(domain, "default", id_key, {key_id: data_key}, key_id)})


def highest_generation(store: ObjectStore) -> int:
    """Return the generation in force; raises ObjectMissing when there is no keyring at all."""
    generations = [number for item in store.list(KEYRING) if (number := generation_of_name(item.name)) is not None]
    if not generations:
        raise ObjectMissing(
            f"{store.location} has no keyring: without it nothing can be read",
            path=store.location,
            hint="Bring back the directory keyring/ from a copy of the repository.",
        )
    return max(generations)


def generation_of_name(name: str) -> int | None:
    digits = name.removeprefix(KEYRING)
    return int(digits) if len(digits) == 10 and digits.isascii() and digits.isdigit() and int(digits) > 0 else None


def open_keyring(
    store: ObjectStore, generation: int, format_bytes: bytes, keys: Callable[[Sequence[str]], KeyMaterial]
) -> Keyring:
    """Open a generation with the key that ``keys`` returns for one of the recipients' key ids.

    Raises ObjectMissing, ObjectDamaged, WrongKey when the key is not a recipient's, and what ``keys`` raises.
    """
    name = keyring_name(generation)
    value = parse_canonical(store.get(name), name)
    try:
        if value["format"] != "vmkeep keyring" or value["generation"] != generation:
            raise ObjectDamaged(f"{name} holds something else", path=name)
        recipients = [str(recipient["key_id"]) for recipient in value["recipients"]]
    except (KeyError, TypeError) as error:
        raise ObjectDamaged(f"{name} is not written as it should be", path=name) from error
    key = keys(recipients)
    if key.key_id not in recipients:
        raise WrongKey(f"key {key.key_id} is not one of this repository's: {', '.join(recipients)}", path=name)
    try:
        return _open(value, name, generation, format_bytes, key)
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError, binascii.Error) as error:
        raise ObjectDamaged(f"{name} is not written as it should be", path=name) from error


def _open(value: dict[str, Any], name: str, generation: int, format_bytes: bytes, key: KeyMaterial) -> Keyring:
    domains = {}
    try:
        for entry in value["domains"]:
            domain = _open_domain(entry, key, format_bytes)
            if domain is not None:
                domains[domain.id] = domain
    except WrongKey as error:
        # The key's own id was checked against its secret, so it is the right one.
        raise ObjectDamaged(f"{name} or {FORMAT_OBJECT} was changed: an envelope does not open", path=name) from error
    if not domains:
        raise KeyMissing(f"key {key.key_id} opens no dedup domain of this repository", path=name)
    body = canonical({field: content for field, content in value.items() if field != "seals"})
    for id_, domain in domains.items():
        if not hmac.compare_digest(str(value["seals"][id_.hex()]), _seal(domain, body)):
            raise ObjectDamaged(f"{name} was changed: its seal is wrong", path=name)
    keyring = Keyring(generation, value, domains)
    _ = keyring.default
    return keyring


def _open_domain(entry: dict[str, Any], key: KeyMaterial, format_bytes: bytes) -> Domain | None:
    id_ = bytes.fromhex(entry["id"])
    id_key = _unwrap(key, entry["id_key"]["envelopes"], id_, bytes(NAME_BYTES), "id key", format_bytes)
    if id_key is None:
        return None
    data_keys = {}
    for sealed in entry["data_keys"]:
        key_id = bytes.fromhex(sealed["id"])
        data_key = _unwrap(key, sealed["envelopes"], id_, key_id, "data key", format_bytes)
        if data_key is not None:
            data_keys[key_id] = data_key
    active = bytes.fromhex(entry["active"])
    if active not in data_keys:
        raise ValueError("the active key is not there")
    return Domain(id_, str(entry["name"]), id_key, data_keys, active)


def _associated(domain: bytes, key_id: bytes, purpose: str, format_bytes: bytes) -> bytes:
    return ENVELOPE_LABEL + canonical({"domain": domain.hex(), "key": key_id.hex(), "purpose": purpose}) + format_bytes


def _wrap(
    key: KeyMaterial, secret: bytes, domain: bytes, key_id: bytes, purpose: str, format_bytes: bytes
) -> dict[str, str]:
    wrapped = key.wrap(secret, _associated(domain, key_id, purpose, format_bytes))
    return {"key_id": key.key_id, "kind": key.kind, "wrapped": base64.b64encode(wrapped).decode()}


def _unwrap(
    key: KeyMaterial,
    envelopes: Sequence[Mapping[str, str]],
    domain: bytes,
    key_id: bytes,
    purpose: str,
    format_bytes: bytes,
) -> bytes | None:
    for envelope in envelopes:
        if envelope["key_id"] == key.key_id and envelope["kind"] == key.kind:
            wrapped = base64.b64decode(envelope["wrapped"], validate=True)
            return key.unwrap(wrapped, _associated(domain, key_id, purpose, format_bytes))
    return None


def _sealed(value: dict[str, Any], domains: Mapping[bytes, Domain]) -> Keyring:
    body = canonical(value)
    seals = {domain.id.hex(): _seal(domain, body) for domain in domains.values()}
    return Keyring(int(value["generation"]), {**value, "seals": seals}, domains)


def _seal(domain: Domain, body: bytes) -> str:
    return blake3(body, key=blake3(domain.id_key, derive_key_context=SEAL_CONTEXT).digest()).hexdigest()
