"""Which points are kept: deleted and brought back, protected, and let go by a policy; with real repositories."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.integration.cli.command_line import vmkeep
from tests.integration.cli.test_catch_up import VM, WEB, make, premises, restored
from vmkeep.errors import PointNotFound
from vmkeep.repository import PointRecord

START = datetime(2026, 3, 1, 10, tzinfo=UTC)
_NONE: Mapping[str, str] = MappingProxyType({})


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An installation with a repository of its own, and no point yet."""
    place = tmp_path / "home"
    with premises(place) as new:
        new.initialise(str(tmp_path / "repository"))
    return place


def stored(home: Path) -> Path:
    return home.parent / "repository"


def day(home: Path, number: float, *, late: float = 0, labels: Mapping[str, str] = _NONE, vm: str = VM) -> PointRecord:
    """Make a point as if on that day; the storage got it ``late`` days later."""
    at = START + timedelta(days=number)
    created = at.isoformat(timespec="microseconds")
    name = "win11" if vm == VM else "web"
    point = make(home, b"of day %a" % number, created=created, labels=labels, vm=vm, name=name)
    moment = at.timestamp() + late * 24 * 3600
    os.utime(stored(home) / "points" / point.id, (moment, moment))
    return point


def listed(home: Path) -> list[str]:
    return [str(point["id"]) for point in vmkeep(home, "points", "--json").document()["points"]]


def retention(home: Path, *words: str, status: int = 0) -> dict[str, Any]:
    answer = vmkeep(home, "retain", "--json", *words)
    assert answer.status == status, answer.err
    document: dict[str, Any] = answer.document()["retention"]
    return document


def policy(home: Path, subject: str, *words: str) -> None:
    answer = vmkeep(home, "policy", "set", subject, "--zone", "UTC", *words, "--json")
    assert answer.status == 0, answer.err


def age(home: Path, point: str, days: float) -> None:
    """Let the removal of a point be so old, by the storage's clock."""
    mark = stored(home) / "removals" / point
    moment = mark.stat().st_mtime - days * 24 * 3600
    os.utime(mark, (moment, moment))


def test_deleted_point_is_in_no_list_until_it_is_brought_back(home: Path, tmp_path: Path) -> None:
    first, second = day(home, 0), day(home, 1)
    deleted = vmkeep(home, "point", "delete", second.id, "--yes", "--json").document()["deleted"]
    assert (deleted["point"], deleted["until"] is not None) == (second.id, True)
    assert listed(home) == [first.id]
    assert restored(home, "win11@latest", tmp_path / "out")[0] == first.id
    refused = vmkeep(home, "restore", second.id[:10], "--output", str(tmp_path / "x"), "--json").error()
    assert (refused["code"], second.id in refused["hint"]) == ("point-not-found", True)
    (shown,) = vmkeep(home, "points", "--deleted", "--json").document()["deleted"]
    assert (shown["point"], shown["vm"], shown["created"]) == (second.id, "win11", second.created)
    back = vmkeep(home, "point", "undelete", second.id[:8], "--json").document()["undeleted"]
    assert back["id"] == second.id
    assert listed(home) == [first.id, second.id]
    assert restored(home, "win11@latest", tmp_path / "again")[:2] == (second.id, b"of day 1")
    assert vmkeep(home, "points", "--deleted").out == "no deleted points\n"
    assert vmkeep(home, "point", "undelete", second.id, "--json").error()["code"] == "point-not-found"


def test_removal_is_carried_out_when_its_grace_is_over_and_not_before(home: Path) -> None:
    first, _ = day(home, 0), day(home, 1)
    assert vmkeep(home, "point", "delete", first.id, "--yes").status == 0
    age(home, first.id, 6.9)
    assert retention(home)["gone"] == []
    assert (stored(home) / "points" / first.id).exists()
    age(home, first.id, 0.2)
    assert retention(home)["gone"] == [first.id]
    assert not (stored(home) / "points" / first.id).exists()
    assert list((stored(home) / "removals").iterdir()) == []
    assert vmkeep(home, "point", "undelete", first.id, "--json").error()["code"] == "point-not-found"
    assert vmkeep(home, "verify", "--all").status == 0


