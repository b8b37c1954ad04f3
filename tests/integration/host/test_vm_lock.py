"""One operation at a time works on a VM: what is about to be done is waited for, and nothing else."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from vmkeep.errors import VmBusy
from vmkeep.host.records.lock import lock_vm
from vmkeep.host.tasks.locks import CAPTURE

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def _lock(directory: Path, doing: str, *, wait: bool = True) -> None:
    lock_vm(directory, UUID, "win11", doing, lambda: None, wait=wait).release()


def test_backup_waits_for_a_capture_which_the_watch_may_make_at_any_time(tmp_path: Path) -> None:
    held = lock_vm(tmp_path, UUID, "win11", CAPTURE, lambda: None)
    threading.Timer(0.5, held.release).start()  # which removes the file, with what it says
    began = time.monotonic()
    _lock(tmp_path, "a point")
    assert 0.4 < time.monotonic() - began < 3


def test_capture_waits_for_nobody_and_nobody_waits_for_a_point(tmp_path: Path) -> None:
    held = lock_vm(tmp_path, UUID, "win11", CAPTURE, lambda: None)
    with pytest.raises(VmBusy, match="capture of its state"):
        _lock(tmp_path, CAPTURE, wait=False)
    held.release()
    held = lock_vm(tmp_path, UUID, "win11", "a point", lambda: None)
    began = time.monotonic()
    with pytest.raises(VmBusy, match="a point"):
        _lock(tmp_path, "a restore")
    assert time.monotonic() - began < 1
    held.release()
