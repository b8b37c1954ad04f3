"""Points that another holder of the key forged, met by whole commands on a real host with VMs that they reach for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from lxml import etree

from tests.attack.forging import forge, put_point, replace_point
from tests.attack.hostile_records import HOSTILE
from tests.crash.bed import Zygote
from tests.rig import Disk, Host, KiB, MiB, Vm, random_bytes, read_offline_image
from tests.rig.cli import Vmkeep
from tests.system.history import Forking
from tests.system.offline import write_offline
from vmkeep.config import load_settings
from vmkeep.flows.installation import Premises
from vmkeep.repository import PointRecord

pytestmark = pytest.mark.system


@dataclass(frozen=True, slots=True)
class Town:
    """Two VMs that are off, with a point of each, on a host that shares its repository."""

    host: Host
    vmkeep: Vmkeep
    vms: dict[str, Vm]
    points: dict[str, PointRecord]

    def premises(self) -> Premises:
        return Premises(load_settings(home=self.host.dir / "home", environ={}))

    def image(self, name: str) -> bytes:
        return read_offline_image(self.vms[name].disk_path("vda"))


def _vm(host: Host, name: str, seed: int) -> Vm:
    vm = host.define(name, disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm=False)
    write_offline(vm, "vda", random_bytes(seed, 256 * KiB), start=64 * KiB)
    return vm


@pytest.fixture(scope="module")
def town(session_host: Host) -> Iterator[Town]:
    session_host.clear()
    vms = {name: _vm(session_host, name, seed) for seed, name in enumerate(("alice", "bob"))}
    zygote = Zygote(session_host, session_host.dir / "home")
    vmkeep = Forking(session_host, zygote)
    made = {name: str(vmkeep.backup(name)["id"]) for name in vms}
    town = Town(session_host, vmkeep, vms, {})
    with town.premises() as premises:
        town.points.update({name: premises.repository.point(point_id) for name, point_id in made.items()})
    yield town
    zygote.close()
    session_host.clear()


@pytest.fixture
def forged_point(town: Town) -> Iterator[str]:
    """A new point that says it is of alice, and has the UUID of bob."""
    with town.premises() as premises:
        point_id = forge(premises.repository, town.points["alice"], vm_uuid=town.vms["bob"].uuid, sequence=2)
    yield point_id
    town.vmkeep.json("point", "delete", point_id, "--yes")


@pytest.fixture
def exchanged(town: Town) -> Iterator[PointRecord]:
    """The point of alice, in whose place there is one with the UUID of bob."""
    point = town.points["alice"]
    with town.premises() as premises:
        replace_point(premises.repository, point, vm_uuid=town.vms["bob"].uuid)
    yield point
    with town.premises() as premises:
        put_point(premises.repository, point.as_json(), point_id=point.id, replace=True)


def test_point_that_was_exchanged_is_written_over_no_vm(town: Town, exchanged: PointRecord) -> None:
    before = {name: town.image(name) for name in town.vms}
    write_offline(town.vms["bob"], "vda", b"later" * 1000, start=MiB)
    before["bob"] = town.image("bob")
    refused = town.vmkeep.fails("restore", exchanged.id, "--in-place", "--yes")
    assert (refused.status, refused.code) == (27, "point-changed")
    assert all(word in refused.error["message"] for word in (town.vms["alice"].uuid, town.vms["bob"].uuid))
    assert {name: town.image(name) for name in town.vms} == before


def test_point_that_was_exchanged_is_no_base_and_the_backup_goes_on(town: Town, exchanged: PointRecord) -> None:
    write_offline(town.vms["alice"], "vda", b"later" * 1000, start=2 * MiB)
    point = town.vmkeep.backup("alice")
    assert point["disks"][0]["mode"] == "full"
    output = town.vmkeep.restore(point, town.host.dir / "work" / "restored")
    assert read_offline_image(output / "vda.qcow2") == town.image("alice")
    assert town.vmkeep.fails("verify", exchanged.id).status == 20


def test_backup_goes_on_beside_damaged_points_of_its_vm_and_names_them(town: Town) -> None:
    faults = ("created: no time", "generation: 2^70", "vm_name: lone surrogate", "file: above", "target: a path")
    with town.premises() as premises:
        forged = [forge(premises.repository, town.points["bob"], **HOSTILE[fault]) for fault in faults]
    done = town.vmkeep.run("--json", "backup", "bob")
    assert done.returncode == 0, done.stderr
    assert all(point_id in done.stderr for point_id in forged)
    for words in (("doctor", "bob"), ("points", "--tree"), ("vm", "list")):
        assert town.vmkeep.run(*words).returncode != 1
    for point_id in forged:
        town.vmkeep.json("point", "delete", point_id, "--yes")


def test_vm_that_is_called_otherwise_is_not_written_without_a_question(town: Town, forged_point: str) -> None:
    before = town.image("bob")
    refused = town.vmkeep.fails("restore", forged_point, "--in-place", "--yes")
    assert (refused.status, refused.code) == (2, "choice-required")
    assert all(word in refused.error["message"] for word in ("'alice'", "'bob'", town.vms["bob"].uuid))
    assert town.image("bob") == before
    listed = town.vmkeep.json("points")["points"]
    assert not [point for point in listed if point["labels"].get("vmkeep.safety") == forged_point]


def test_vm_that_was_renamed_goes_back_when_it_is_named_by_its_uuid(town: Town) -> None:
    vm = _vm(town.host, "carol", 7)
    truth = read_offline_image(vm.disk_path("vda"))
    point = town.vmkeep.backup("carol")
    town.host.run(["virsh", "domrename", "carol", "caroline"], check=True)
    write_offline(vm, "vda", b"later" * 1000, start=MiB)
    assert town.vmkeep.fails("restore", str(point["id"]), "--in-place", "--yes").code == "choice-required"
    restored = town.vmkeep.json("restore", f"{vm.uuid}@latest", "--in-place", "--yes")["restored"]
    assert (restored["name"], restored["point"]) == ("caroline", point["id"])
    assert read_offline_image(vm.disk_path("vda")) == truth


@pytest.mark.parametrize(
    "name", ["Büro (alt) & 'neu' \"x\"", "データベース サーバー", "n" * 200], ids=["quotes", "unicode", "long"]
)
def test_name_that_people_give_is_kept_and_comes_back(town: Town, name: str) -> None:
    vm = _vm(town.host, name, 9)
    point = town.vmkeep.backup(name)
    assert point["vm"] == name
    output = town.vmkeep.restore(point, town.host.dir / "work" / f"named-{point['id']}")
    assert read_offline_image(output / "vda.qcow2") == read_offline_image(vm.disk_path("vda"))
    assert town.vmkeep.json("verify", point["id"])["verified"][0]["ok"]
    vm.delete()


@pytest.mark.parametrize("name", ["tab\there", "to\u202eleft"], ids=["tab", "direction"])
def test_name_that_reads_as_another_one_is_refused_before_anything_is_done(town: Town, name: str) -> None:
    def call(definition: etree._Element) -> None:
        next(definition.iter("name")).text = name

    vm = town.host.define("odd", disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm=False, edit=call)
    points: list[dict[str, Any]] = town.vmkeep.json("points")["points"]
    refused = town.vmkeep.fails("backup", vm.uuid)
    assert (refused.code, "virsh domrename" in refused.error["hint"]) == ("invalid-request", True)
    assert town.vmkeep.json("points")["points"] == points
    assert not list((town.host.dir / "home" / "repository" / "intents").iterdir())
    vm.delete()