def test_without_a_grace_the_object_goes_at_once_also_of_a_deleted_one(home: Path) -> None:
    points = [day(home, number) for number in range(3)]
    assert vmkeep(home, "point", "delete", points[0].id, "--yes", "--grace", "0").status == 0
    assert vmkeep(home, "point", "delete", points[1].id, "--yes").status == 0
    assert vmkeep(home, "point", "delete", points[1].id, "--yes", "--grace", "0").status == 0
    with premises(home) as place:
        assert place.repository.point_ids() == [points[2].id]
        assert place.repository.marked() == frozenset()
        # Their state, of which nothing else has a copy, is kept for its own sake.
        assert place.catalog.newest_state(VM, "tpm") is not None
        assert len(place.repository.pins.ids()) == 2


def test_damaged_point_is_deleted_and_its_bytes_come_back(home: Path) -> None:
    day(home, 0)
    point = day(home, 1)
    with premises(home) as place:
        place.catalog.forget_point(point.id)
    object_ = stored(home) / "points" / point.id
    sound = object_.read_bytes()
    object_.write_bytes(sound[:-1] + b"x")
    assert vmkeep(home, "point", "delete", point.id, "--yes").status == 0
    assert vmkeep(home, "point", "undelete", point.id, "--json").error()["code"] == "object-damaged"
    object_.write_bytes(sound)
    assert vmkeep(home, "point", "undelete", point.id).status == 0
    assert point.id in listed(home)


def test_protected_point_stays_whoever_wants_it_away(home: Path) -> None:
    points = [day(home, number) for number in range(6)]
    assert vmkeep(home, "point", "protect", points[1].id, "--why", "audit").status == 0
    assert vmkeep(home, "point", "protect", points[2].id, "--until", "2999-12-31").status == 0
    assert vmkeep(home, "point", "protect", points[2].id, "--until", "2001-01-01").status == 2
    refused = vmkeep(home, "point", "delete", points[1].id, "--yes", "--json")
    assert (refused.status, refused.error()["code"]) == (48, "point-protected")
    assert "audit" in refused.error()["message"]
    policy(home, "win11", "--keep-last", "1", "--grace", "0")
    told = retention(home, "--yes")
    assert told["gone"] == told["hidden"] == [points[each].id for each in (0, 3, 4)]
    assert listed(home) == [points[each].id for each in (1, 2, 5)]
    (stored(home) / "protections" / points[2].id).write_bytes(b"noise")
    assert "cannot be told" in vmkeep(home, "point", "delete", points[2].id, "--yes", "--json").error()["message"]
    for point in points[1:3]:
        ended = vmkeep(home, "point", "unprotect", point.id, "--json").document()["protection"]
        assert ended["protected_before"]
        assert vmkeep(home, "point", "delete", point.id, "--yes").status == 0
    assert listed(home) == [points[5].id]


def test_policy_lets_go_what_no_rule_keeps_and_says_why_the_others_stay(home: Path) -> None:
    points = [day(home, number) for number in range(10)]
    labelled = day(home, 9.1, labels={"why": "update"})
    day(home, 3, vm=WEB)
    before = retention(home, "--dry-run")
    assert {point["why"] for vm in before["vms"] for point in vm["points"]} == {"no policy"}
    policy(home, "win11", "--keep-last", "2", "--keep-daily", "5", "--keep-weekly", "1")
    policy(home, "label:why=update", "--keep-yearly", "1")
    planned = retention(home, "win11", "--dry-run")
    (of_win11,) = planned["vms"]
    # The first of March 2026 was a Sunday.
    assert [point["why"] for point in of_win11["points"]] == [
        *("weekly", None, None, "daily", "daily", "daily", "daily", "daily", "last", "last", "yearly")
    ]
    assert len(listed(home)) == 12
    done = retention(home, "win11")
    assert done["hidden"] == [points[1].id, points[2].id]
    assert {points[1].id, points[2].id}.isdisjoint(listed(home))
    assert labelled.id in listed(home)
    assert retention(home)["hidden"] == []
    (logged,) = (each for each in vmkeep(home, "log", "--json").document()["operations"])
    assert (logged["kind"], logged["state"]) == ("points.retain", "done")
    assert "going=2 of win11" in vmkeep(home, "log").out
    (shown, _) = vmkeep(home, "policy", "show", "--json").document()["policies"]
    assert shown["subject"] == "label:why=update"
    assert vmkeep(home, "policy", "drop", "win11").status == 0
    assert "no policy" in vmkeep(home, "policy", "explain", "win11").out


