"""The catalogue is lost, and all else of the home but keys and repository: adoption brings it back, bases and all."""

from __future__ import annotations

import shutil

import pytest

from tests.rig import Disk, Host, KiB, MiB
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system


def test_next_point_after_a_lost_catalogue_is_incremental_and_all_come_back(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 2 * MiB + 512)], tpm=False)
    vm.start(paused=True)
    points, truths = [], []
    for seed in (1, 2):
        vm.write_random("vda", start=seed * MiB, length=512 * KiB, seed=seed)
        vm.write_random("vdb", start=2 * MiB, length=512, seed=seed)
        vm.change_nvram()
        points.append(vmkeep.backup("guest", "--label", f"number={seed}"))
        truths.append(Truth.of(vm, tpm=False))
    listed = vmkeep.json("points")["points"]
    vm.write_random("vda", start=6 * MiB, length=64 * KiB, seed=3)
    for path in vmkeep.home.iterdir():
        if path.name not in ("keys", "host.key", "repository", "vmkeep.toml"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    told = vmkeep.run("points")
    assert "no points" in told.stdout
    assert "`vmkeep init --adopt` makes them known" in told.stderr

    adopted = vmkeep.json("init", "--adopt")["init"]
    assert (adopted["adopted_points"], adopted["damaged"]) == (2, [])
    assert vmkeep.json("points")["points"] == listed
    truths.append(Truth.of(vm, tpm=False))
    points.append(vmkeep.backup("guest"))

    assert (points[2]["kind"], points[2]["parent"]) == ("incremental", points[1]["id"])
    assert {disk["target"]: disk["bytes_read"] for disk in points[2]["disks"]} == {"vda": 64 * KiB, "vdb": 0}
    assert checkpoints(vm) == [points[2]["checkpoint"]]
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)
