"""A repository in a bucket: each command with it, on a VM with two disks, UEFI variables and a TPM, and on bad days."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Disk, Host, MiB, VmState, s3proxy, s3servers
from tests.rig.cli import Vmkeep
from tests.rig.s3proxy import Fault, Proxy
from tests.system.truth import Truth, assert_left_alone

pytestmark = pytest.mark.system


@pytest.fixture
def between(host: Host) -> Iterator[Proxy]:
    with s3proxy.proxy(s3servers.swift().endpoint, inside=host.init_pid) as made:
        yield made


def _installed(host: Host, between: Proxy, name: str) -> Vmkeep:
    vmkeep = Vmkeep(host, home=host.dir / "work" / name)
    s3servers.swift().introduce(vmkeep.home, endpoint=between.endpoint)
    return vmkeep


def _secret_is_nowhere(vmkeep: Vmkeep, *said: str) -> None:
    secret = s3servers.swift().user.secret_key
    files = [path for path in vmkeep.home.rglob("*") if path.is_file() and path.name != "s3.credentials"]
    assert files
    # "testing" is no rare word, but none of these has a reason for it.
    assert [path for path in files if secret.encode() in path.read_bytes()] == []
    assert not any(secret in text for text in said)


@pytest.mark.in_turn(1, among="buckets")
def test_whole_life_of_points_in_a_bucket(host: Host, between: Proxy) -> None:
    vmkeep = _installed(host, between, "home")
    location = f"s3://{s3servers.swift().new_bucket()}/site/vms"
    vm = host.define("guest", disks=(Disk("vda", 24 * MiB), Disk("vdb", 3 * MiB + 1536)))
    vm.start(paused=True)
    vm.write_random("vda", start=MiB, length=20 * MiB, seed=1)

    made = vmkeep.json("init", "--repository", f"{location}/")["init"]
    assert (made["location"], made["created"], made["bucket"]["atomic_create"]) == (location, True, False)
    assert ["several win" in warning for warning in made["warnings"]] == [True]

    # Each tenth request of the first point meets something.
    trouble = [Fault.LOST_ANSWER, Fault.SLOW_DOWN, Fault.CUT_ANSWER, Fault.BROKEN_REQUEST, Fault.TOO_MANY]
    count = iter(range(1_000_000))
    between.choose = lambda _method, _path: trouble[number // 10 % 5] if (number := next(count)) % 10 == 9 else None
    points, truths = [vmkeep.backup("guest")], [Truth.of(vm)]
    assert next(count) > 20
    between.choose = lambda _method, _path: None
    vm.write_random("vda", start=2 * MiB, length=MiB, seed=2)
    vm.change_nvram()
    points, truths = [*points, vmkeep.backup("guest")], [*truths, Truth.of(vm)]
    assert [point["kind"] for point in points] == ["full", "incremental"]
    for truth, output in zip(truths, vmkeep.restore_all(points, host.dir / "work"), strict=True):
        truth.assert_files(output)

    assert vmkeep.json("verify", "--all")["ok"] is True
    vmkeep.json("state", "capture", "guest")
    assert vmkeep.json("key", "recipients", "list")["recipients"][0]["in_use"] is True
    vmkeep.json("point", "delete", points[0]["id"], "--grace", "0", "--yes")
    assert vmkeep.fails("point", "show", points[0]["id"]).code == "point-not-found"
    doctor = vmkeep.run("--json", "doctor")
    codes = {finding["code"] for finding in json.loads(doctor.stdout)["doctor"]["findings"]}
    assert {"bucket-races", "bucket-found"} <= codes
    assert not codes & {"repository-unusable", "point-not-stored", "left-intent", "bucket-stale"}

    other = _installed(host, between, "other")
    key = next((vmkeep.home / "keys").glob("*.key"))
    (other.home / "keys").mkdir(mode=0o700)
    (other.home / "keys" / key.name).write_bytes(key.read_bytes())
    (other.home / "keys" / key.name).chmod(0o600)
    adopted = other.json("init", "--repository", location, "--adopt", "--yes")["init"]
    assert (adopted["adopted_points"], adopted["damaged"]) == (1, [])
    truths[1].assert_files(other.restore(points[1], host.dir / "work" / "adopted"))
    _secret_is_nowhere(vmkeep, doctor.stdout, json.dumps(made))
    assert vm.state() is VmState.PAUSED


@pytest.mark.in_turn(1, among="buckets")
def test_server_that_goes_away_in_the_middle_of_a_pack_costs_the_point_and_nothing_else(
    host: Host, between: Proxy
) -> None:
    vmkeep = _installed(host, between, "home")
    settings = vmkeep.home / "vmkeep.toml"
    settings.write_text(settings.read_text().replace("stalled_after_seconds = 30", "stalled_after_seconds = 3"))
    vmkeep.json("init", "--repository", f"s3://{s3servers.swift().new_bucket()}")
    vm = host.define("guest", disks=(Disk("vda", 8 * MiB),))
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=4 * MiB, seed=1)
    between.choose = lambda _method, path: Fault.BROKEN_REQUEST if "/packs/" in path else None
    failed = vmkeep.fails("backup", "guest")
    assert failed.code in ("store-error", "stalled")
    assert_left_alone(vm, state=VmState.PAUSED)
    assert "packs/" in failed.error["path"]
    between.choose = lambda _method, _path: Fault.LOST_ANSWER
    assert vmkeep.fails("verify", "--all").code in ("store-error", "stalled")
    between.choose = lambda _method, _path: None
    truth = Truth.of(vm)
    truth.assert_files(vmkeep.restore(vmkeep.backup("guest"), Path(host.dir / "work" / "after")))
