"""What a server says of the term for which a bucket locks objects."""

from __future__ import annotations

import pytest

from vmkeep.repository.probe import _object_lock

_ENABLED = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, f"<C>{_ENABLED}<Rule><DefaultRetention><Days>30</Days></DefaultRetention></Rule></C>", ("on", 30)),
        (200, f"<C>{_ENABLED}<Rule><DefaultRetention><Years> 2 </Years></DefaultRetention></Rule></C>", ("on", 730)),
        (200, f"<C>{_ENABLED}</C>", ("on", 0)),
        (200, f"<C>{_ENABLED}<Days>999999999999</Days><Years>-1</Years><Days>x</Years></C>", ("on", 0)),
        (200, "<C><Days>30</Days></C>", ("off", 0)),
        (404, "<Code>ObjectLockConfigurationNotFoundError</Code>", ("off", 0)),
        (403, _ENABLED, ("unknown", 0)),
    ],
)
def test_term_is_what_the_bucket_gives_to_all(status: int, body: str, told: tuple[str, int]) -> None:
    assert _object_lock(status, body) == told
