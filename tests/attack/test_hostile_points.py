"""Points by another holder of the repository's key, as everything on this host meets them: each is one damaged point.

Seen before: one of them ended `points` and `backup` as a fault of vmkeep, and kept every other host from adopting.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.attack.forging import forge, put_point, replace_point
from tests.attack.hostile_records import HOSTILE, RIGHT_TO_LEFT
from tests.integration.cli.command_line import Answer, environment
from tests.integration.cli.test_catch_up import VM, WEB, make, premises
from tests.rig.forking import CommandForks, ThisMachine
from vmkeep.catalog import Catalog, SqlCatalog
from vmkeep.errors import ObjectDamaged, PointChanged
from vmkeep.flows.catch_up import catch_up
from vmkeep.repository import PointRecord

_LIBVIRT = ("-c", "test:///default")


def vmkeep(home: Path, *arguments: str) -> Answer:
    """Run a command line to its end."""
    place = ThisMachine(Path(tempfile.gettempdir()))
    done = CommandForks(place).run(["vmkeep", *arguments], environment(home), None)
    return Answer(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class Shared:
    """Two hosts that share a repository, and good points of two VMs made on the first."""

    home: Path
    other: Path
    points: tuple[PointRecord, PointRecord]


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    home, other = tmp_path / "home", tmp_path / "other"
    with premises(home) as place:
        place.initialise(str(tmp_path / "repository"))
    shutil.copytree(home, other)
    one, two = make(home, b"of win11"), make(home, b"of web", vm=WEB, name="web", minute=1)
    return Shared(home, other, (one, two))


def told_without_a_fault(answer: Answer) -> str:
    """A command may be refused; it never fails as a program, and never steers the terminal."""
    assert answer.status != 1, answer.err
    assert "Traceback" not in answer.err
    assert "internal-error" not in answer.err
    for text in (answer.out, answer.err):
        assert all(char.isprintable() or char == "\n" for char in text), text
    return answer.out + answer.err


def test_each_hostile_point_is_one_damaged_point_and_all_else_goes_on(shared: Shared, tmp_path: Path) -> None:
    one, two = shared.points
    with premises(shared.home) as place:
        forged = {forge(place.repository, one, **HOSTILE[fault]): fault for fault in HOSTILE}
        own_parent = "f" * 32
        put_point(place.repository, {**one.as_json(), "id": own_parent, "parent": own_parent}, point_id=own_parent)
    forged[own_parent] = "its own parent"
    adopted = vmkeep(shared.other, "init", "--adopt")
    assert adopted.status == 20
    text = told_without_a_fault(adopted)
    assert "adopted: 2 points of 2 VMs" in text
    for point_id, fault in forged.items():
        assert f"point {point_id} was not adopted" in text, fault
    for home in (shared.home, shared.other):
        listed = vmkeep(home, "points", "--json").document()["points"]
        assert [point["id"] for point in listed] == [one.id, two.id]
        for words in (("points",), ("points", "--tree"), (*_LIBVIRT, "vm", "list"), (*_LIBVIRT, "doctor")):
            told_without_a_fault(vmkeep(home, *words))
    restored = vmkeep(shared.other, "restore", "web@latest", "--output", str(tmp_path / "out"), "--json")
    assert restored.status == 0
    assert restored.document()["restored"]["point"] == two.id
    checked = vmkeep(shared.home, "verify", "--all", "--json")
    harmed = {point["point"] for point in checked.document()["verified"] if not point["ok"]}
    assert (checked.status, harmed) == (20, set(forged))
    # What a backup does first, and its own point is made.
    with premises(shared.home) as place:
        caught = catch_up(place.catalog, place.repository, lambda point: point.vm_uuid == VM)
        assert {damaged.point for damaged in caught.damaged} == set(forged)
    later = make(shared.home, b"later", minute=2)
    assert later.parent == one.id


def test_damaged_point_is_named_by_its_id_and_can_be_deleted(shared: Shared) -> None:
    with premises(shared.home) as place:
        forged = forge(place.repository, shared.points[0], created="yesterday", vm_name=f"a{RIGHT_TO_LEFT}")
    for words in (
        ("verify", forged),
        ("restore", forged[:8], "--output", "/nowhere/out"),
        ("restore", forged, "--as", "x"),
    ):
        answer = vmkeep(shared.home, *_LIBVIRT, *words, "--json")
        assert (answer.status, answer.error()["code"]) == (20, "object-damaged")
        assert forged in answer.error()["message"]
        assert f"vmkeep point delete {forged} --yes" in answer.error()["hint"]
    deleted = vmkeep(shared.home, "point", "delete", forged[:8], "--yes", "--json")
    assert (deleted.status, deleted.document()["deleted"]) == (0, {"point": forged, "vm": None})
    assert vmkeep(shared.home, "verify", "--all").status == 0


@pytest.mark.parametrize("definition", ["", "<domain", "<domain/>", "<a/>" * 3])
def test_definition_that_is_none_is_an_error_of_ours(shared: Shared, tmp_path: Path, definition: str) -> None:
    with premises(shared.home) as place:
        forged = forge(place.repository, shared.points[0], definition=definition)
    as_vm = vmkeep(shared.home, *_LIBVIRT, "restore", forged, "--as", "x", "--disks-dir", str(tmp_path), "--json")
    assert as_vm.status in (2, 20)
    assert as_vm.error()["code"] in ("damaged", "invalid-request")
    only = ("--only", "disks", "--decrypt")
    files = vmkeep(shared.home, *_LIBVIRT, "restore", forged, "--output", str(tmp_path / "out"), *only, "--json")
    assert files.status == 0, files.err


def test_circle_of_parents_is_listed_drawn_and_adopted(shared: Shared) -> None:
    """Each record parses; only together they are what no vmkeep makes."""
    good, (first, second) = shared.points[0], ("a" * 32, "b" * 32)
    with premises(shared.home) as place:
        for point_id, parent in ((first, second), (second, first)):
            put_point(place.repository, {**good.as_json(), "id": point_id, "parent": parent}, point_id=point_id)
    assert vmkeep(shared.other, "init", "--adopt").status == 0
    for words in (("points", "win11"), ("points", "win11", "--tree")):
        text = told_without_a_fault(vmkeep(shared.other, *words))
        assert all(point_id[:8] in text for point_id in (first, second, good.id))


def test_greatest_numbers_that_parse_do_not_end_the_points_of_a_vm(shared: Shared) -> None:
    good = shared.points[0]
    with premises(shared.home) as place:
        claimed = {**good.as_json()["states"][0], "generation": 2**63 - 1, "version_id": "9" * 32}
        forge(place.repository, good, sequence=2**63 - 1, states=[claimed])
        catch_up(place.catalog, place.repository)
    for minute in (2, 3):
        made = make(shared.home, f"later {minute}".encode(), minute=minute)
        assert made.sequence == 2**63 - 1
        assert made.states[0].generation == minute
        with premises(shared.home) as place:
            assert place.repository.point(made.id) == made


# -- another record in the place of a point ------------------------------------------------------------------------


@pytest.fixture
def swapped(shared: Shared) -> Shared:
    """The point of win11 says now that it is of web, and has web's disks."""
    one, two = shared.points
    with premises(shared.home) as place:
        replace_point(place.repository, one, vm_uuid=two.vm_uuid, disks=two.as_json()["disks"])
    return shared


