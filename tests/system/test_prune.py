"""Prune, on the repository of a VM: space comes back, and everything that is kept comes back as it was."""

from __future__ import annotations

import pytest

from tests.rig import Disk, Host, KiB, MiB
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth

pytestmark = pytest.mark.system


def test_space_of_deleted_points_comes_back_and_the_next_point_is_incremental(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 24 * MiB)])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=12 * MiB, seed=1)
    points, truths = [vmkeep.backup("guest")], [Truth.of(vm)]
    for seed in (2, 3, 4):
        vm.write_random("vda", start=(seed - 2) * 3 * MiB, length=3 * MiB, seed=seed)
        vm.change_nvram()
        points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]
    before = _size(host)
    for point in points[:2]:
        vmkeep.json("point", "delete", str(point["id"]), "--grace", "0", "--yes")
    told = vmkeep.json("prune", "--young", "0", "--dry-run")["pruned"]
    assert _size(host) == before
    pruned = vmkeep.json("prune", "--young", "0")["pruned"]
    assert pruned["problems"] == []
    # Of the first point 6 MiB were written over before the third.
    assert before - _size(host) == pytest.approx(6 * MiB, abs=256 * KiB)
    assert pruned["freed_bytes"] == pytest.approx(told["freed_bytes"], abs=64 * KiB)
    assert pruned["waste_bytes"] <= 0.2 * pruned["needed_bytes"]
    done = vmkeep.json("log")["operations"][-1]
    assert (done["kind"], done["state"]) == ("repository.prune", "done")

    vm.write_random("vda", start=20 * MiB, length=64 * KiB, seed=9)
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]
    assert points[-1]["kind"] == "incremental"
    assert vmkeep.json("verify", "--all")["ok"]
    for truth, output in zip(truths[2:], vmkeep.restore_all(points[2:], host.dir / "work"), strict=True):
        truth.assert_files(output)


def _size(host: Host) -> int:
    packs = (host.dir / "home" / "repository" / "packs").rglob("*")
    return sum(path.stat().st_size for path in packs if path.is_file())
