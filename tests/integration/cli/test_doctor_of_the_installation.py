"""`vmkeep doctor` on catalogue, repository, key and operations: with real ones, and no libvirt."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.catalog.examples import WIN11, example_point
from tests.integration.cli.command_line import COMMAND, Answer, environment, vmkeep
from vmkeep.catalog import OperationState
from vmkeep.config import load_settings
from vmkeep.flows.installation import Premises, catalog_point, catalog_states
from vmkeep.locks import FileLock
from vmkeep.repository import PointRecord

NOWHERE = ("-c", "qemu+unix:///system?socket=/nowhere/libvirt-sock")
TEST_VM = "6695eb01-f6a4-8304-79aa-97f2502e193f"
DEAD = "d" * 32


def premises(home: Path) -> Premises:
    return Premises(load_settings(home=home, environ={}))


def take(place: Premises, number: int) -> PointRecord:
    """Write a point without disks and record it."""
    with place.repository.begin(purpose="test", host="host1", cache=place.settings.cache_dir) as writer:
        record = writer.commit(
            PointRecord(
                id="",
                vm_uuid=WIN11,
                vm_name="win11",
                kind="full",
                parent=None,
                created=f"2026-03-01T10:00:{number:02}.000000+00:00",
                host="host1",
                checkpoint=None,
                pause_ms=100.0,
                labels={},
                disks=(),
                excluded=(),
                states=(),
                definition="<domain/>",
            )
        )
    place.catalog.record_point(catalog_point(record), catalog_states(record))
    return record


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The home of an installation with a repository of two points beside it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "vmkeep.toml").write_text(f'run_dir = "{tmp_path}/run"\nimages_dir = "{tmp_path}"\n')
    with premises(home) as place:
        place.initialise(str(tmp_path / "repository"))
        take(place, 1)
        take(place, 2)
    return home


def doctor(home: Path, *options: str) -> Answer:
    return vmkeep(home, "doctor", "--json", *NOWHERE, *options)


def findings(home: Path, *options: str) -> dict[str, dict[str, Any]]:
    """Return what is found, by code, but for what every test here finds."""
    told = doctor(home, *options).document()["doctor"]["findings"]
    common = ("libvirt-unreachable", "key-place", "space-low")
    return {finding["code"]: finding for finding in told if finding["code"] not in common}


def mend(home: Path, remedy: str) -> None:
    """Do what a finding says, as a person would."""
    command = remedy.replace("vmkeep init", " ".join((*COMMAND, "init")))
    subprocess.run(["/bin/sh", "-c", command], env=environment(home), check=True)


def aged(path: Path) -> None:
    os.utime(path, (time.time() - 60,) * 2)


def test_sound_installation_has_no_findings_but_the_place_of_its_key(home: Path) -> None:
    answer = doctor(home)
    told = answer.document()["doctor"]
    assert (answer.status, answer.error()["code"]) == (37, "incomplete")
    assert {finding["code"] for finding in told["findings"]} - {"space-low"} == {"libvirt-unreachable", "key-place"}
    (key,) = (home / "keys").iterdir()
    (place,) = (finding for finding in told["findings"] if finding["code"] == "key-place")
    assert (place["path"], place["severity"], place["remedy"]) == (str(key), "note", "vmkeep key export")


def test_libvirt_that_does_not_answer_is_a_problem_with_its_remedy(home: Path) -> None:
    told = doctor(home).document()["doctor"]
    assert told["ok"] is False
    first = told["findings"][0]
    assert (first["code"], first["severity"], first["fixable"]) == ("libvirt-unreachable", "problem", False)
    assert first["remedy"]


def test_looking_at_nothing_makes_nothing(tmp_path: Path) -> None:
    answer = doctor(tmp_path / "none")
    codes = [finding["code"] for finding in answer.document()["doctor"]["findings"]]
    assert "repository-none" in codes
    assert not (tmp_path / "none").exists()
    doctor(tmp_path / "none", "--fix")
    assert not (tmp_path / "none").exists()


def test_looking_changes_no_file(home: Path, tmp_path: Path) -> None:
    (home / "locks").mkdir(exist_ok=True)
    for name in ("locks/x.lock", "owners/x.lock"):
        path = home / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        aged(path)

    def state() -> dict[str, tuple[int, int]]:
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode) for path in files}

    before = state()
    assert "stale-lock" in findings(home)
    assert state() == before


def test_text_names_each_finding_with_its_remedy(home: Path) -> None:
    answer = vmkeep(home, "doctor", *NOWHERE)
    assert answer.status == 37
    assert "problem: " in answer.out
    assert "[libvirt-unreachable]" in answer.out
    assert "  vmkeep key export\n" in answer.out
    assert "--fix" in answer.err


# -- repository and key ------------------------------------------------------------------------------------------


def test_repository_that_is_gone(home: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "away")
    found = findings(home)
    assert list(found) == ["repository-missing"]
    assert found["repository-missing"]["path"] == str(tmp_path / "repository")


def test_repository_that_is_another(home: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "away")
    with premises(tmp_path / "second") as second:
        second.initialise(str(tmp_path / "repository"))
        key = next(second.settings.keys_dir.iterdir())
    shutil.copy(key, home / "keys")
    assert "repository-foreign" in findings(home)


def test_place_of_the_repository_that_holds_something_else(home: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "away")
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "file").write_text("mine")
    assert "repository-foreign" in findings(home)


def test_repository_that_is_damaged(home: Path, tmp_path: Path) -> None:
    for keyring in (tmp_path / "repository" / "keyring").iterdir():
        keyring.write_bytes(b"\0" * 10)
    assert "repository-unusable" in findings(home)


def test_key_that_is_gone(home: Path) -> None:
    for key in (home / "keys").iterdir():
        key.unlink()
    assert "vmkeep key import" in findings(home)["key-missing"]["remedy"]


def test_point_that_the_repository_does_not_hold_and_its_remedy(home: Path, tmp_path: Path) -> None:
    gone, _ = sorted((tmp_path / "repository" / "points").iterdir())
    gone.unlink()
    found = findings(home)
    assert list(found) == ["point-not-stored"]
    remedy = found["point-not-stored"]["remedy"]
    assert remedy == f"vmkeep point delete {gone.name} --yes"
    assert vmkeep(home, *remedy.split()[1:]).status == 0
    assert findings(home) == {}


def test_point_that_the_catalogue_does_not_know_and_its_remedy(home: Path) -> None:
    with premises(home) as place:
        forgotten = place.catalog.point_ids()[0]
        place.catalog.forget_point(forgotten)
    found = findings(home)
    assert list(found) == ["point-not-known"]
    assert forgotten in found["point-not-known"]["message"]
    assert vmkeep(home, *found["point-not-known"]["remedy"].split()[1:]).status == 0
    assert findings(home) == {}


def test_point_of_an_operation_under_way_is_not_unknown(home: Path) -> None:
    """Between the commit to the repository and the catalogue's transaction only the former has it."""
    with premises(home) as place:
        point = place.catalog.point_ids()[0]
        place.catalog.forget_point(point)
        place.catalog.begin_operation(point, "point.take", "win11", "living", {})
        with FileLock.try_acquire(home / "owners" / "living.lock") or pytest.fail("not locked"):
            assert findings(home) == {}


