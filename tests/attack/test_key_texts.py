"""Key texts that somebody else wrote: no work is done for what vmkeep has never printed."""

from __future__ import annotations

import base64
from functools import cache

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.keys import KeyFile, armor, export_key, import_key, passphrase

# Where the parameters stand in the header: version, log2 of n, r, p.
WRITTEN = bytes([1, 17, 8, 1])
NEVER_WRITTEN = [
    pytest.param(bytes([1, 22, 16, 4]), id="8 GiB"),
    pytest.param(bytes([1, 18, 8, 1]), id="twice the memory"),
    pytest.param(bytes([1, 17, 8, 2]), id="twice the time"),
    pytest.param(bytes([1, 14, 1, 1]), id="easier to guess"),
    pytest.param(bytes([2, 17, 8, 1]), id="another version"),
]


@cache
def printed() -> tuple[KeyFile, str]:
    key = KeyFile.draw()
    return key, export_key(key, "open sesame")


def resealed(text: str, parameters: bytes) -> str:
    """Return a key text with other parameters and a right checksum: nobody needs a secret for that."""
    lines = text.split("\n")
    key_id = lines[1].removeprefix("Key: ")
    content = base64.b64decode("".join(lines[3:-2]))
    body = parameters + content[4:-8]
    changed = base64.b64encode(body + armor._check(body, key_id)).decode()
    return "\n".join([*lines[:3], changed, *lines[-2:]])


@pytest.mark.parametrize("parameters", NEVER_WRITTEN)
def test_parameters_that_were_never_written_are_refused_before_any_work(
    parameters: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = resealed(printed()[1], parameters)

    def derive(*_: object, **__: object) -> None:
        pytest.fail("work was done for a text that nobody can have printed")

    monkeypatch.setattr(passphrase, "Scrypt", derive)
    with pytest.raises(InvalidRequest, match="written by a newer vmkeep, or by nobody"):
        import_key(text, "open sesame")


def test_what_was_printed_is_imported() -> None:
    key, text = printed()
    assert resealed(text, WRITTEN).replace("\n", "") == text.replace("\n", "")
    assert import_key(resealed(text, WRITTEN), "open sesame").secret == key.secret
