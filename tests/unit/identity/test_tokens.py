"""Tokens: what is read back, and what is refused without telling it."""

from __future__ import annotations

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.identity.tokens import Token

TOKEN = Token.draw("vmkeep.example:8443", "ab" * 32, random=lambda size: b"\x01" * size)


def test_token_reads_back_also_when_a_mail_has_broken_its_lines() -> None:
    text = TOKEN.text()
    assert Token.parse(text) == TOKEN
    assert Token.parse(f" {text[:40]}\n{text[40:]}\n") == TOKEN
    assert "\\x01" not in repr(TOKEN)


@pytest.mark.parametrize("place", range(8, len(TOKEN.text()), 7))
def test_token_that_was_mistyped_anywhere_is_refused_and_not_told(place: int) -> None:
    text = TOKEN.text()
    wrong = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    with pytest.raises(InvalidRequest) as raised:
        Token.parse(wrong)
    assert wrong[8:30] not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("text", ["", "vmkeep1-", "vmkeep1-AAAA", "vmkeep1-é", "x" * 10_000, TOKEN.text()[:-6]])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no token"):
        Token.parse(text)
