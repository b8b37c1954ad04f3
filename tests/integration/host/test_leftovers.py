"""Left-overs of operations: what is theirs, what is somebody else's, and that only the former is ever removed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.config import Settings, load_settings
from vmkeep.errors import VmkeepError
from vmkeep.host.checkup import leftovers
from vmkeep.host.checkup.host import mend
from vmkeep.host.guard.rescue import JobRecord, Stage
from vmkeep.host.records.restore import RestoreJournal
from vmkeep.host.tasks.checkup import Finding, FindingCode, KnownOperation, Mend, Operations
from vmkeep.hypervisor import Hypervisor
from vmkeep.locks import FileLock
from vmkeep.repository import Repository

DONE, FAILED, LIVING, INTERRUPTED, UNKNOWN = (letter * 32 for letter in "abcde")
OPERATIONS = (
    KnownOperation(DONE, "done"),
    KnownOperation(FAILED, "failed"),
    KnownOperation(LIVING, "living"),
    KnownOperation(INTERRUPTED, "interrupted"),
)
LONG_AGO = time.time() - 60


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / "vmkeep.toml").write_text(f'run_dir = "{tmp_path}/run"\n')
    return load_settings(home=home, environ={})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    place.mkdir()
    return place


def no_libvirt() -> Hypervisor:
    raise AssertionError("files are mended without libvirt")


def no_repository() -> Repository:
    raise AssertionError("files are mended without the repository")


def carry_out(found: list[Finding]) -> None:
    orders: Iterator[Mend] = (finding.mend for finding in found if finding.mend is not None)
    for order in orders:
        mend(no_libvirt, no_repository, order)


def look(settings: Settings, images: Path) -> list[Finding]:
    operations = leftovers.living_operations(settings, OPERATIONS)
    return [*leftovers.left_files([images], operations), *leftovers.left_sockets(settings, operations)]


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def aged(path: Path) -> Path:
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@pytest.mark.parametrize("name", [".vda.qcow2.vda.{}.scratch", ".vda.qcow2.{}.partial", ".x_VARS.fd.{}.published"])
@pytest.mark.parametrize("operation", [DONE, FAILED])
def test_file_of_an_operation_that_ended_is_found_and_removed(
    settings: Settings, images: Path, name: str, operation: str
) -> None:
    left = put(images / name.format(operation[:12]))
    beside = put(images / "vda.qcow2")
    found = look(settings, images)
    assert [(finding.code, finding.path) for finding in found] == [(FindingCode.LEFT_FILE, str(left))]
    carry_out(found)
    assert list(images.iterdir()) == [beside]
    assert look(settings, images) == []


@pytest.mark.parametrize("operation", [LIVING, INTERRUPTED])
@pytest.mark.parametrize("kind", ["scratch", "partial", "replaced", "published"])
def test_file_of_an_operation_that_has_not_ended_is_not_mentioned(
    settings: Settings, images: Path, operation: str, kind: str
) -> None:
    put(images / f".vda.qcow2.{operation[:12]}.{kind}")
    put(settings.run_dir / operation[:12] / "nbd")
    assert look(settings, images) == []


def test_what_another_installation_may_need_is_told_and_left(settings: Settings, images: Path) -> None:
    put(images / f".vda.qcow2.vda.{UNKNOWN[:12]}.scratch")
    put(settings.run_dir / UNKNOWN[:12] / "nbd")
    found = look(settings, images)
    assert [finding.code for finding in found] == [FindingCode.UNKNOWN_LEFT] * 2
    assert not any(finding.fixable for finding in found)
    assert all(finding.remedy for finding in found)


def test_names_that_are_not_ours_are_not_mentioned(settings: Settings, images: Path) -> None:
    for name in (f"vda.qcow2.{DONE[:12]}.partial", ".x.partial", f".x.{DONE}.partial", ".x.ABCDEF012345.scratch"):
        put(images / name)
    put(settings.run_dir / "other" / "nbd")
    put(settings.run_dir / ("a" * 11))
    (settings.run_dir / DONE[:12]).symlink_to(images)
    assert look(settings, images) == []


def test_left_directory_of_a_tpm_and_of_sockets_go_whole(settings: Settings, images: Path) -> None:
    put(images / f".4dea22b3.{FAILED[:12]}.partial" / "tpm2" / "tpm2-00.permall")
    put(settings.run_dir / DONE[:12] / "nbd")
    found = look(settings, images)
    assert {finding.code for finding in found} == {FindingCode.LEFT_FILE, FindingCode.LEFT_SOCKET}
    carry_out(found)
    assert list(images.iterdir()) == []
    assert list(settings.run_dir.iterdir()) == []


def test_file_that_a_failed_restore_moved_aside_comes_back(settings: Settings, images: Path) -> None:
    put(images / f".vda.qcow2.{FAILED[:12]}.replaced", "the only copy")
    (finding,) = look(settings, images)
    assert finding.code is FindingCode.KEPT_ASIDE
    carry_out([finding])
    assert {path.name: path.read_text() for path in images.iterdir()} == {"vda.qcow2": "the only copy"}


def test_file_that_came_to_be_meanwhile_is_not_replaced(settings: Settings, images: Path) -> None:
    put(images / f".vda.qcow2.{FAILED[:12]}.replaced", "the older")
    (finding,) = look(settings, images)
    put(images / "vda.qcow2", "the newer")
    with pytest.raises(VmkeepError):
        carry_out([finding])
    assert sorted(path.read_text() for path in images.iterdir()) == ["the newer", "the older"]


@pytest.mark.parametrize(("operation", "there"), [(FAILED, True), (DONE, False)])
def test_file_aside_that_may_be_wanted_is_told_and_left(
    settings: Settings, images: Path, operation: str, there: bool
) -> None:
    put(images / f".vda.qcow2.{operation[:12]}.replaced", "the older")
    if there:
        put(images / "vda.qcow2", "the newer")
    (finding,) = look(settings, images)
    assert (finding.code, finding.fixable) == (FindingCode.KEPT_ASIDE, False)
    assert finding.remedy


def test_file_aside_of_a_restore_that_was_done_is_removed(settings: Settings, images: Path) -> None:
    put(images / f".vda.qcow2.{DONE[:12]}.replaced", "the older")
    put(images / "vda.qcow2", "the newer")
    carry_out(look(settings, images))
    assert {path.name: path.read_text() for path in images.iterdir()} == {"vda.qcow2": "the newer"}


def test_operation_with_a_guardian_or_a_journal_is_not_over(settings: Settings, images: Path) -> None:
    put(images / f".vda.qcow2.vda.{DONE[:12]}.scratch")
    put(images / f".vda.qcow2.{FAILED[:12]}.replaced")
    put(settings.restores_dir / f"{FAILED}.json", "{}")
    with FileLock.try_acquire(settings.guards_dir / f"{DONE}.lock") or pytest.fail("not locked"):
        aged(settings.guards_dir / f"{DONE}.lock")
        assert look(settings, images) == []


def test_of_two_operations_that_begin_alike_the_one_that_has_not_ended_counts() -> None:
    for states in (("done", "living"), ("living", "done"), ("interrupted", "failed")):
        known = tuple(
            KnownOperation("a" * 12 + str(number) * 20, state)  # type: ignore[arg-type] # a parameter of plain words
            for number, state in enumerate(states)
        )
        assert Operations.of(known).ended("a" * 12) is None


# -- locks -------------------------------------------------------------------------------------------------------


def test_lock_of_a_dead_process_is_found_and_removed(settings: Settings) -> None:
    stale = aged(put(settings.locks_dir / "x.lock", "point x (process 1)"))
    found = list(leftovers.stale_locks(settings))
    assert [(finding.code, finding.path) for finding in found] == [(FindingCode.STALE_LOCK, str(stale))]
    carry_out(found)
    assert not stale.exists()


def test_lock_that_is_held_is_not_mentioned_and_not_disturbed(settings: Settings) -> None:
    path = settings.locks_dir / "x.lock"
    lock = FileLock.try_acquire(path, "note")
    assert lock is not None
    aged(path)
    assert FileLock.is_held(path)
    assert list(leftovers.stale_locks(settings)) == []
    assert FileLock.try_acquire(path) is None
    assert path.read_text() == "note"
    lock.release(remove=False)
    aged(path)
    assert not FileLock.is_held(path)


def test_lock_that_is_taken_after_it_was_found_stale_is_left(settings: Settings) -> None:
    path = aged(put(settings.locks_dir / "x.lock"))
    found = list(leftovers.stale_locks(settings))
    with FileLock.try_acquire(path) or pytest.fail("not locked"):
        with pytest.raises(VmkeepError):
            carry_out(found)
        assert path.exists()


def test_taker_of_a_lock_is_not_disturbed_by_those_who_look(settings: Settings) -> None:
    path = settings.owners_dir / "x.lock"
    over = threading.Event()

    def look_on() -> None:
        while not over.is_set():
            FileLock.is_held(path)

    looking = threading.Thread(target=look_on)
    looking.start()
    try:
        for _ in range(300):
            lock = FileLock.try_acquire(path)
            assert lock is not None
            lock.release(remove=False)
    finally:
        over.set()
        looking.join()
    assert not FileLock.is_held(path)
    assert not FileLock.is_held(path.with_name("gone.lock"))


def test_locks_of_owners_and_guardians_are_left_to_the_recovery(settings: Settings) -> None:
    for directory in (settings.owners_dir, settings.guards_dir):
        aged(put(directory / "x.lock"))
    found = list(leftovers.stale_locks(settings))
    assert [finding.code for finding in found] == [FindingCode.STALE_LOCK] * 2
    assert all(finding.recovered and finding.mend is None for finding in found)


# -- records -----------------------------------------------------------------------------------------------------


def test_record_of_a_job_without_guardian_is_a_problem_for_the_recovery(settings: Settings) -> None:
    settings.guards_dir.mkdir()
    record = JobRecord(DONE, "qemu:///system", "win11", "uuid", "c", "/run/x/nbd", was_running=True, scratch=())
    record.save(settings.guards_dir)
    (finding,) = leftovers.interrupted_jobs(settings)
    assert (finding.code, finding.vm, finding.fixable) == (FindingCode.POINT_INTERRUPTED, "win11", True)
    assert "paused" in finding.message
    with FileLock.try_acquire(settings.guards_dir / f"{DONE}.lock") or pytest.fail("not locked"):
        aged(settings.guards_dir / f"{DONE}.lock")
        assert list(leftovers.interrupted_jobs(settings)) == []


def test_guest_that_may_be_frozen_still_is_told(settings: Settings) -> None:
    settings.guards_dir.mkdir()
    record = JobRecord(DONE, "qemu:///system", "win11", "uuid", "c", "/run/x/nbd", was_running=True, scratch=())
    replace(record, quiesced=True, stage=Stage.FROZEN).save(settings.guards_dir)
    (finding,) = leftovers.interrupted_jobs(settings)
    assert (finding.code, finding.vm, finding.fixable) == (FindingCode.POINT_INTERRUPTED, "win11", True)
    assert "frozen" in finding.message


def test_record_that_cannot_be_read_is_told_with_what_a_person_can_do(settings: Settings) -> None:
    put(settings.guards_dir / "x.json", "{")
    (finding,) = leftovers.interrupted_jobs(settings)
    assert (finding.code, finding.fixable) == (FindingCode.POINT_INTERRUPTED, False)
    assert finding.remedy


def test_restore_in_place_that_was_not_finished_is_a_problem(settings: Settings) -> None:
    journal = RestoreJournal(FAILED, "qemu:///system", "win11", "u", "p", "s", (), (), "", "", "", whole=True)
    journal.save(settings.restores_dir)
    ((uuid, finding),) = leftovers.pending_restores(settings)
    assert (uuid, finding.code, finding.vm, finding.fixable) == ("u", FindingCode.RESTORE_PENDING, "win11", True)
    with FileLock.try_acquire(settings.locks_dir / "u.lock") or pytest.fail("not locked"):
        assert list(leftovers.pending_restores(settings)) == []
    put(settings.restores_dir / f"{FAILED}.json", "{}")
    ((_, unreadable),) = leftovers.pending_restores(settings)
    assert (unreadable.code, unreadable.fixable) == (FindingCode.RESTORE_PENDING, False)
    assert unreadable.remedy


# -- who may read ------------------------------------------------------------------------------------------------


def test_home_and_keys_that_others_may_read_are_made_private(settings: Settings) -> None:
    key = put(settings.keys_dir / "k.key")
    key.chmod(0o640)
    settings.keys_dir.chmod(0o755)
    settings.home.chmod(0o711)
    found = list(leftovers.open_to_others(settings))
    assert [(finding.code, finding.path) for finding in found] == [
        (FindingCode.HOME_NOT_PRIVATE, str(settings.home)),
        (FindingCode.KEY_NOT_PRIVATE, str(settings.keys_dir)),
        (FindingCode.KEY_NOT_PRIVATE, str(key)),
    ]
    carry_out(found)
    assert [path.stat().st_mode & 0o777 for path in (settings.home, settings.keys_dir, key)] == [0o700, 0o700, 0o600]
    assert list(leftovers.open_to_others(settings)) == []
