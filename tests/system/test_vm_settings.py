"""What vmkeep.toml says of one VM for good: obeyed by every point, and told wherever the VM is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rig import Disk, Host, Vm
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system
NETWORK_DISK = """\
<disk type='network' device='disk'>
  <driver name='qemu' type='raw'/>
  <source protocol='rbd' name='pool/image'><host name='127.0.0.1' port='1'/></source>
  <target dev='vdb' bus='virtio'/>
</disk>"""


@pytest.fixture
def vms(host: Host) -> tuple[Vm, Vm, Vm]:
    """A VM that is off, with a disk that can then not be read; one with two disks; one that shall be skipped."""
    return (
        host.define("on the SAN", device_xml=[NETWORK_DISK], firmware="bios", tpm=False),
        host.define("pair", disks=[Disk("vda"), Disk("vdb")], firmware="bios", tpm=False),
        host.define("scratchpad", firmware="bios", tpm=False),
    )


@pytest.fixture
def settings(vmkeep: Vmkeep) -> Path:
    return vmkeep.home / "vmkeep.toml"


def test_settings_of_vms_are_obeyed_and_told(vms: tuple[Vm, Vm, Vm], vmkeep: Vmkeep, settings: Path) -> None:
    san, pair, scratchpad = vms
    failure = vmkeep.fails("backup", "--all")
    assert failure.code == "incomplete"
    assert failure.document is not None
    assert [each["vm"] for each in failure.document["failed"]] == [san.name]

    settings.write_text(
        f'[vm."{san.name}"]\nexclude = ["vdb"]\nreason = "kept by the SAN"\n'
        f'[vm.{pair.uuid}]\nexclude = ["vdb"]\n'
        f'[vm.{scratchpad.name}]\nskip = true\nreason = "made anew each night"\n'
    )
    nightly = vmkeep.json("backup", "--all")
    assert nightly["failed"] == []
    assert nightly["skipped"] == [{"vm": scratchpad.name, "reason": "made anew each night"}]
    points = {point["vm"]: point for point in nightly["points"]}
    assert set(points) == {san.name, pair.name}
    for point in points.values():
        assert point["excluded"] == [{"target": "vdb", "reason": "settings"}]
        assert [disk["target"] for disk in point["disks"]] == ["vda"]
        assert 0 < point["seconds"] < 600

    told = vmkeep.run("backup", "--all")
    assert told.returncode == 0
    assert "scratchpad: skipped by vmkeep.toml (made anew each night)" in told.stdout
    assert told.stdout.count("left out by vmkeep.toml: vdb (kept by the SAN)\n") == 1
    assert told.stdout.count("left out by vmkeep.toml: vdb\n") == 1
    assert "; it took " in told.stdout
    quiet = vmkeep.run("backup", "--all", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")

    named = vmkeep.run("backup", scratchpad.name)
    assert named.returncode == 0
    assert "is skipped by `backup --all` (made anew each night); it was named, so it was taken" in named.stderr
    assert vmkeep.backup(pair.name, "--exclude", "vdb")["excluded"] == [{"target": "vdb", "reason": "requested"}]

    listed = {each["name"]: each for each in vmkeep.json("vm", "list")["vms"]}
    assert {name: (each["skip"], each["reason"]) for name, each in listed.items()} == {
        san.name: (False, "kept by the SAN"),
        pair.name: (False, None),
        scratchpad.name: (True, "made anew each night"),
    }
    assert [disk["left_out"] for disk in listed[pair.name]["disks"]] == [False, True]
    assert "disk vdb is left out by vmkeep.toml" in listed[pair.name]["problems"]
    assert "scratchpad: skipped by `vmkeep backup --all` (made anew each night)" in vmkeep.run("vm", "list").stdout
    assert "kept by the SAN" in vmkeep.run("vm", "show", san.name).stdout
    codes = {each["code"] for each in vmkeep.json("doctor")["doctor"]["findings"]}
    assert not codes & {"setting-unused", "disk-not-kept"}


def test_what_is_written_over_is_in_the_safety_point_whatever_the_settings_say(
    vms: tuple[Vm, Vm, Vm], vmkeep: Vmkeep, settings: Path
) -> None:
    san, pair, _ = vms
    whole = vmkeep.backup(pair.name)
    settings.write_text(f'[vm.{pair.name}]\nexclude = ["vdb"]\n[vm."{san.name}"]\nexclude = ["vdb"]\n')
    restored = vmkeep.json("restore", whole["id"], "--in-place", "--yes")["restored"]
    assert restored["disks"] == ["vda", "vdb"]
    safety = vmkeep.json("point", "show", restored["safety"])["point"]
    assert [disk["target"] for disk in safety["disks"]] == ["vda", "vdb"]
    # And what is not, and cannot be read, does not stand in the way.
    partial = vmkeep.backup(san.name)
    restored = vmkeep.json("restore", partial["id"], "--in-place", "--yes")["restored"]
    assert restored["disks"] == ["vda"]
    copy = vmkeep.run("restore", partial["id"], "--as", "copy")
    assert copy.returncode == 0, copy.stderr
    assert "vdb is not in the point (settings), so the restored VM lacks it" in copy.stderr


def test_settings_that_fit_nothing_are_found_by_doctor_and_stop_no_backup(
    vms: tuple[Vm, Vm, Vm], vmkeep: Vmkeep, settings: Path
) -> None:
    _, pair, _ = vms
    vmkeep.home.mkdir(exist_ok=True)
    settings.write_text(f'[vm.{pair.name}]\nexclude = ["vdx"]\n[vm."gone"]\nskip = true\n')
    assert [disk["target"] for disk in vmkeep.backup(pair.name)["disks"]] == ["vda", "vdb"]
    findings = vmkeep.json("doctor", pair.name)["doctor"]["findings"]
    unused = {each["vm"]: each for each in findings if each["code"] == "setting-unused"}
    assert set(unused) == {None, pair.name}
    assert "'gone'" in unused[None]["message"]
    assert "vdx" in unused[pair.name]["message"]
    assert all(each["path"] == str(settings) for each in unused.values())
    settings.write_text("[vm.pair]\nexclud = []\n")
    assert vmkeep.fails("backup", pair.name).code == "invalid-request"
