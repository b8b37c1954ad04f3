"""A pack is lost: what the VM still has of it comes back to every point, and what it has not is named to the byte."""

from __future__ import annotations

import pytest

from tests.rig import Disk, Host, MiB
from tests.rig.cli import Vmkeep
from tests.rig.images import random_bytes
from tests.system.truth import Truth

pytestmark = pytest.mark.system


def test_points_are_whole_again_by_what_a_full_point_stored_anew(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 24 * MiB)])
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=12 * MiB, seed=1)
    points, truths = [vmkeep.backup("guest")], [Truth.of(vm)]
    vm.write_random("vda", start=16 * MiB, length=MiB, seed=2)
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]
    packs = (host.dir / "home" / "repository" / "packs").rglob("*")
    max((path for path in packs if path.is_file()), key=lambda path: path.stat().st_size).unlink()
    refused = vmkeep.fails("repair")
    assert (refused.code, refused.status) == ("damaged", 20)
    vm.write_random("vda", start=4 * MiB, length=MiB, seed=3)
    points, truths = [*points, vmkeep.backup("guest", "--full")], [*truths, Truth.of(vm)]
    told = vmkeep.fails("repair", "--dry-run")
    assert told.document is not None
    lost = [(each["point"], each["disk"], each["start"], each["length"]) for each in told.document["repaired"]["lost"]]
    assert lost == [(points[number]["id"], "vda", 4 * MiB, MiB) for number in (0, 1)]

    vm.write_bytes("vda", start=4 * MiB, content=random_bytes(1, 12 * MiB)[4 * MiB : 5 * MiB])
    vmkeep.backup("guest", "--full")
    repaired = vmkeep.json("repair")["repaired"]
    assert (sorted(repaired["healed"]), repaired["lost"]) == (sorted(str(each["id"]) for each in points[:2]), [])
    done = vmkeep.json("log")["operations"][-1]
    assert (done["kind"], done["state"]) == ("repository.repair", "done")
    assert all(each["ok"] for each in vmkeep.json("verify", "guest")["verified"])
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)
