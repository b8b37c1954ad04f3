"""A home that knows less than its repository: put back as it was earlier, or beside another one that keeps the same VM.

With real repositories, through the commands.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.integration.cli.command_line import vmkeep
from vmkeep.config import load_settings
from vmkeep.errors import NoSpace, StoreError
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.installation import Premises, catalog_point, catalog_states
from vmkeep.flows.point_search import search_point
from vmkeep.repository import PointDisk, PointRecord, Repository

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
WEB = "11111111-2222-3333-4444-555555555555"


def premises(home: Path) -> Premises:
    return Premises(load_settings(home=home, environ={}))


def make(
    home: Path,
    content: bytes,
    *,
    minute: int = 0,
    vm: str = VM,
    name: str = "win11",
    host: str = "alpha",
    up: bool = True,
    created: str | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> PointRecord:
    """Make a point of one small disk, with the content as TPM state, as a backup does; ``up``: it catches up first."""
    with premises(home) as place:
        repository, catalog = place.repository, place.catalog
        if up:
            catch_up(catalog, repository, lambda point: point.vm_uuid == vm)
        newest = catalog.newest_state(vm, "tpm")
        before = next(iter(catalog.outlines_of_vm(vm)), None)
        with repository.begin(purpose="test", host=host, cache=place.settings.cache_dir, workers=1) as writer:
            disk = writer.disk(size_bytes=65536)
            disk.record(0, disk.seal(content.ljust(65536, b"\1")))
            state = writer.put_state(
                content,
                vm_uuid=vm,
                kind="tpm",
                generation=1 if newest is None else newest.generation + 1,
                file="tpm2/tpm2-00.permall",
                owner="tss",
                group="tss",
                mode=0o600,
            )
            stored = PointDisk("vda", "full", "no-base", "/x", "qcow2", 65536, disk.bytes_stored, disk.finish())
            record = writer.commit(
                PointRecord(
                    id="",
                    vm_uuid=vm,
                    vm_name=name,
                    kind="full",
                    parent=None if before is None else before.id,
                    created=created or f"2026-03-01T10:{minute:02}:00.000000+00:00",
                    host=host,
                    checkpoint=None,
                    pause_ms=1.0,
                    labels=labels,
                    disks=(stored,),
                    excluded=(),
                    states=(state.ref(),),
                    definition=f"<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid></domain>",
                    sequence=catalog.next_sequence(vm),
                )
            )
        catalog.record_point(catalog_point(record), catalog_states(record))
        return record


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An installation with a repository of its own and one point of win11."""
    place = tmp_path / "home"
    with premises(place) as new:
        new.initialise(str(tmp_path / "repository"))
    make(place, b"first")
    return place


@pytest.fixture
def older(home: Path, tmp_path: Path) -> Path:
    """The home as it was, put aside before anything else was made."""
    return Path(shutil.copytree(home, tmp_path / "older"))


def restored(home: Path, point: str, output: Path) -> tuple[str, bytes, str]:
    """Restore to files; return the point, its TPM state, and what was said beside it."""
    answer = vmkeep(home, "restore", point, "--output", str(output), "--json")
    assert answer.status == 0, answer.err
    (state,) = output.rglob("tpm2-00.permall")
    return str(answer.document()["restored"]["point"]), state.read_bytes(), answer.err


def test_restored_home_restores_what_was_made_last_and_says_what_it_took_over(
    home: Path, older: Path, tmp_path: Path
) -> None:
    second = make(home, b"second", minute=50)
    third = make(home, b"third", minute=20)  # the clock was ahead, and was corrected
    point, state, said = restored(older, "win11@latest", tmp_path / "out")
    assert (point, state) == (third.id, b"third")
    assert all(word in said for word in (second.id, third.id, "win11", "alpha", "2 points"))
    assert restored(older, "win11@latest", tmp_path / "again")[2] == ""
    there, here = (vmkeep(each, "points", "--json").document() for each in (home, older))
    assert there == here
    fourth = make(older, b"fourth", minute=21)
    assert fourth.sequence == 4
    assert fourth.parent == third.id
    assert restored(home, "win11@latest", tmp_path / "home's")[0] == fourth.id


@pytest.mark.parametrize("named", ["web@latest", f"{WEB}@2026-03-01", "beginning"])
def test_vm_that_is_newer_than_the_home_is_found_with_all_its_points(home: Path, older: Path, named: str) -> None:
    made = [make(home, b"web %d" % number, vm=WEB, name="web", minute=number) for number in range(3)]
    meant, text = (made[1], made[1].id[:12]) if named == "beginning" else (made[2], named)
    with premises(older) as place:
        assert search_point(place, text, lambda _: None).point.id == meant.id
        assert [point.id for point in place.catalog.points("web")] == [record.id for record in made]


