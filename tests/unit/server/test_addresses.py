"""Addresses to listen at."""

from __future__ import annotations

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.server.listeners import Address


@pytest.mark.parametrize("text", ["127.0.0.1:8443", "[::1]:0", "vmkeep.example:65535"])
def test_address_reads_back_as_it_was_written(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "8443", ":8443", "host:", "host:x", "host:65536", "::1:8443", "host:١٢", "host:-1"]
)
def test_what_is_no_address_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no address to listen at"):
        Address.parse(text)
