"""What a policy is of, and which are refused."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tests.integration.catalog.examples import WIN11, example_point
from vmkeep.catalog import MemoryCatalog, Policy
from vmkeep.errors import InvalidRequest, VmNotFound
from vmkeep.flows.policies import checked_policy, local_zone, rule_of_policy, subject_named, told_subject, zone_named


@pytest.fixture
def catalog() -> MemoryCatalog:
    catalog = MemoryCatalog()
    catalog.record_point(example_point("p1"))
    return catalog


def test_policy_is_of_a_vm_of_a_label_or_of_all(catalog: MemoryCatalog) -> None:
    assert subject_named(catalog, "win11") == subject_named(catalog, WIN11.upper()) == f"vm:{WIN11}"
    for name in ("all", "label:why", "label:why=an update"):
        assert subject_named(catalog, name) == name
    told = [told_subject(catalog, each) for each in (f"vm:{WIN11}", "all", "label:why=x", "vm:gone")]
    assert told == ["VM win11", "all other VMs", "label why=x", "VM gone"]


@pytest.mark.parametrize("text", ["label:", "label:=x"])
def test_label_without_a_name_is_refused(catalog: MemoryCatalog, text: str) -> None:
    with pytest.raises(InvalidRequest, match="names no label"):
        subject_named(catalog, text)


def test_vm_without_points_is_refused(catalog: MemoryCatalog) -> None:
    with pytest.raises(VmNotFound):
        subject_named(catalog, "nobody")


@pytest.mark.parametrize(
    "policy",
    [
        Policy("all", "", 0, "UTC", 0),
        Policy("all", "often", 0, "UTC", 0),
        Policy("all", "last=1", 0, "Moon/Sea", 0),
        Policy("all", "last=1", 0, "../../etc/passwd", 0),
        Policy("all", "last=1", 0, "/etc/passwd", 0),
        Policy("all", "last=1", 0, "", 0),
        Policy("all", "last=1", 0, "Europe", 0),
    ],
)
def test_policy_that_keeps_nothing_or_has_no_zone_is_refused(policy: Policy) -> None:
    with pytest.raises(InvalidRequest):
        checked_policy(policy)


def test_policy_is_told_as_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = checked_policy(Policy("all", "last=2, daily=7", 30 * 24 * 3600, "Europe/Berlin", 0))
    assert str(rule_of_policy(policy)) == "last=2, daily=7, within=30d"
    assert rule_of_policy(policy).within == timedelta(days=30)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert local_zone() == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "Moon/Sea")
    zone_named(local_zone())
