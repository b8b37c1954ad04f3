"""The gate on a real libvirt: no VM starts with a TPM or UEFI variables that are lost or older, and all others do.

Firmware is nobody's subject here, so it halts at once: what a guest changes, the tests change.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator

import libvirt
import pytest
from lxml import etree

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, MiB, Vm, VmState
from tests.rig.cli import Vmkeep

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def session_host() -> Iterator[Host]:
    with Host("gated", idle_firmware=True) as host:
        yield host


@pytest.fixture(scope="module")
def second_session_host() -> Iterator[Host]:
    with Host("gated-too", idle_firmware=True) as host:
        yield host


@pytest.fixture
def gate(host: Host, vmkeep: Vmkeep) -> Iterator[Callable[[], str]]:
    """The gate of the host, for the time of a test. What is given returns what it said last."""
    vmkeep.json("init")
    installed = vmkeep.json("hook", "install")["installed"]
    assert installed["told"]  # libvirt looks for hooks when it is started or told to
    assert vmkeep.json("hook", "status")["gate"]["problem"] is None

    def said() -> str:
        said = vmkeep.json("hook", "status")["gate"]["said"]
        return str(said[0]["verdict"]) if said else ""

    yield said
    assert vmkeep.json("hook", "remove") == {"removed": True}
    assert not host.path("/etc/libvirt/hooks/qemu.d/vmkeep").exists()


def refused(vm: Vm) -> str:
    """Start it in vain, as plain virsh would, and return what libvirt says."""
    with pytest.raises(libvirt.libvirtError) as raised:
        vm.start(paused=True)
    assert vm.state() is VmState.OFF
    return str(raised.value)


def kept_twice(vm: Vm, vmkeep: Vmkeep) -> tuple[bytes, bytes]:
    """Take points of two versions of TPM and NVRAM, and leave the VM off; return the first ones."""
    vm.start(paused=True)
    vm.destroy()
    vmkeep.backup(vm.name)
    old = vm.tpm_state(), vm.nvram()
    vm.change_nvram()
    vm.change_tpm()
    vmkeep.backup(vm.name)
    return old


def test_vm_with_a_lost_or_older_tpm_is_not_started_until_it_is_put_back(
    host: Host, vmkeep: Vmkeep, gate: Callable[[], str]
) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    old_tpm, old_nvram = kept_twice(vm, vmkeep)
    newest, newest_nvram = vm.tpm_state(), vm.nvram()
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    assert gate() == "allowed"

    # Lost, as libvirt would make it anew without a word.
    shutil.rmtree(vm.tpm_directory)
    told = refused(vm)
    assert f"VM 'guest': its TPM state /var/lib/libvirt/swtpm/{vm.uuid}/tpm2/tpm2-00.permall is missing" in told
    assert "`vmkeep state restore guest`" in told
    assert not permall.exists()
    vmkeep.json("state", "restore", "guest", "--yes")
    assert permall.read_bytes() == newest
    vm.start(paused=True)
    vm.destroy()

    # Put back by somebody else, left to swtpm's backup, blank and torn.
    permall.write_bytes(old_tpm)
    assert "is an older version that somebody put there" in refused(vm)
    permall.rename(permall.with_name("tpm2-00.permall.bak"))
    assert "swtpm would take the state before its last write" in refused(vm)
    permall.with_name("tpm2-00.permall.bak").unlink()
    assert "missing" in refused(vm)
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--yes")

    # The UEFI variables.
    vm.nvram_path.write_bytes(old_nvram)
    assert "its UEFI variables" in refused(vm)
    vm.nvram_path.unlink()
    assert "are missing, and libvirt would begin with empty ones" in refused(vm)
    vmkeep.json("state", "restore", "guest", "--kind", "nvram", "--yes")
    assert (vm.nvram(), vm.tpm_state()) == (newest_nvram, newest)
    vm.start(paused=True)
    assert gate() == "allowed"
    vm.destroy()


@pytest.mark.usefixtures("gate")
def test_vm_of_an_odd_name_with_an_encrypted_tpm_of_the_other_model_is_kept_from_an_older_state(
    host: Host, vmkeep: Vmkeep
) -> None:
    name = "-Gäst; $(x) `y` 'z' \U0001f600"
    secret = host.define_secret(b"open sesame", name="of the gate")
    backend = f"<backend type='emulator' version='2.0'><encryption secret='{secret}'/></backend>"

    def with_tis(root: etree._Element) -> None:
        (tpm,) = root.iterfind("devices/tpm")
        tpm.set("model", "tpm-tis")

    vm = host.define(name, disks=[Disk("vda", MiB)], tpm_backend=backend, edit=with_tis)
    vm.start(paused=True)
    vm.destroy()
    vmkeep.backup(vm.uuid)
    old_tpm = vm.tpm_state()
    shutil.rmtree(vm.tpm_directory)
    vmkeep.json("hook", "pass", vm.uuid, "--yes")
    vm.start(paused=True)  # which makes a new one
    vm.destroy()
    vmkeep.backup(vm.uuid)
    newest = vm.tpm_state()
    assert newest != old_tpm
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    permall.write_bytes(old_tpm)
    assert "is an older version that somebody put there" in refused(vm)
    permall.unlink()
    told = refused(vm)
    assert "is missing" in told
    assert f"`vmkeep state restore {vm.uuid}`" in told  # such a name is no word of a shell
    vmkeep.json("state", "restore", "--yes", "--", name)
    assert permall.read_bytes() == newest
    vm.start(paused=True)
    vm.destroy()


@pytest.mark.usefixtures("gate")
def test_older_state_that_vmkeep_put_back_may_start_and_so_may_what_came_of_it(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    old_tpm, old_nvram = kept_twice(vm, vmkeep)
    newest_nvram = vm.nvram()
    vmkeep.json("state", "restore", "guest", "--kind", "tpm", "--version", "1", "--yes")
    assert (vm.tpm_state(), vm.nvram()) == (old_tpm, newest_nvram)
    states = vmkeep.json("state", "list")["states"]
    assert [(state["kind"], state["standing"], state["version"]) for state in states] == [
        ("nvram", "current", 2),
        ("tpm", "current", 1),
    ]
    vm.start(paused=True)
    vm.destroy()
    vm.change_tpm()
    vm.start(paused=True)
    vm.destroy()
    # From the next point on the older one is an older one again.
    vmkeep.backup("guest")
    (vm.tpm_directory / "tpm2" / "tpm2-00.permall").write_bytes(old_tpm)
    assert "older version" in refused(vm)
    assert old_nvram != newest_nvram


def test_leave_and_policy_let_a_vm_start_all_the_same(host: Host, vmkeep: Vmkeep, gate: Callable[[], str]) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    kept_twice(vm, vmkeep)
    shutil.rmtree(vm.tpm_directory)
    assert vmkeep.fails("hook", "pass", "guest").code == "invalid-request"  # it asks first
    vmkeep.json("hook", "pass", "guest", "--yes")
    vm.start(paused=True)
    assert gate() == "warned"
    vm.destroy()
    shutil.rmtree(vm.tpm_directory)
    assert "missing" in refused(vm)  # it was for one start
    vmkeep.json("hook", "policy", "guest", "warn")
    vm.start(paused=True)
    vm.destroy()
    vmkeep.json("hook", "policy", "guest", "strict")
    shutil.rmtree(vm.tpm_directory)
    assert "missing" in refused(vm)


@pytest.mark.usefixtures("gate")
def test_point_of_a_vm_with_an_older_state_makes_that_no_newer_one_before_somebody_says_so(
    host: Host, vmkeep: Vmkeep
) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    old_tpm, _ = kept_twice(vm, vmkeep)
    permall = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
    newest = permall.read_bytes()
    permall.write_bytes(old_tpm)
    point = vmkeep.backup("guest")  # as at night, of a VM that is off
    assert [told for told in point["warnings"] if "TPM state is version 1, and 2 is the newest" in told]
    assert vmkeep.json("state", "list")["states"][1]["standing"] == "superseded"
    assert "older version" in refused(vm)
    output = vmkeep.restore(point, host.dir / "work" / "out", "--only", "tpm")
    assert (output / "tpm" / "tpm2" / "tpm2-00.permall").read_bytes() == old_tpm
    # The safety point that goes first has the older one as well, and leaves it one.
    vmkeep.json("state", "restore", "guest", "--yes")
    assert permall.read_bytes() == newest
    permall.write_bytes(old_tpm)
    assert "older version" in refused(vm)

    accepted = vmkeep.json("state", "accept", "guest", "--yes")["accepted"]
    assert [(state["kind"], state["version"]) for state in accepted] == [("tpm", 1)]
    assert vmkeep.json("state", "accept", "guest", "--yes")["accepted"] == []
    vm.start(paused=True)
    vm.destroy()
    permall.write_bytes(old_tpm)
    assert vmkeep.backup("guest")["warnings"] == []
    versions = vmkeep.json("state", "versions", "guest", "--kind", "tpm")["versions"]
    assert [(each["version"], each["current"]) for each in versions] == [(3, True), (2, False), (1, False)]
    permall.write_bytes(newest)
    assert "older version" in refused(vm)
    # A blank one, on request.
    shutil.rmtree(vm.tpm_directory)
    vmkeep.json("state", "accept", "guest", "--yes")
    vm.start(paused=True)
    vm.destroy()


def test_autostart_is_refused_and_a_vm_that_runs_goes_on(host: Host, vmkeep: Vmkeep, gate: Callable[[], str]) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    other = host.define("other", disks=[Disk("vda", MiB)], firmware="bios", tpm=False)
    kept_twice(vm, vmkeep)
    shutil.rmtree(vm.tpm_directory)
    host.run(["virsh", "autostart", "guest"], check=True)
    other.start(paused=True)
    host.path("/run/libvirt/qemu/autostarted").unlink()  # libvirt does it once after each boot of the host
    host.restart_libvirtd()
    wait_until(lambda: gate() == "refused", "the VM is not started by itself", 20)
    assert vm.state() is VmState.OFF
    assert other.state() is VmState.PAUSED
    assert not vm.tpm_directory.exists()
    host.run(["virsh", "autostart", "guest", "--disable"], check=True)


def test_managed_save_and_incoming_migration_pass(
    host: Host, second_host: Host, vmkeep: Vmkeep, gate: Callable[[], str]
) -> None:
    """What comes with its memory comes with its own state; what lies here then is not what it is judged by."""
    there = Vmkeep(second_host, home=second_host.dir / "home")
    there.json("init")
    there.json("hook", "install")
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    kept_twice(vm, vmkeep)
    vm.start()
    vm.settle()
    vm.domain.managedSave(0)
    vm.start()
    assert vm.state() is VmState.RUNNING
    assert gate() == "allowed"

    _migrate(host, second_host)
    away = Vm(second_host, vm.uuid, vm.name)
    there.backup("guest", "--full")
    assert away.state() is VmState.RUNNING
    _migrate(second_host, host)  # where its state was an older one until now
    assert vm.state() is VmState.RUNNING
    assert gate() == "allowed"
    vm.destroy()
    there.json("hook", "remove")


def test_vm_that_is_taken_back_with_its_memory_or_made_of_a_point_passes(
    host: Host, vmkeep: Vmkeep, gate: Callable[[], str]
) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start()
    vm.settle()
    vmkeep.json("snapshot", "create", "guest", "before", "--memspec", f"file={host.dir / 'disks' / 'memory'}")
    vm.destroy()
    vm.change_nvram()
    vm.change_tpm()
    vm.start()
    point = vmkeep.backup("guest")
    vm.destroy()
    vmkeep.json("snapshot", "revert", "guest", "before", "--yes")
    assert vm.state() is VmState.RUNNING
    assert gate() == "allowed"
    vm.destroy()
    vm.start(paused=True)
    vm.destroy()

    # A VM that is made anew, with the identity that its point has: with its TPM, and with a blank one.
    for tpm in ("same", "new"):
        vm.delete()
        directory = host.dir / "work" / tpm
        directory.mkdir()
        vmkeep.json("restore", point["id"], "--as", "guest", "--tpm", tpm, "--disks-dir", directory)
        made = host.vm("guest")
        made.start(paused=True)
        assert gate() == "allowed"
        made.destroy()


@pytest.mark.usefixtures("gate")
def test_damaged_note_and_full_home_keep_no_vm_from_starting(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    kept_twice(vm, vmkeep)
    directory = host.dir / "home" / "gate"
    (directory / "vms" / f"{vm.uuid}.json").write_text("{")
    (directory / "said").rename(directory / "away")
    vm.start(paused=True)
    vm.destroy()
    (directory / "away").rename(directory / "said")
    hook = host.path("/etc/libvirt/hooks/qemu.d/vmkeep")
    hook.chmod(0o644)
    findings = json.loads(vmkeep.run("--json", "doctor").stdout)["doctor"]["findings"]
    (broken,) = [finding for finding in findings if finding["code"] == "gate-broken"]
    assert broken["remedy"] == "vmkeep hook install"
    vmkeep.json(*broken["remedy"].split()[1:])
    # What a killed or failed renewal leaves is mended by the next point.
    vmkeep.backup("guest")
    shutil.rmtree(vm.tpm_directory)
    assert "missing" in refused(vm)


def _migrate(source: Host, destination: Host) -> None:
    incoming = destination.dir / "jobs" / "incoming.sock"
    incoming.unlink(missing_ok=True)
    command = ["virsh", "migrate", "--live", "--persistent", "--undefinesource", "--p2p", "--unsafe", "guest"]
    source.run([*command, destination.outer_uri, "--migrateuri", f"unix://{incoming}"], check=True)
