"""`vmkeep ops cancel`: a backup in another process is stopped, its guest goes on, and nothing of it is left."""

from __future__ import annotations

import time

import pytest

from tests.rig import Disk, Host, MiB, VmState
from tests.rig.cli import Vmkeep, finished
from tests.system.held import held_in_its_copy
from tests.system.truth import Truth, assert_left_alone

pytestmark = pytest.mark.system


def test_backup_is_stopped_by_another_process_and_leaves_neither_job_nor_pause(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 32 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=24 * MiB, seed=1)
    with held_in_its_copy(vm, vmkeep) as process:
        (running,) = vmkeep.json("ops", "list", "--vm", "guest")["operations"]
        assert (running["kind"], running["state"], running["next"]) == ("point.take", "running", None)
        assert host.run(["kill", "-0", str(running["process"])]).returncode == 0
        assert vmkeep.fails("ops", "cancel", running["id"], "--yes", "--wait", "0").code == "operation-runs"
        time.sleep(1.1)  # it looks once a second: what is left of its copy takes less
    status, document = finished(process)

    assert (status, document["error"]["code"]) == (130, "cancelled")
    assert_left_alone(vm, state=VmState.PAUSED)
    assert vmkeep.json("points")["points"] == []
    assert vmkeep.json("ops", "list")["operations"] == []
    shown = vmkeep.json("ops", "show", running["id"][:6])["operation"]
    # Whether it ends within its copy, or right after, hangs on when it looks: once a second.
    forth = [(step["name"], step["result"]) for step in shown["steps"] if not step["undo"]]
    back = [(step["name"], step["result"]) for step in shown["steps"] if step["undo"]]
    assert [result for _, result in forth] == ["done"] * (len(forth) - 1) + ["failed"]
    assert forth[-1][0] in ("copy_point", "keep_checkpoint")
    assert back == list(reversed(forth[:-1]))
    point = vmkeep.backup("guest")
    Truth.of(vm, uefi=False, tpm=False).assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
