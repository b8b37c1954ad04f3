"""How all stands, with libvirt's test driver, a catalogue in memory and records of jobs of the test's own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vmkeep.catalog import SAFETY_LABEL
from vmkeep.catalog.memory import MemoryCatalog
from vmkeep.cli.exposition import write_exposition
from vmkeep.config import Settings, VmSettings, load_settings
from vmkeep.errors import InvalidRequest, PermissionRefused
from vmkeep.flows.schedule import record_run
from vmkeep.flows.show_status import Status, look_at_status
from vmkeep.flows.watch_mark import WatchMark, watch_mark
from vmkeep.host.local import LocalHost
from vmkeep.planning.protection import Protection
from vmkeep.planning.schedule import MARGIN_SECONDS, Job, Run, moment_text

TEST_VM = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # the one that libvirt's test driver has


def ago(hours: float) -> str:
    return moment_text(datetime.now(UTC) - timedelta(hours=hours))


def point(name: str, hours: float, **fields: Any) -> dict[str, Any]:
    summary = {"id": name, "vm": "test", "vm_uuid": TEST_VM, "created": ago(hours), "labels": {}, "disks": []}
    return {**summary, "made_by": {"trust": "own"}, **fields}


class Place:
    """An installation, and a host with one VM."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.catalog = MemoryCatalog()
        self.host = LocalHost(settings)

    def look(self, *points: dict[str, Any], **settings: Any) -> Status:
        return look_at_status(replace(self.settings, **settings), self.catalog, points, self.host)

    def schedule(self, job: Job) -> None:
        self.settings.schedule_dir.mkdir(mode=0o700, exist_ok=True)
        value = {"calendar": "daily", "delay_seconds": 900, "gap_seconds": 86400, "since": ago(100)}
        (self.settings.schedule_dir / f"{job}.json").write_text(json.dumps(value))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "home").mkdir(mode=0o700)
    place = Place(load_settings("test:///default", home=tmp_path / "home", environ={}))
    yield place
    place.host.close()


def test_vm_without_a_point_has_no_protection(place: Place) -> None:
    found = place.look()
    assert [(vm.name, vm.protection, vm.state) for vm in found.vms] == [("test", Protection.NONE, "running")]
    assert (found.gate, found.watch, found.space, found.needs, found.libvirt) == ("none", "off", None, (), None)


def test_objective_is_the_vms_own_then_that_of_all_then_the_schedules(place: Place) -> None:
    taken = point("a", 24)
    assert place.look(taken).vms[0].protection is Protection.UNKNOWN
    place.schedule(Job.BACKUP)
    record_run(place.settings, Run("r", Job.BACKUP, ago(24), ago(24), 0))
    of_schedule = place.look(taken).vms[0]
    assert (of_schedule.protection, of_schedule.objective_seconds) == (Protection.GOOD, 86400 + 900 + MARGIN_SECONDS)
    assert place.look(taken, objective_seconds=3600).vms[0].protection is Protection.LATE
    own = {"test": VmSettings(objective_seconds=90_000)}
    assert place.look(taken, objective_seconds=3600, vms=own).vms[0].protection is Protection.GOOD
    assert place.look(taken, vms={"test": VmSettings(skip=True)}).vms[0].protection is Protection.SKIPPED


def test_point_that_a_verification_found_damaged_does_not_count(place: Place) -> None:
    record_run(place.settings, Run("r", Job.VERIFY, ago(9), ago(9), 20, code="damaged", harmed=("b",)))
    safety = point("c", 1, labels={SAFETY_LABEL: "x"})
    found = place.look(point("a", 30), point("b", 2), safety, objective_seconds=26 * 3600).vms[0]
    assert (found.point, found.protection, found.passed_over) == ("a", Protection.LATE, ("b",))
    # One that could not say more than that it failed takes nothing of that back.
    record_run(place.settings, Run("s", Job.VERIFY, ago(1), ago(1), 35, code="store-error"))
    assert place.look(point("a", 30), point("b", 2)).vms[0].point == "a"
    record_run(place.settings, Run("t", Job.VERIFY, ago(0.5), ago(0.5), 0))
    assert place.look(point("a", 30), point("b", 2)).vms[0].point == "b"


