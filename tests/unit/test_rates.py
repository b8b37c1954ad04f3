"""Rates as they are written, and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.config import Settings, limited
from vmkeep.errors import InvalidRequest
from vmkeep.rates import Limits, rate_bytes, rate_requests


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("50MB/s", 50_000_000),
        ("50MiB/s", 50 << 20),
        ("100kB/s", 100_000),
        ("400Mbit/s", 50_000_000),
        ("2GB/s", 2_000_000_000),
        *(
            (text, None)
            for text in ("50", "50MB", "50M/s", "99kB/s", "0MB/s", "-5MB/s", "1.5MB/s", "MB/s", "\u0665MB/s", "")
        ),
    ],
)
def test_a_rate_has_a_unit_that_says_what_it_is(text: str, rate: int | None) -> None:
    assert rate_bytes(text) == rate


@pytest.mark.parametrize(
    ("text", "requests"), [("20/s", 20), *((text, None) for text in ("20", "0/s", "-1/s", "20/m", ""))]
)
def test_requests_are_by_the_second(text: str, requests: int | None) -> None:
    assert rate_requests(text) == requests


def test_limits_are_shown_as_one_text() -> None:
    assert Limits(50_000_000, 20).text == "at most 50 MB/s, 20 requests/s"
    assert Limits().text == ""


def test_what_a_command_is_given_counts_instead_of_the_settings() -> None:
    here = Path("/nowhere")
    settings = Settings(here, "test:///default", "/r", here, here, 1, limits=Limits(1_000_000, 5))
    assert limited(settings, "2MB/s", None).limits == Limits(2_000_000, 5)
    assert limited(settings, None, "7/s").limits == Limits(1_000_000, 7)
    assert limited(settings, None, None).limits == settings.limits
    with pytest.raises(InvalidRequest, match="--max-rate must be"):
        limited(settings, "fast", None)
    with pytest.raises(InvalidRequest, match="--max-requests must be"):
        limited(settings, None, "many")
