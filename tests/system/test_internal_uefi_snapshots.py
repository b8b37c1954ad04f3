"""Internal snapshots of a VM with UEFI firmware: libvirt makes them from 10.9 on, where the variables are in qcow2."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal, random_bytes
from tests.rig.cli import Vmkeep
from tests.rig.images import read_offline_image
from tests.system.kept_snapshots import names
from tests.system.offline import qemu_img, write_offline

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """Its variables are in snapshots."""
    return booting_session_host


@pytest.fixture
def vm(host: Host) -> Vm:
    """A VM that is off; its disk holds something and its variables are raw, as everywhere."""
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.destroy()
    write_offline(vm, "vda", random_bytes(1, 256 * KiB), start=MiB)
    return vm


def _variables_in_qcow2(vm: Vm) -> Path:
    """Put the variables of a VM that is off into a qcow2 image, and return it."""
    root = etree.fromstring(vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    named = root.find("os/nvram")
    assert named is not None
    assert named.text is not None
    raw = vm.host.path(named.text)
    image = raw.with_suffix(".qcow2")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, image)
    about = raw.stat()
    shutil.chown(image, about.st_uid, about.st_gid)
    named.text = str(Path(named.text).with_suffix(".qcow2"))
    named.set("format", "qcow2")
    vm.host.connection.defineXML(etree.tostring(root, encoding="unicode"))
    return image


def _change(vm: Vm, variables: Path, seed: int) -> None:
    write_offline(vm, "vda", random_bytes(seed, 256 * KiB), start=MiB + seed * 128 * KiB)
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -P {seed} {128 * KiB} 4k", str(variables)]
    subprocess.run(words, check=True, capture_output=True)


def test_internal_snapshot_is_refused_by_name_or_brings_disks_and_variables_back(
    host: Host, vm: Vm, vmkeep: Vmkeep
) -> None:
    refused = vmkeep.fails("snapshot", "create", "guest", "no", "--internal")
    assert "UEFI" in refused.error["message"]
    assert "Leave out --internal" in refused.error["hint"]
    if host.connection.getLibVersion() < 10_009_000:
        assert "this libvirt makes no internal snapshot" in refused.error["message"]
        return
    assert "needs its variables in a qcow2 image" in refused.error["message"]
    assert names(vm) == []

    variables = _variables_in_qcow2(vm)
    truth = {}
    for seed, name in enumerate(("off", "paused"), start=2):
        _change(vm, variables, seed)
        truth[name] = (read_offline_image(vm.disk_path("vda")), read_offline_image(variables, "qcow2"))
        if name == "paused":
            vm.start(paused=True)
        vmkeep.json("snapshot", "create", "guest", name, "--internal")
        if name == "paused":
            vm.destroy()
    _change(vm, variables, 5)
    assert truth["off"] != truth["paused"] != (read_offline_image(vm.disk_path("vda")), b"")
    for name, state in (("off", VmState.OFF), ("paused", VmState.PAUSED), ("off", VmState.OFF)):
        vmkeep.json("snapshot", "revert", "guest", name, "--no-safety", "--stop", "--yes")
        assert vm.state() is state
        if state is VmState.PAUSED:
            vm.destroy()
        disk, held = truth[name]
        assert_images_equal(read_offline_image(vm.disk_path("vda")), disk, f"vda at {name}")
        assert_images_equal(read_offline_image(variables, "qcow2"), held, f"variables at {name}")
    point = vmkeep.backup("guest")
    output = vmkeep.restore(point, host.dir / "work" / "out", "--format", "raw")
    assert_images_equal((output / "vda.raw").read_bytes(), truth["off"][0], "vda of the point")
    for name in ("paused", "off"):
        vmkeep.json("snapshot", "delete", "guest", name, "--yes")
    assert names(vm) == []
    assert "Snapshot list" not in qemu_img("snapshot", "-l", variables)
