"""What a server says of the term for which a bucket locks objects."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

import pytest

from vmkeep.repository.objectlock import retention
from vmkeep.repository.probe import _object_lock

_MODE = "<Mode>COMPLIANCE</Mode>"
_ENABLED = "<ObjectLockEnabled>Enabled</ObjectLockEnabled>"


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (
            200,
            f"<C>{_ENABLED}{_MODE}<Days>30</Days></C>",
            ("on", 30),
        ),
        (
            200,
            f"<C>{_ENABLED}{_MODE}<Years> 2 </Years></C>",
            ("on", 730),
        ),
        (200, f"<C>{_ENABLED}</C>", ("on", 0)),
        (200, f"<C>{_ENABLED}<Days>999999999999</Days><Years>-1</Years><Days>x</Years></C>", ("on", 0)),
        (200, "<C><Days>30</Days></C>", ("off", 0)),
        (404, "<Code>ObjectLockConfigurationNotFoundError</Code>", ("off", 0)),
        (403, _ENABLED, ("unknown", 0)),
    ],
)
def test_term_is_what_the_bucket_gives_to_all(status: int, body: str, told: tuple[str, int]) -> None:
    assert _object_lock(status, body) == told


def test_request_that_locks_has_the_form_and_the_sum_that_s3_wants() -> None:
    body, headers = retention("GOVERNANCE", datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert body == (
        b'<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Mode>GOVERNANCE</Mode>'
        b"<RetainUntilDate>2027-01-02T03:04:05Z</RetainUntilDate></Retention>"
    )
    digest = hashlib.md5(body, usedforsecurity=False).digest()
    assert headers["content-md5"] == base64.b64encode(digest).decode()
