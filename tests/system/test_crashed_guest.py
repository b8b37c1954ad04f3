"""A guest that crashed with QEMU kept (`on_crash` preserve): it stands still with its disks, and is not off."""

from __future__ import annotations

import libvirt
import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, KiB, MiB
from tests.rig.cli import Vmkeep
from tests.system.history import INCREMENTAL, modes
from tests.system.truth import Truth, has_backup_job

pytestmark = pytest.mark.system


def test_crashed_guest_is_kept_as_it_stands_and_nothing_takes_it_for_off(host: Host, vmkeep: Vmkeep) -> None:
    panic = ["<panic model='isa'/>"]
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm=False, device_xml=panic)
    definition = vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    host.connection.defineXML(definition.replace("<on_crash>destroy", "<on_crash>preserve"))
    vm.start()
    first = vmkeep.backup("guest")
    vm.write_random("vda", start=1 * MiB, length=64 * KiB, seed=1)
    vm.monitor("o /b 0x505 1")  # what a guest's kernel does when it panics
    wait_until(lambda: vm.domain.state()[0] == libvirt.VIR_DOMAIN_CRASHED, "the guest does not crash")
    truth = Truth.of(vm, uefi=False, tpm=False)

    point = vmkeep.backup("guest")
    assert modes(point) == {"vda": INCREMENTAL}
    assert any("crashed" in warning for warning in point["warnings"])
    truth.assert_files(vmkeep.restore(point, host.dir / "work" / "out"))
    assert vmkeep.json("vm", "show", "guest")["vm"]["state"] == "crashed"
    for refused in (
        vmkeep.fails("restore", first["id"], "--in-place", "--yes"),
        vmkeep.fails("snapshot", "create", "guest", "with", "--memspec", str(host.dir / "disks" / "memory")),
    ):
        assert "crashed" in refused.error["message"], refused
        assert "virsh destroy guest" in refused.error["hint"]
    vmkeep.json("snapshot", "create", "guest", "disks")
    assert vm.domain.state()[0] == libvirt.VIR_DOMAIN_CRASHED
    assert not has_backup_job(vm)
    assert vmkeep.json("doctor", "guest")["doctor"]["findings"] is not None
    vm.destroy()
    vmkeep.json("restore", first["id"], "--in-place", "--yes")