def test_much_at_once_waits_for_a_yes_and_so_does_a_vm_without_a_new_point(home: Path) -> None:
    points = [day(home, number) for number in range(6)]
    policy(home, "all", "--keep-last", "3")
    held = vmkeep(home, "retain", "--json")
    assert (held.status, held.error()["code"]) == (49, "retention-held")
    assert "3 of its 6 points" in held.error()["message"]
    assert len(listed(home)) == 6
    assert retention(home, "--yes")["hidden"] == [point.id for point in points[:3]]
    policy(home, "all", "--keep-last", "2")
    held = vmkeep(home, "retain", "--json")
    assert "no point was made since" in held.error()["message"]
    assert len(listed(home)) == 3


def test_points_of_wrong_clocks_fill_no_slot_and_are_told(home: Path) -> None:
    points = [day(home, number) for number in range(3)]
    late = day(home, 8, late=2)
    to_come = day(home, 5000)
    policy(home, "win11", "--keep-last", "2")
    told = vmkeep(home, "retain", "--json")
    assert told.status == 0
    assert told.document()["retention"]["hidden"] == [points[0].id]
    assert all(point.id in told.err for point in (late, to_come))
    assert set(listed(home)) == {points[1].id, points[2].id, late.id, to_come.id}


def test_harmed_points_fill_no_slot_and_verify_says_which_they_are(home: Path) -> None:
    points = [day(home, number) for number in range(6)]
    packs = {path: path.stat().st_mtime_ns for path in (stored(home) / "packs").rglob("*") if path.is_file()}
    newest = max(packs, key=packs.__getitem__)
    content = newest.read_bytes()
    newest.unlink()
    assert vmkeep(home, "verify", "win11").status == 20
    policy(home, "win11", "--keep-last", "4")
    told = retention(home, "--dry-run")["vms"][0]["points"]
    assert [point["sound"] for point in told] == [True] * 5 + [False]
    assert [point["stays"] for point in told] == [False] + [True] * 5
    newest.write_bytes(content)
    assert vmkeep(home, "verify", "win11").status == 0
    assert all(point["sound"] for point in retention(home, "--dry-run")["vms"][0]["points"])
    assert [point["stays"] for point in retention(home, "--dry-run")["vms"][0]["points"]] == [False, False, *[True] * 4]
    assert points[5].id == told[5]["point"]


def test_other_installation_hides_what_a_trusted_one_deleted_and_asks_before_it_removes_much(
    home: Path, tmp_path: Path
) -> None:
    points = [day(home, number) for number in range(3)]
    other = tmp_path / "other"
    shutil.copytree(home / "keys", other / "keys", ignore=shutil.ignore_patterns("*sign*"))
    adopted = vmkeep(other, "init", "--adopt", "--repository", str(stored(home)))
    assert adopted.status == 0, adopted.err
    for point in points[:2]:
        assert vmkeep(home, "point", "delete", point.id, "--yes", "--grace", "1h").status == 0
    asked = vmkeep(other, "verify", points[0].id)  # it looks into the repository
    assert "nobody has trusted its key" in asked.err
    assert len(listed(other)) == 3
    with premises(other) as place:
        (key,) = (key.fingerprint for key in place.catalog.host_keys() if key.trust == "unknown")
    assert vmkeep(other, "host", "trust", key).status == 0
    hidden = vmkeep(other, "verify", points[2].id)
    assert points[0].id in hidden.err
    assert listed(other) == [points[2].id]
    for point in points[:2]:
        age(home, point.id, 2)
    assert retention(other)["gone"] == [], "the usual grace holds for what others ask"
    for point in points[:2]:
        age(home, point.id, 6)
    held = vmkeep(other, "retain", "--json")
    assert (held.status, held.error()["code"]) == (49, "retention-held")
    assert retention(other, "--yes")["gone"] == [point.id for point in points[:2]]
    with premises(home) as place, pytest.raises(PointNotFound):
        place.repository.point(points[0].id)
    retention(home, "--dry-run")  # it looks into the repository
    assert vmkeep(home, "points", "--deleted").out == "no deleted points\n"


def test_policy_that_keeps_nothing_is_refused(home: Path) -> None:
    day(home, 0)
    assert vmkeep(home, "policy", "set", "win11", "--json").error()["code"] == "invalid-request"
    assert vmkeep(home, "policy", "show").out == "no policy: `vmkeep retain` removes nothing\n"
