"""A keyring for two recipients is pinned: written again byte for byte, and opened by a reader made from the document.

When this fails, the code is wrong, not the golden files. See docs/internals/repository-format.md, section 3.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.integration.repository.samples import SeededKey, opener, run_lengths, sample_key, seeded
from vmkeep.keys.provider import ProviderKey
from vmkeep.providers import ProviderSettings
from vmkeep.repository import Repository

GOLDEN = Path(__file__).parent / "golden" / "recipients"
PAD = 0x5A
SETTINGS = ProviderSettings("vault", "transit", {"key": "vmkeep", "address": "https://h", "label": "site-a"})


class Pad:
    """A device in memory, so that nothing of a server's is in the bytes."""

    def seal(self, plain: bytes) -> bytes:
        return b"sealed:" + bytes(byte ^ PAD for byte in plain)

    def open(self, sealed: bytes) -> bytes:
        return bytes(byte ^ PAD for byte in sealed.removeprefix(b"sealed:"))

    def close(self) -> None:
        pass


def provider_key() -> ProviderKey:
    return ProviderKey(SETTINGS, lambda _settings: Pad(), random=seeded(12))


def make(directory: Path) -> Path:
    """Write the repository: one key file, then a provider's key as well, then that alone with a new data key."""
    location = directory / "repository"
    key, held, source = SeededKey(sample_key(), seeded(11)), provider_key(), seeded(10)
    repository = Repository.create(str(location), key, random=source, compress=run_lengths)
    repository.rewrite_keyring(proof=held, add=held)
    repository.rewrite_keyring(proof=held, remove=key.key_id, new_data_key_for=[held])
    return location


def test_keyring_for_two_recipients_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    location = make(tmp_path)
    golden = sorted(path.relative_to(GOLDEN) for path in GOLDEN.rglob("*") if path.is_file())
    assert [str(name) for name in golden] == ["format", *(f"keyring/000000000{number}" for number in (1, 2, 3))]
    for name in golden:
        assert (location / name).read_bytes() == (GOLDEN / name).read_bytes(), name


def test_keyring_for_two_recipients_is_readable() -> None:
    repository = Repository.open(str(GOLDEN), opener(provider_key()))
    assert (repository.keyring.generation, len(repository.keyring.default.data_keys)) == (3, 2)
    assert repository.verify_all().sound


def unwrap(envelope: dict[str, str], associated: bytes) -> bytes:
    """Open an envelope as the document says, with nothing of vmkeep's."""
    wrapped = base64.b64decode(envelope["wrapped"])
    if envelope["kind"] == "key-file":
        key = HKDF(algorithm=SHA256(), length=32, salt=wrapped[:32], info=b"vmkeep key-file wrap v1").derive(
            bytes(range(32))
        )
        return AESGCM(key).decrypt(bytes(12), wrapped[32:], associated)
    identity = b'{"key":"transit/vmkeep","kind":"transit","label":"site-a"}'
    assert envelope["key_id"] == blake3(identity, derive_key_context="vmkeep 2026 provider key id").hexdigest()[:32]
    size = int.from_bytes(wrapped[:2], "little")
    inner = Pad().open(wrapped[2 : 2 + size])
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"vmkeep provider wrap v1").derive(inner)
    return AESGCM(key).decrypt(bytes(12), wrapped[2 + size :], associated)


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_reader_made_from_the_document_opens_every_envelope_and_proves_the_seal(generation: int) -> None:
    ring: dict[str, Any] = json.loads((GOLDEN / f"keyring/{generation:010}").read_bytes())
    (domain,) = ring["domains"]
    recipients = {each["key_id"] for each in ring["recipients"]}
    assert len(recipients) == (1, 2, 1)[generation - 1]

    def opened(sealed: dict[str, Any], key: str, purpose: str) -> bytes:
        names = json.dumps({"domain": domain["id"], "key": key, "purpose": purpose}, sort_keys=True)
        text = names.replace(" ", "").replace("datakey", "data key").replace("idkey", "id key").encode()
        associated = b"vmkeep envelope v1\n" + text + b"\n" + (GOLDEN / "format").read_bytes()
        assert {envelope["key_id"] for envelope in sealed["envelopes"]} == recipients
        (secret,) = {unwrap(envelope, associated) for envelope in sealed["envelopes"]}
        return secret

    id_key = opened(domain["id_key"], "0" * 32, "id key")
    for each in domain["data_keys"]:
        assert len(opened(each, each["id"], "data key")) == 32
    assert domain["active"] == domain["data_keys"][-1]["id"]
    seals = ring.pop("seals")
    body = json.dumps(ring, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    seal_key = blake3(id_key, derive_key_context="vmkeep 2026 repository v1 keyring seal").digest()
    assert seals == {domain["id"]: blake3(body, key=seal_key).hexdigest()}
