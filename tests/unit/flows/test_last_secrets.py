"""Who deletes the last point that holds a secret hears of it."""

from __future__ import annotations

from dataclasses import replace

from tests.integration.catalog.examples import example_point
from vmkeep.catalog import CatalogPoint, MemoryCatalog
from vmkeep.flows.delete_point import told_of_last_secrets


def point(name: str, *secrets: str, signed_by: str | None = "") -> CatalogPoint:
    made = example_point(name)
    held = [{"usage": "vtpm", "uuid": secret} for secret in secrets]
    return replace(made, signed_by=signed_by, document={**made.document, "secrets": held})


def test_secret_that_no_other_vouched_point_holds_is_told_by_its_uuid() -> None:
    catalog = MemoryCatalog()
    points = [point("a", "one", "two"), point("b", "two"), point("c", "one", signed_by="ab" * 16), point("d")]
    for each in points:
        catalog.record_point(each)
    told = told_of_last_secrets(catalog, points[0])
    assert "holds the secret one:" in told
    assert [told_of_last_secrets(catalog, each) for each in points[1:]] == ["", "", ""]
    catalog.forget_point(points[1].id)
    assert "holds the secret one and two:" in told_of_last_secrets(catalog, points[0])
