"""Whatever a bundle of state holds, also one that was sealed with the right key: data, or an error with a hint."""

from __future__ import annotations

import struct
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.repository.samples import sample_key
from tests.property.foreign import anything, damaged, forged, outcome, written
from tests.unit.repository.test_statebundle import BUNDLE, checked, sealed
from vmkeep.repository.envelopes import secret_as_json
from vmkeep.repository.statebundle import bundle_key, open_bundle

DOCUMENT = {
    "created": BUNDLE.created,
    "padding": "0",
    "secrets": [secret_as_json(secret) for secret in BUNDLE.secrets],
    "versions": [state.version.as_json() for state in BUNDLE.states],
    "vm_name": BUNDLE.vm_name,
    "vm_uuid": BUNDLE.vm_uuid,
}
CONTENTS = b"".join(state.content for state in BUNDLE.states)
HEADER = sealed()[:116]
KEY = sample_key().unwrap(HEADER[36:], b"vmkeep state bundle v1 key\n" + HEADER[:36])


def resealed(plain: bytes) -> bytes:
    """Return a bundle of any content, as whoever has the key can make it."""
    return checked(HEADER + AESGCM(KEY).encrypt(bytes(12), plain, b"vmkeep state bundle v1\n" + HEADER))


def opened(data: bytes) -> None:
    found = outcome(lambda: open_bundle(data, sample_key(), "FILE"))
    if found is not None:
        assert all(state.version.vm_uuid == found.vm_uuid for state in found.states)
        assert all(state.version.size_bytes == len(state.content) for state in found.states)


@given(st.binary(max_size=200) | damaged(sealed()), st.booleans())
def test_any_file(content: bytes, right: bool) -> None:
    data = checked(content) if right else content
    outcome(lambda: bundle_key(data, "FILE"))
    opened(data)


@given(anything | forged(DOCUMENT), st.sampled_from([CONTENTS, CONTENTS[:-1], CONTENTS + b"x", b""]))
def test_any_document_behind_the_seal(value: Any, contents: bytes) -> None:
    head = written(value)
    if head is not None:
        opened(resealed(struct.pack("<I", len(head)) + head + contents))


@given(st.integers(0, 2**32 - 1) | st.integers(0, 3000), st.binary(max_size=60))
def test_any_length_of_the_document(length: int, content: bytes) -> None:
    opened(resealed(struct.pack("<I", length) + content))
