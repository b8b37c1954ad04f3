"""Who deletes the last that holds a secret hears of it, unless a version takes the secret along."""

from __future__ import annotations

from dataclasses import replace

from tests.integration.catalog.examples import example_point
from vmkeep.catalog import CatalogPoint, CatalogState, MemoryCatalog
from vmkeep.flows.delete_point import told_of_last_secrets
from vmkeep.planning.retention import KeepRule

RULE = KeepRule(last=1)


def point(name: str, *secrets: str, signed_by: str | None = "", states: tuple[CatalogState, ...] = ()) -> CatalogPoint:
    made = example_point(name, states=states)
    held = [{"usage": "vtpm", "uuid": secret} for secret in secrets]
    return replace(made, signed_by=signed_by, document={**made.document, "secrets": held})


def version(generation: int, vm: str) -> CatalogState:
    created = f"2026-03-02T1{generation}:00:00.000000+00:00"
    return CatalogState(f"{generation}" * 32, vm, "tpm", generation, f"{generation}" * 64, 6000, created)


def test_secret_that_nothing_else_holds_is_told_when_its_version_goes_too() -> None:
    catalog = MemoryCatalog()
    vm = point("x").vm_uuid
    older, newer = version(1, vm), version(2, vm)
    points = [
        point("a", "one", "two", states=(older,)),
        point("b", "two"),
        point("c", "one", signed_by="ab" * 16),
        point("d"),
        point("e", "three", states=(newer,)),
    ]
    for each, states in zip(points, ((older,), (), (), (), (newer,)), strict=True):
        catalog.record_point(each, states)
    assert "holds the secret one:" in told_of_last_secrets(catalog, points[0], RULE)
    # A secret without a state gets a pin, and that of a version which stays goes with it.
    assert [told_of_last_secrets(catalog, each, RULE) for each in points[1:]] == ["", "", "", ""]
    catalog.forget_point(points[1].id)
    assert "holds the secret one and two:" in told_of_last_secrets(catalog, points[0], RULE)
    assert told_of_last_secrets(catalog, points[0], KeepRule(last=5)) == ""
