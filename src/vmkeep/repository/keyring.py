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
from contextlib import suppress
from datetime import datetime
from typing import Any

from blake3 import blake3

from vmkeep.errors import InvalidRequest, KeyMissing, ObjectDamaged, ObjectMissing, WrongKey
from vmkeep.keys import KeyMaterial
from vmkeep.keys.material import KEY_FILE
from vmkeep.repository.layout import FORMAT_OBJECT, KEYRING, NAME_BYTES, canonical, parse_canonical
from vmkeep.repository.seal import Domain, Random
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

KEY_BYTES = 32
SEAL_CONTEXT = "vmkeep 2026 repository v1 keyring seal"
ENVELOPE_LABEL = b"vmkeep envelope v1\n"


@dataclass(frozen=True, slots=True)
class Recipient:
    """A key that opens the keyring: its id, and what kind of provider holds it ("key-file")."""

    key_id: str
    kind: str


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

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Who opens it, in the order in which they were added."""
        return tuple(Recipient(str(each["key_id"]), str(each["kind"])) for each in self.value["recipients"])

    def with_new_data_key(self, format_bytes: bytes, *keys: KeyMaterial, random: Random = os.urandom) -> Keyring:
        """Return the next generation, in which the default domain seals with a new data key and opens with all.

        ``keys`` are those of all recipients: raises KeyMissing for one that is not among them, which could not open
        what is written from then on.
        """
        missing = [each.key_id for each in self.recipients if each.key_id not in {key.key_id for key in keys}]
        if missing:
            raise KeyMissing(
                f"a new data key needs the key of each recipient, and {', '.join(missing)} is not at hand",
                hint="Bring it here for as long as that takes, or remove the recipient.",
            )
        domain = self.default
        key_id, data_key = random(NAME_BYTES), random(KEY_BYTES)
        entries = []
        for entry in self.value["domains"]:
            if entry["id"] == domain.id.hex():
                envelopes = [_wrap(key, data_key, domain.id, key_id, "data key", format_bytes) for key in keys]
                sealed = {"id": key_id.hex(), "envelopes": envelopes}
                entry = {**entry, "active": key_id.hex(), "data_keys": [*entry["data_keys"], sealed]}
            entries.append(entry)
        changed = Domain(domain.id, domain.name, domain.id_key, {**domain.data_keys, key_id: data_key}, key_id)
        return self._next({"domains": entries}, {**self.domains, domain.id: changed})

    def with_recipient(self, format_bytes: bytes, key: KeyMaterial) -> Keyring:
        """Return the next generation, which that key opens too. Raises InvalidRequest for one that does already.

        Raises what the key's ``wrap`` raises, and KeyMissing where the key that opened this does not open all of it.
        """
        if key.key_id in {each.key_id for each in self.recipients}:
            raise InvalidRequest(f"key {key.key_id} opens the repository already", hint="Nothing was changed.")
        self._require_whole()
        entries = []
        for entry in self.value["domains"]:
            domain = self.domains[bytes.fromhex(entry["id"])]
            sealed = []
            for each in entry["data_keys"]:
                key_id = bytes.fromhex(each["id"])
                made = _wrap(key, domain.data_keys[key_id], domain.id, key_id, "data key", format_bytes)
                sealed.append({**each, "envelopes": [*each["envelopes"], made]})
            made = _wrap(key, domain.id_key, domain.id, bytes(NAME_BYTES), "id key", format_bytes)
            id_key = {**entry["id_key"], "envelopes": [*entry["id_key"]["envelopes"], made]}
            entries.append({**entry, "data_keys": sealed, "id_key": id_key})
        recipients = [*self.value["recipients"], {"key_id": key.key_id, "kind": key.kind}]
        return self._next({"domains": entries, "recipients": recipients}, self.domains)

    def without_recipient(self, key_id: str) -> Keyring:
        """Return the next generation, which that key does not open. Raises InvalidRequest for the last one, or none."""
        left = [each for each in self.value["recipients"] if each["key_id"] != key_id]
        if len(left) == len(self.value["recipients"]):
            raise InvalidRequest(
                f"key {key_id} does not open the repository", hint="`vmkeep key recipients list` names those that do."
            )
        if not left:
            raise InvalidRequest(
                f"key {key_id} is the last one that opens the repository; without it all points would be lost",
                hint="Add another one first: `vmkeep key recipients add`, or `vmkeep key rewrap`.",
            )
        self._require_whole()
        entries = [
            {
                **entry,
                "data_keys": [{**each, "envelopes": _without(each, key_id)} for each in entry["data_keys"]],
                "id_key": {**entry["id_key"], "envelopes": _without(entry["id_key"], key_id)},
            }
            for entry in self.value["domains"]
        ]
        return self._next({"domains": entries, "recipients": left}, self.domains)

    def as_next_of(self, former: Keyring) -> Keyring:
        """Return it as the generation that follows another one, from which it was made in several steps."""
        kept = {name: content for name, content in self.value.items() if name != "seals"}
        return _sealed({**kept, "generation": former.generation + 1}, self.domains)

    def proves(self, value: Mapping[str, Any]) -> bool:
        """Return whether another generation was sealed by who has the keys of a domain of this one."""
        body = canonical({name: content for name, content in value.items() if name != "seals"})
        seals = value.get("seals")
        return isinstance(seals, dict) and any(
            hmac.compare_digest(str(seals.get(id_.hex())).encode(), _seal(domain, body).encode())
            for id_, domain in self.domains.items()
        )

    def _next(self, fields: Mapping[str, Any], domains: Mapping[bytes, Domain]) -> Keyring:
        kept = {name: content for name, content in self.value.items() if name != "seals"}
        return _sealed({**kept, **fields, "generation": self.generation + 1}, domains)

    def _require_whole(self) -> None:
        """Raise KeyMissing when a part of the keyring is not open: it could be neither wrapped anew nor sealed."""
        for entry in self.value["domains"]:
            domain = self.domains.get(bytes.fromhex(entry["id"]))
            if domain is None or len(domain.data_keys) != len(entry["data_keys"]):
                raise KeyMissing(
                    "the key that is used here does not open all of the keyring, so it cannot be written anew",
                    hint="Use the key of another recipient, which opens all of it.",
                )


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


def keyring_recipients(store: ObjectStore, generation: int) -> tuple[Recipient, ...]:
    """Return who opens a generation, as it says itself, unproved. Raises ObjectMissing, ObjectDamaged."""
    name = keyring_name(generation)
    return _recipients(parse_canonical(store.get(name), name), name, generation)


def recipients_since(store: ObjectStore) -> dict[Recipient, datetime]:
    """Return who opens any generation, and when the first one was stored that says so; damaged ones are left out."""
    found: dict[Recipient, datetime] = {}
    for item in sorted(store.list(KEYRING), key=lambda item: item.name):
        generation = generation_of_name(item.name)
        if generation is not None:
            with suppress(ObjectDamaged, ObjectMissing):
                for each in keyring_recipients(store, generation):
                    found.setdefault(each, item.modified)
    return found


def open_keyring(
    store: ObjectStore, generation: int, format_bytes: bytes, keys: Callable[[Sequence[str]], KeyMaterial]
) -> Keyring:
    """Open a generation with the key that ``keys`` returns for one of the recipients' key ids.

    Raises ObjectMissing, ObjectDamaged, WrongKey when the key is not a recipient's, and what ``keys`` raises.
    """
    return read_keyring(store.get(keyring_name(generation)), generation, format_bytes, keys)


def read_keyring(
    content: bytes, generation: int, format_bytes: bytes, keys: Callable[[Sequence[str]], KeyMaterial]
) -> Keyring:
    """Open a generation whose bytes are given; raises as ``open_keyring``, but ObjectMissing."""
    name = keyring_name(generation)
    value = parse_canonical(content, name)
    recipients = [each.key_id for each in _recipients(value, name, generation)]
    key = keys(recipients)
    if key.key_id not in recipients:
        raise WrongKey(f"key {key.key_id} is not one of this repository's: {', '.join(recipients)}", path=name)
    try:
        return _open(value, name, generation, format_bytes, key)
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError, binascii.Error) as error:
        raise ObjectDamaged(f"{name} is not written as it should be", path=name) from error


def _recipients(value: Mapping[str, Any], name: str, generation: int) -> tuple[Recipient, ...]:
    try:
        if value["format"] != "vmkeep keyring" or value["generation"] != generation:
            raise ObjectDamaged(f"{name} holds something else", path=name)
        return tuple(Recipient(str(each["key_id"]), str(each["kind"])) for each in value["recipients"])
    except (KeyError, TypeError) as error:
        raise ObjectDamaged(f"{name} is not written as it should be", path=name) from error


def _without(sealed: Mapping[str, Any], key_id: str) -> list[Any]:
    return [envelope for envelope in sealed["envelopes"] if envelope["key_id"] != key_id]


def _open(value: dict[str, Any], name: str, generation: int, format_bytes: bytes, key: KeyMaterial) -> Keyring:
    domains = {}
    try:
        for entry in value["domains"]:
            domain = _open_domain(entry, key, format_bytes)
            if domain is not None:
                domains[domain.id] = domain
    except WrongKey as error:
        if key.kind != KEY_FILE:
            raise  # its id is that of its name, so the provider may have another key of that name
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