# -- catalogue and flows -----------------------------------------------------------------------------------------


def test_catalogue_that_is_damaged(home: Path) -> None:
    (home / "catalog.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    finding = findings(home)["catalogue-unusable"]
    assert finding["severity"] == "problem"
    mend(home, finding["remedy"])
    assert findings(home) == {}
    assert len(vmkeep(home, "points", "--json").document()["points"]) == 2


def test_catalogue_with_a_damaged_page(home: Path) -> None:
    with closing(sqlite3.connect(home / "catalog.sqlite")) as database, database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page_bytes = database.execute("PRAGMA page_size").fetchone()[0]
        page = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'points'").fetchone()[0]
    database.close()
    with (home / "catalog.sqlite").open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    assert "catalogue-unusable" in findings(home)


def test_catalogue_of_a_newer_vmkeep(home: Path) -> None:
    with closing(sqlite3.connect(home / "catalog.sqlite")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    found = findings(home)
    assert "newer" in found["catalogue-unusable"]["message"]
    assert doctor(home, "--fix").status == 37


def test_flow_database_that_is_damaged(home: Path) -> None:
    (home / "flows.sqlite").write_bytes(b"no database" * 1000)
    remedy = findings(home)["flows-unusable"]["remedy"]
    assert "recovery-failed" in findings(home, "--fix")
    assert list((home / "owners").iterdir()) == []
    mend(home, remedy.removeprefix("When no vmkeep runs: "))
    assert findings(home, "--fix") == {}


# -- what dead processes left ------------------------------------------------------------------------------------


def test_operation_of_a_dead_process_is_told_and_settled(home: Path) -> None:
    with premises(home) as place:
        place.catalog.begin_operation(DEAD, "point.take", "win11", DEAD, {})
    found = findings(home)
    assert (found["operation-interrupted"]["vm"], found["operation-interrupted"]["fixable"]) == ("win11", True)
    assert found["operation-interrupted"]["remedy"] == "vmkeep doctor --fix"
    assert findings(home, "--fix") == {}
    with premises(home) as place:
        assert place.catalog.operation(DEAD).state is OperationState.FAILED


def test_operation_of_a_living_process_is_left_alone(home: Path, tmp_path: Path) -> None:
    left = tmp_path / f".vda.qcow2.{DEAD[:12]}.partial"
    left.touch()
    with premises(home) as place:
        place.catalog.begin_operation(DEAD, "restore.files", None, "living", {"output": str(tmp_path)})
        with FileLock.try_acquire(home / "owners" / "living.lock") or pytest.fail("not locked"):
            assert findings(home, "--fix") == {}
            assert left.exists()
            assert place.catalog.operation(DEAD).state is OperationState.RUNNING
    assert "operation-interrupted" in findings(home)


def test_files_of_a_restore_to_files_are_looked_for_where_it_wrote(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    left = output / f".vda.qcow2.{DEAD[:12]}.partial"
    left.touch()
    with premises(home) as place:
        place.catalog.begin_operation(DEAD, "restore.files", None, DEAD, {"output": str(output)})
        place.catalog.move_operation(DEAD, DEAD, OperationState.FAILED)
    assert findings(home)["left-file"]["path"] == str(left)
    told = doctor(home, "--fix").document()["doctor"]
    assert [fixed["path"] for fixed in told["fixed"]] == [str(left)]
    assert list(output.iterdir()) == []


def test_stale_locks_go_with_fix(home: Path) -> None:
    paths = [home / name for name in ("locks/x.lock", "owners/x.lock", "guards/x.lock")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
        aged(path)
    assert findings(home)["stale-lock"]["fixable"]
    assert findings(home, "--fix") == {}
    assert not any(path.exists() for path in paths)


def test_intent_of_a_writer_that_was_killed_goes_with_fix_and_others_stay(home: Path, tmp_path: Path) -> None:
    writing: dict[str, str] = {}
    with premises(home) as place:
        for purpose in (f"point {DEAD}", "point " + "e" * 32, "somebody else"):
            writer = place.repository.begin(purpose=purpose, host="host1", cache=place.settings.cache_dir)
            writing[purpose] = next(
                known.id for known in place.repository.writers() if known.id not in writing.values()
            )
            shutil.copy(tmp_path / "repository" / "intents" / writing[purpose], tmp_path / writing[purpose])
            writer.abort()
        for intent in writing.values():
            shutil.move(tmp_path / intent, tmp_path / "repository" / "intents" / intent)
        place.catalog.begin_operation(DEAD, "point.take", "win11", DEAD, {})
        place.catalog.move_operation(DEAD, DEAD, OperationState.FAILED)
    assert findings(home)["left-intent"]["path"].endswith(writing[f"point {DEAD}"])
    assert findings(home, "--fix") == {}
    left = {path.name for path in (tmp_path / "repository" / "intents").iterdir()}
    assert left == set(writing.values()) - {writing[f"point {DEAD}"]}


# -- the host ----------------------------------------------------------------------------------------------------


def test_run_dir_with_a_path_that_is_too_long(home: Path, tmp_path: Path) -> None:
    (home / "vmkeep.toml").write_text(f'run_dir = "{tmp_path}/{"long" * 25}"\nrepository = "{tmp_path}/repository"\n')
    assert findings(home)["socket-path-too-long"]["severity"] == "problem"


def test_directories_that_cannot_be_used(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (home / "vmkeep.toml").write_text(
        f'run_dir = "{tmp_path}/file/run"\nscratch_dir = "{tmp_path}/none"\nrepository = "{tmp_path}/repository"\n'
    )
    assert {"run-dir-unusable", "scratch-dir-unusable"} <= set(findings(home))


def test_tool_that_is_not_installed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert findings(home)["tool-missing"]["remedy"].startswith("apt-get install ")


def test_what_one_part_of_a_vm_says_stands_when_another_cannot_be_looked_at(home: Path) -> None:
    """libvirt's own test driver has a VM and versions, and no backup jobs."""
    with premises(home) as place:
        place.catalog.record_point(example_point("old", vm=TEST_VM, vm_name="test"))
    answer = vmkeep(home, "doctor", "--json", "-c", "test:///default")
    told = {finding["code"]: finding for finding in answer.document()["doctor"]["findings"]}
    assert {"qemu-too-old", "versions", "point-old", "vm-unreadable"} <= set(told)
    assert (told["point-old"]["vm"], told["point-old"]["remedy"]) == ("test", "vmkeep backup test")


def test_libvirt_of_another_machine_is_refused(home: Path) -> None:
    answer = vmkeep(home, "doctor", "--json", "-c", "qemu+ssh://elsewhere/system")
    assert (answer.status, answer.error()["code"]) == (2, "invalid-request")


def test_half_written_object_is_removed_when_it_is_older_than_any_write(home: Path, tmp_path: Path) -> None:
    old, new = (tmp_path / "repository" / "points" / f"{'ab' * 16}#{number}" for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    assert findings(home)["left-file"]["path"] == str(old)
    fixed = doctor(home, "--fix")
    assert "left-file" in fixed.out
    assert (old.exists(), new.exists()) == (False, True)
    assert "left-file" not in findings(home)
