"""What doctor takes from points without a question: of those who are believed only."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.integration.catalog.examples import example_point
from vmkeep.catalog import Trust
from vmkeep.flows.check_up import _remembered_point

SECRET = {"usage": "vtpm", "uuid": "11111111-2222-3333-4444-555555555555"}


@pytest.mark.parametrize(
    ("trust", "signed_by", "believed"),
    [
        (Trust.OWN, "a" * 32, True),
        (Trust.TRUSTED, "a" * 32, True),
        (Trust.UNSIGNED, "", True),  # it was known here before points were signed
        (Trust.UNSIGNED, None, False),
        (Trust.UNKNOWN, "a" * 32, False),
        (Trust.DISTRUSTED, "a" * 32, False),
    ],
)
def test_doctor_takes_secrets_of_points_that_are_believed_only(
    trust: Trust, signed_by: str | None, believed: bool
) -> None:
    point = example_point("p")
    point = replace(point, document={**point.document, "secrets": [SECRET]}, trust=trust, signed_by=signed_by)
    assert bool(_remembered_point(point, None).secrets) == believed
