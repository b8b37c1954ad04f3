"""TPMs other than libvirt's usual one: of version 1.2, of another program, of the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rig import Disk, Host, KiB, MiB, SoftwareTpm, Vm
from tests.rig.cli import Vmkeep
from tests.rig.external_tpm import external_tpm
from tests.system.truth import Truth

pytestmark = pytest.mark.system

_PERMALL = Path("tpm1.2/tpm-00.permall")


def endorsement_key(vm: Vm) -> bytes:
    with SoftwareTpm(vm.tpm_directory / "tpm1.2") as tpm:
        return tpm.endorsement_key_12()


def test_tpm_1_2_comes_back_as_vm_in_place_and_as_files(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define(
        "old", disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm_backend="<backend type='emulator' version='1.2'/>"
    )
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=256 * KiB, seed=1)
    point = vmkeep.backup("old")
    permall = (vm.tpm_directory / _PERMALL).read_bytes()
    vm.destroy()
    truth = Truth.of(vm, uefi=False, tpm=False)
    key = endorsement_key(vm)
    assert (point["state"]["tpm"]["present"], point["warnings"]) == (True, [])
    assert (vmkeep.restore(point, host.dir / "work" / "out") / "tpm" / _PERMALL).read_bytes() == permall

    vm.delete()
    restored = vmkeep.json("restore", point["id"], "--as", "old")["restored"]
    back = host.vm("old")
    assert (restored["tpm"], restored["identity"], (back.tpm_directory / _PERMALL).read_bytes()) == (
        "same",
        "same",
        permall,
    )
    assert endorsement_key(back) == key
    back.start(paused=True)
    back.destroy()
    assert endorsement_key(back) == key

    # libvirt makes a blank TPM when there is no state; in place the point's comes back.
    (back.tpm_directory / _PERMALL).unlink()
    finding = vmkeep.fails("doctor", "old").document
    assert finding is not None
    assert "tpm-missing" in [each["code"] for each in finding["doctor"]["findings"]]
    back.tpm_directory.joinpath(_PERMALL).write_bytes(permall[:600] + b"\0" + permall[601:])
    vmkeep.json("restore", point["id"], "--in-place", "--yes")
    assert (back.tpm_directory / _PERMALL).read_bytes() == permall
    truth.assert_vm(back)
    back.start(paused=True)
    back.destroy()
    assert endorsement_key(back) == key


def told_of_tpm(vmkeep: Vmkeep, vm: str) -> tuple[Any, list[str], list[str]]:
    """Return what vm show and vm list say, and the findings of doctor that are about the TPM."""
    shown = vmkeep.json("vm", "show", vm)["vm"]
    assert [each for each in vmkeep.json("vm", "list")["vms"] if each["name"] == vm] == [shown]
    assert shown["complete"] is False
    findings = vmkeep.json("doctor", vm)["doctor"]["findings"]
    return shown["tpm"], shown["problems"], [each["message"] for each in findings if each["code"] == "tpm-not-kept"]


def test_tpm_of_another_program_is_reported_and_its_vm_is_kept_without(host: Host, vmkeep: Vmkeep) -> None:
    with external_tpm(host) as backend:
        vm = host.define("ext", disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm_backend=backend)
        vm.start(paused=True)
        vm.write_random("vda", start=0, length=64 * KiB, seed=1)
        point, truth = vmkeep.backup("ext"), Truth.of(vm, uefi=False, tpm=False)
        tpm, problems, findings = told_of_tpm(vmkeep, "ext")
        vm.destroy()
    assert tpm == "external"
    assert len(problems) == len(findings) == 1
    assert "one that libvirt does not start (external)" in problems[0]
    assert "external" in findings[0]
    assert point["warnings"] == problems
    assert point["state"]["tpm"]["present"] is False
    vm.delete()
    restored = vmkeep.json("restore", point["id"], "--as", "ext")["restored"]
    assert (restored["tpm"], restored["warnings"]) == ("none", problems)
    truth.assert_vm(host.vm("ext"))
    assert backend.partition("<source")[2][:30] in host.vm("ext").xml()


def test_tpm_of_the_host_is_reported(host: Host, vmkeep: Vmkeep) -> None:
    """Of a VM that is off: there is no real TPM here to start one with."""
    backend = "<backend type='passthrough'><device path='/dev/tpm0'/></backend>"
    vm = host.define("pass", disks=[Disk("vda", 4 * MiB)], firmware="bios", tpm_backend=backend)
    point = vmkeep.backup("pass")
    tpm, problems, findings = told_of_tpm(vmkeep, "pass")
    assert tpm == "passthrough"
    assert "a real one of the host (passthrough)" in problems[0]
    assert "passthrough" in findings[0]
    assert point["warnings"] == problems
    vm.delete()
    assert vmkeep.json("restore", point["id"], "--as", "pass")["restored"]["tpm"] == "none"