def test_points_of_vms_that_nobody_asked_for_are_read_once_and_not_listed(
    home: Path, older: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [make(home, b"web %d" % number, vm=WEB, name="web") for number in range(3)]
    read: list[str] = []
    point = Repository.point

    def noted(self: Repository, point_id: str) -> PointRecord:
        read.append(point_id)
        return point(self, point_id)

    monkeypatch.setattr(Repository, "point", noted)
    with premises(older) as place:
        for _ in range(2):
            assert catch_up(place.catalog, place.repository).taken == ()
        assert sorted(read) == sorted(record.id for record in made)
        assert [each.vm_name for each in place.catalog.points()] == ["win11"]
    # Not even doctor asks for them then.
    found = vmkeep(older, "-c", "test:///default", "doctor", "--json").document()["doctor"]["findings"]
    assert "point-not-known" not in {finding["code"] for finding in found}


def first_of(home: Path) -> str:
    with premises(home) as place:
        return place.catalog.points("win11")[0].id


def test_repository_that_cannot_be_listed_has_no_latest_point_and_gives_those_with_a_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_self: Repository) -> list[str]:
        raise StoreError("the repository's storage failed at points: Input/output error")

    first = first_of(home)
    monkeypatch.setattr(Repository, "point_ids", refused)
    with premises(home) as place:
        for time in ("latest", "2026-03-01"):
            with pytest.raises(StoreError) as caught:
                search_point(place, f"win11@{time}", lambda _: None)
            assert first in caught.value.hint
        found = search_point(place, first[:8], lambda _: None)
    assert found.point.id == first
    assert "Input/output error" in found.told[0]


def test_home_that_cannot_be_written_finds_the_last_point_all_the_same(home: Path, older: Path) -> None:
    """Its catalogue is a copy then, and what it takes over is known to this command alone."""
    second = make(home, b"second")
    with premises(older) as place:
        place.catalog.refuse_writing(NoSpace("the home is full"))
        assert search_point(place, "win11@latest", lambda _: None).point.id == second.id
        with pytest.raises(NoSpace):
            place.catalog.lose_track(VM)


def test_last_point_that_the_repository_lost_is_not_replaced_by_an_older_one(home: Path, tmp_path: Path) -> None:
    first = first_of(home)
    second = make(home, b"second", minute=1)
    (tmp_path / "repository" / "points" / second.id).unlink()
    answer = vmkeep(home, "restore", "win11@latest", "--output", str(tmp_path / "out"), "--json")
    assert (answer.status, answer.error()["code"]) == (4, "point-not-found")
    assert second.id in answer.error()["message"]
    with premises(home) as place:
        assert search_point(place, first, lambda _: None).point.id == first


def test_damaged_point_that_is_not_known_is_named_and_keeps_nothing_from_being_restored(
    home: Path, older: Path, tmp_path: Path
) -> None:
    harmed, whole = make(home, b"second", minute=1), make(home, b"third", minute=2)
    (tmp_path / "repository" / "points" / harmed.id).write_bytes(b"\0" * 100)
    with premises(older) as place:
        found = search_point(place, "win11@latest", lambda _: None)
    assert found.point.id == whole.id
    assert any(harmed.id in sentence for sentence in found.told)


def test_point_of_an_operation_that_is_under_way_is_not_taken_over(home: Path, older: Path) -> None:
    second = make(home, b"second", minute=1)
    with premises(older) as place:
        place.catalog.begin_operation(second.id, "point.take", "win11", "somebody", {})
        assert catch_up(place.catalog, place.repository).taken == ()


def test_twin_homes_that_wrote_at_once_keep_both_states_and_adopt_in_peace(
    home: Path, older: Path, tmp_path: Path
) -> None:
    """Neither knew of the other, so both claim generation 2 and number 2."""
    here = make(home, b"of alpha", minute=1)
    there = make(older, b"of beta", minute=2, host="beta", up=False)
    assert here.sequence == there.sequence == 2
    assert here.states[0].generation == there.states[0].generation == 2
    for place, its, other in ((home, here, there), (older, there, here)):
        with premises(place) as opened:
            location = opened.settings.repository
            (warning,) = opened.initialise(location, adopt=True).warnings
            assert all(word in warning for word in (its.id, other.id, "alpha", "beta", "generation 2", "win11"))
            assert opened.initialise(location, adopt=True).warnings == ()
            newest = opened.catalog.newest_state(VM, "tpm")
            assert newest is not None
            assert newest.id == its.states[0].version_id
            assert opened.catalog.pins(other.states[0].version_id) == (other.id,)
            # By clock, and the same in both homes.
            assert [point.id for point in opened.catalog.points("win11")][1:] == [here.id, there.id]
    again = vmkeep(home, "init", "--adopt", "--json")
    assert (again.status, again.err, again.document()["init"]["warnings"]) == (0, "", [])
    assert restored(home, there.id, tmp_path / "out")[:2] == (there.id, b"of beta")
    third = make(home, b"later", minute=3)
    assert (third.sequence, third.states[0].generation) == (3, 3)