def test_vm_that_left_the_host_is_away_and_told_last(place: Place) -> None:
    place.catalog.see_vm("0" * 32, "a-gone")
    gone = {"vm": "a-gone", "vm_uuid": "0" * 32}
    found = place.look(point("a", 1, **gone), point("b", 1))
    assert [(vm.name, vm.protection) for vm in found.vms][1] == ("a-gone", Protection.AWAY)
    place.catalog.forget_vm("0" * 32, ago(-100))
    assert len(place.look(point("a", 1, **gone), point("b", 1)).vms) == 1


def test_libvirt_that_does_not_answer_is_told_and_vms_are_judged_by_their_points(place: Place) -> None:
    place.catalog.see_vm(TEST_VM, "test")
    away = LocalHost(replace(place.settings, uri="qemu+unix:///system?socket=/nowhere/libvirt-sock"))
    settings = replace(place.settings, objective_seconds=3600)
    found = look_at_status(settings, place.catalog, (point("a", 2),), away)
    assert found.libvirt
    assert (found.gate, found.vms[0].protection, found.vms[0].state) == ("unknown", Protection.LATE, None)


def test_what_doctor_said_is_unknown_when_it_is_older_than_its_interval(place: Place) -> None:
    record_run(place.settings, Run("a", Job.BACKUP, ago(2), ago(2), 0, problems=("gone",)))
    assert place.look().problems is None  # nothing says when it is asked again
    place.schedule(Job.BACKUP)
    assert place.look().problems == ("gone",)
    record_run(place.settings, Run("a", Job.BACKUP, ago(30), ago(30), 0, problems=("gone",)))
    found = place.look()
    assert found.problems is None
    assert found.problems_at is not None
    assert [need.what for need in found.needs] == ["job", "job"]  # it is overdue, and has no timer


def test_record_of_jobs_that_says_nothing_needs_a_person_and_hides_nothing_else(place: Place) -> None:
    place.schedule(Job.BACKUP)
    (place.settings.schedule_dir / "backup.runs.json").write_text("{")
    found = place.look(point("a", 1), objective_seconds=3600 * 2)
    assert [(need.what, "backup.runs.json" in need.message) for need in found.needs] == [("job", True)]
    assert (found.jobs, found.vms[0].protection) == ((), Protection.GOOD)


def test_watch_is_told_only_as_long_as_it_looks(place: Place) -> None:
    mark = WatchMark(place.settings)
    assert place.look().watch == "watching"
    path = watch_mark(place.settings)
    os.utime(path, (time.time() - 600,) * 2)
    assert place.look().watch == "unknown"
    mark.renew()
    assert place.look().watch == "watching"
    WatchMark(place.settings).renew()  # a second one changes nothing
    mark.close()
    assert place.look().watch == "off"


def test_operations_of_dead_processes_need_a_look(place: Place) -> None:
    place.catalog.begin_operation("a" * 32, "point.take", "test", "dead", {})
    (need,) = place.look().needs
    assert (need.what, need.remedy) == ("operation", f"vmkeep ops show {'a' * 32}")


def test_room_is_that_of_the_repositorys_file_system(place: Place, tmp_path: Path) -> None:
    place.catalog.use_repository("r", str(tmp_path))
    disks = [{"bytes_stored": 5}, {"bytes_stored": None}]
    space = place.look(point("a", 1, disks=disks), point("b", 1, disks=disks), repository=str(tmp_path)).space
    assert space is not None
    assert (space.points, space.stored_bytes) == (2, 10)
    assert space.free_bytes is not None
    gone = place.look(repository=str(tmp_path / "gone")).space
    assert gone is not None
    assert gone.free_bytes is None


def test_file_for_the_node_exporter_is_whole_and_readable(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "vmkeep.prom"
    path.write_text("old")
    path.chmod(0o600)
    write_exposition(str(path), place.look())
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text().startswith("# HELP vmkeep_build_info")
    assert [each.name for each in tmp_path.glob("*vmkeep*")] == ["vmkeep.prom"]
    with pytest.raises(InvalidRequest):
        write_exposition(str(tmp_path / "vmkeep.txt"), place.look())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_file_for_the_node_exporter_follows_no_link_of_others(place: Place, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "link", 65534, 65534, follow_symlinks=False)
    with pytest.raises(PermissionRefused):
        write_exposition(str(tmp_path / "link" / "vmkeep.prom"), place.look())
    target = tmp_path / "target"
    target.write_text("of others")
    path = tmp_path / "real" / "vmkeep.prom"
    path.symlink_to(target)
    write_exposition(str(path), place.look())
    assert target.read_text() == "of others"
