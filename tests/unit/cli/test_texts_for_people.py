"""Numbers as people read them."""

from __future__ import annotations

import pytest

from vmkeep.cli.console import duration_text, size_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10.0 s"), (61.4, "61 s"), (125, "2 min 5 s"), (3600, "1 h 0 min")],
)
def test_time_span_is_as_exact_as_it_is_of_use(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (20 << 20, "20.0 MiB"), (3 << 40, "3.0 TiB")],
)
def test_size_has_the_unit_in_which_it_is_no_zero(size_bytes: int | None, text: str) -> None:
    assert size_text(size_bytes) == text
