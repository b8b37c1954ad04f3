"""One guardian's process guards the jobs of a command one after the other, and holds nothing between them."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkeep.host.guard import standby
from vmkeep.host.guard.guardian import Guardian
from vmkeep.host.guard.rescue import JobRecord, Stage, record_path
from vmkeep.locks import FileLock


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "guards"
    directory.mkdir()
    yield directory
    standby.dismiss()


def job(records: Path, lock: FileLock) -> tuple[Guardian, Path]:
    """Begin a job of libvirt's test driver, of which there is nothing to undo; return its guardian and its record."""
    operation = uuid.uuid4().hex
    record = JobRecord(
        operation=operation,
        uri="test:///default",
        vm="test",
        uuid=str(uuid.uuid4()),
        checkpoint=f"vmkeep-{operation}",
        socket=str(records / "none.nbd"),
        was_running=False,
        scratch=(),
    )
    guardian = Guardian(record, records, (lock.descriptor,))
    guardian.wait_ready()
    return guardian, record_path(records, operation)


def end(guardian: Guardian, path: Path, lock: FileLock) -> None:
    guardian.stage(Stage.COPY)
    assert path.exists()
    guardian.done()
    assert list(path.parent.iterdir()) == []
    lock.release(remove=False)


def test_next_job_has_the_process_of_the_one_before_and_no_lock_is_held_between_them(
    records: Path, tmp_path: Path
) -> None:
    processes = []
    for _ in range(3):
        lock = FileLock.try_acquire(tmp_path / "vm.lock")
        assert lock is not None, "the guardian holds the lock of a job that is over"
        guardian, path = job(records, lock)
        processes.append(guardian._process.pid)
        end(guardian, path, lock)
        assert not FileLock.is_held(tmp_path / "vm.lock")
    assert len(set(processes)) == 1
    standby.dismiss()
    assert not Path(f"/proc/{processes[0]}").exists()


def test_process_that_was_killed_between_two_jobs_is_replaced(records: Path, tmp_path: Path) -> None:
    lock = FileLock.try_acquire(tmp_path / "vm.lock")
    assert lock is not None
    first, path = job(records, lock)
    end(first, path, lock)
    os.kill(first._process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, first._process.pid, os.WEXITED | os.WNOWAIT)
    lock = FileLock.try_acquire(tmp_path / "vm.lock")
    assert lock is not None
    second, path = job(records, lock)
    assert second._process.pid != first._process.pid
    end(second, path, lock)


def test_second_job_is_undone_as_the_first_would_be(records: Path, tmp_path: Path) -> None:
    lock = FileLock.try_acquire(tmp_path / "vm.lock")
    assert lock is not None
    first, path = job(records, lock)
    end(first, path, lock)
    lock = FileLock.try_acquire(tmp_path / "vm.lock")
    assert lock is not None
    second, path = job(records, lock)
    assert second._process.pid == first._process.pid
    assert second.rescue_now()
    assert list(records.iterdir()) == []
    assert second._process.returncode == 0
    lock.release(remove=False)
    assert not FileLock.is_held(tmp_path / "vm.lock")