@pytest.mark.parametrize(
    "words",
    [
        ("restore", "{}", "--in-place", "--yes"),
        ("restore", "{}", "--as", "other", "--disks-dir", "{tmp}"),
        ("restore", "{}", "--output", "{tmp}/out"),
    ],
    ids=["in-place", "as", "output"],
)
def test_replaced_point_is_restored_in_no_way(swapped: Shared, tmp_path: Path, words: tuple[str, ...]) -> None:
    point = swapped.points[0].id
    line = [word.replace("{}", point).replace("{tmp}", str(tmp_path)) for word in words]
    before = sorted(tmp_path.iterdir())
    answer = vmkeep(swapped.home, *_LIBVIRT, *line, "--json")
    assert (answer.status, answer.error()["code"]) == (27, "point-changed"), answer.err
    message = answer.error()["message"]
    assert all(word in message for word in (point, WEB, "win11", VM))
    assert sorted(tmp_path.iterdir()) == before


def test_replaced_point_is_told_by_verify_adoption_and_whoever_builds_on_it(swapped: Shared) -> None:
    point = swapped.points[0]
    checked = vmkeep(swapped.home, "verify", point.id, "--json")
    assert checked.status == 20
    (finding,) = checked.document()["verified"][0]["findings"]
    assert (finding["object"], finding["harms"]) == (f"points/{point.id}", [point.id])
    assert "not the one that is known here" in finding["what"]
    adopted = vmkeep(swapped.home, "init", "--adopt")
    assert adopted.status == 20
    assert f"point {point.id} was not adopted" in adopted.err
    with premises(swapped.home) as place, pytest.raises(PointChanged):
        place.repository.point(point.id)
    assert "sound" in vmkeep(swapped.home, "verify", "web").out
    assert vmkeep(swapped.home, "point", "delete", point.id, "--yes").status == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"definition": "<domain type='qemu'><name>win11</name><on_crash>destroy</on_crash></domain>"},
        {"labels": {"why": "other"}},
        {"later": 1},
        {"created": "2026-03-01T10:00:00.000001+00:00"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_change_of_a_record_is_found(shared: Shared, changes: dict[str, Any]) -> None:
    point = shared.points[0]
    with premises(shared.home) as place:
        replace_point(place.repository, point, **changes)
        with pytest.raises(PointChanged, match=next(iter(changes))):
            place.repository.point(point.id)


def test_points_that_an_older_release_recorded_get_their_digest_when_they_are_read(shared: Shared) -> None:
    one, two = shared.points
    with premises(shared.home) as place:
        forget_digests(place.catalog)
        replace_point(place.repository, two, vm_uuid=VM)
        with pytest.raises(PointChanged, match="it says that it is of VM"):
            place.repository.point(two.id)
        assert place.catalog.digest(two.id) == ""
        assert place.repository.point(one.id) == one
        assert place.catalog.digest(one.id) == one.digest
        replace_point(place.repository, one, definition="<domain/>")
        with pytest.raises(PointChanged, match="definition"):
            place.repository.point(one.id)


def test_home_that_cannot_be_written_reads_points_without_a_digest(shared: Shared) -> None:
    one = shared.points[0]
    with premises(shared.home) as place:
        forget_digests(place.catalog)
        place.catalog.refuse_writing(ObjectDamaged("no writing"))
        assert place.repository.point(one.id) == one


def forget_digests(catalog: Catalog) -> None:
    assert isinstance(catalog, SqlCatalog)
    with catalog._database.writing() as connection:
        connection.exec_driver_sql("UPDATE points SET digest = NULL")
