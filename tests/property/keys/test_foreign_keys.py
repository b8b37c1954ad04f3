"""Keys as others wrote them: lines from paper, pages, envelopes of providers, their settings, files with passphrase."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.property.foreign import anything, damaged, forged, outcome, texts
from vmkeep.errors import WrongKey
from vmkeep.keys import KeyFile
from vmkeep.keys.paper import page, parse_lines, typed_lines
from vmkeep.keys.provider import ProviderKey
from vmkeep.providers import ProviderSettings, read_providers

KEY_ID = "61cf383c3bb2299f1710e444d074baec"
LINES = typed_lines(KEY_ID, bytes(range(88)))
SETTINGS = ProviderSettings("vault", "transit", {"key": "vmkeep", "address": "https://h"})
TABLE = {
    "vault": {"provider": "transit", "key": "k", "address": "https://h:8200", "token_file": "/t", "timeout_seconds": 5},
    "kms": {
        "provider": "kmip",
        "key": "1",
        "address": "h:5696",
        "label": "b",
        "certificate_file": "/c",
        "private_key_file": "/p",
        "ca_file": "/a",
    },
}
SEALED = {"format": "vmkeep key", "key_id": KEY_ID, "sealed": base64.b64encode(bytes(80)).decode(), "version": 2}


class Echo:
    """A device that gives back what it is given."""

    def seal(self, plain: bytes) -> bytes:
        return plain

    def open(self, sealed: bytes) -> bytes:
        return sealed

    def close(self) -> None:
        pass


KEY = ProviderKey(SETTINGS, lambda _settings: Echo())


@given(st.binary(min_size=2, max_size=390), st.binary(min_size=16, max_size=16))
def test_what_is_on_paper_is_what_was_put_there(content: bytes, key_id: bytes) -> None:
    assert parse_lines(typed_lines(key_id.hex(), content)) == (key_id.hex(), content)


@given(damaged(LINES.encode()))
def test_damaged_lines(data: bytes) -> None:
    found = outcome(lambda: parse_lines(data.decode("utf-8", "surrogateescape")))
    # What passes all checks was not changed where it matters.
    assert found in (None, parse_lines(LINES))


@given(damaged(page(LINES, "scanned", [("key", KEY_ID)]).encode()))
def test_damaged_page(data: bytes) -> None:
    assert outcome(lambda: parse_lines(data.decode("utf-8", "surrogateescape"))) in (None, parse_lines(LINES))


@given(texts)
def test_any_text_as_lines(text: str) -> None:
    outcome(lambda: parse_lines(text))


@given(st.binary(max_size=200) | damaged(KEY.wrap(bytes(32), b"this")))
def test_envelope_of_a_provider(wrapped: bytes) -> None:
    assert outcome(lambda: KEY.unwrap(wrapped, b"this")) in (None, bytes(32))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_secret_opens_with_the_data_it_was_sealed_with_alone(secret: bytes, data: bytes) -> None:
    wrapped = KEY.wrap(secret, data)
    assert KEY.unwrap(wrapped, data) == secret
    with pytest.raises(WrongKey):
        KEY.unwrap(wrapped, data + b"x")


@given(anything | forged(TABLE))
def test_settings_of_providers(value: Any) -> None:
    outcome(lambda: read_providers("vmkeep.toml", value))


@given(anything | forged(SEALED))
def test_key_file_with_a_passphrase(value: Any) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x.key"
        path.write_text(json.dumps(value))
        outcome(lambda: KeyFile.load(path))
        outcome(lambda: KeyFile.has_passphrase(path))
