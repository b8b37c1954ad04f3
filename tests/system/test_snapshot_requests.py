"""What can be asked of a snapshot, and what is refused at once: all on one VM, whose snapshots add up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import wait_until
from tests.rig import Disk, Host, MiB, Vm, VmState, assert_images_equal, read_offline_image
from tests.rig.cli import Started, Vmkeep, finished
from tests.system.snapshots import assert_nothing_left, create_snapshot, kept_snapshot, snapshots

pytestmark = pytest.mark.system


@dataclass(frozen=True, slots=True)
class Shared:
    """A paused UEFI VM with a TPM and two disks, and the command."""

    vm: Vm
    vmkeep: Vmkeep
    host: Host


@pytest.fixture(scope="module")
def shared(booting_session_host: Host) -> Iterator[Shared]:
    booting_session_host.clear()
    # Memory that takes some time to save, also without content.
    vm = booting_session_host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 4 * MiB)], memory_mib=1500)
    vm.start(paused=True)
    yield Shared(vm, Vmkeep(booting_session_host), booting_session_host)
    booting_session_host.clear()


def test_document_of_a_snapshot_is_taken_and_printed_as_libvirt_would_be_asked(shared: Shared) -> None:
    vm, vmkeep, disks = shared.vm, shared.vmkeep, shared.host.dir / "disks"
    file = shared.host.dir / "work" / "snapshot.xml"
    file.write_text(
        "<domainsnapshot><name>written</name><disks><disk name='vda' snapshot='external'>"
        f"<source file='{disks}/here'/></disk></disks></domainsnapshot>"
    )
    printed = vmkeep.json("snapshot", "create", "guest", "--xml", file, "--print-xml")["xml"]
    assert f"<source file='{disks}/here'/>" in printed
    assert f"<source file='{disks}/guest-vdb.written'/>" in printed
    assert snapshots(vm) == {}
    create_snapshot(vmkeep, "guest", "--xml", file)
    assert [disk.path for disk in vm.disks()] == [disks / "here", disks / "guest-vdb.written"]


def test_overlay_that_was_made_before_is_used(shared: Shared) -> None:
    vm, overlay = shared.vm, shared.host.dir / "disks" / "mine.qcow2"
    base = vm.disk_path("vda")
    make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(overlay)]
    shared.host.run(make, check=True)
    words = ["reused", "--reuse-external", "--diskspec", f"vda,file={overlay}", "--diskspec", "vdb,snapshot=no"]
    snapshot = create_snapshot(shared.vmkeep, "guest", *words)
    assert vm.disk_path("vda") == overlay
    assert snapshot["left_out"] == ["vdb"]


def test_snapshot_beside_another_job_or_with_a_taken_name_is_refused_at_once(shared: Shared) -> None:
    vm, vmkeep = shared.vm, shared.vmkeep
    create_snapshot(vmkeep, "guest", "there")
    before, listed = vm.disks(), set(snapshots(vm))
    begun = time.monotonic()
    with vm.own_backup_job(["vda"]):
        assert vmkeep.fails("snapshot", "create", "guest", "beside").code == "vm-busy"
    assert vmkeep.fails("snapshot", "create", "guest", "there").code == "target-exists"
    assert vmkeep.fails("snapshot", "create", "guest", "x", "--internal").code == "state-unsupported"
    assert vmkeep.fails("snapshot", "create", "guest", "x", "--live").code == "invalid-request"
    assert time.monotonic() - begun < 25  # libvirt would let each wait 30 s
    assert (vm.disks(), set(snapshots(vm)), vm.state()) == (before, listed, VmState.PAUSED)
    assert_nothing_left(vmkeep, vm)


def test_doctor_forgets_what_is_kept_with_a_snapshot_that_is_gone_and_records_what_could_not_be_stored(
    shared: Shared,
) -> None:
    vm, vmkeep = shared.vm, shared.vmkeep
    create_snapshot(vmkeep, "guest", "gone")
    shared.host.run(["virsh", "snapshot-delete", "guest", "gone", "--metadata"], check=True)
    vm.change_nvram()
    nvram = vm.nvram()
    states = vmkeep.home / "repository" / "states"
    states.rename(states.with_name("aside"))
    states.touch()  # nothing can be stored in it
    failed = vmkeep.fails("snapshot", "create", "guest", "waits")
    assert "the next command records it" in " ".join(failed.notes)
    vm.change_nvram()
    states.unlink()
    states.with_name("aside").rename(states)

    assert {"snapshot-gone", "snapshot-unrecorded"} <= set(_findings(vmkeep))
    vmkeep.run("doctor", "--fix", "guest")
    assert not {"snapshot-gone", "snapshot-unrecorded"} & set(_findings(vmkeep))
    assert kept_snapshot(vmkeep, vm, "waits").states == {"nvram": nvram, "tpm": vm.tpm_state()}
    with pytest.raises(AssertionError, match="nothing is kept"):
        kept_snapshot(vmkeep, vm, "gone")
    assert_nothing_left(vmkeep, vm)


def _findings(vmkeep: Vmkeep) -> list[str]:
    document = json.loads(vmkeep.run("--json", "doctor", "guest").stdout)
    return [finding["code"] for finding in document["doctor"]["findings"]]


def test_memory_that_is_being_saved_is_broken_off_by_ctrl_c_and_the_guest_runs(shared: Shared) -> None:
    vm, memory = shared.vm, shared.host.dir / "disks" / "memory"
    vm.resume()
    vm.settle()  # what the firmware has written takes time to save
    before, listed = vm.disks(), set(snapshots(vm))
    for attempt in range(8):
        words = ["snapshot", "create", "guest", f"m{attempt}", "--memspec", str(memory)]
        process = shared.vmkeep.start(*words)
        writer = _memory_writer(shared.host, process)
        if writer is None:  # it was faster than the look
            process.communicate()
            memory.unlink()
            before, listed = vm.disks(), set(snapshots(vm))
            continue
        os.kill(writer, signal.SIGSTOP)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        # Its memory must not be done before vmkeep has asked libvirt to break it off, which a busy machine puts off.
        time.sleep(1.5)
        with contextlib.suppress(ProcessLookupError):
            os.kill(writer, signal.SIGCONT)
        wait_until(lambda: vm.state() is VmState.RUNNING, "the guest stands still", 5)
        status, document = finished(process)
        if (
            status == 0
        ):  # all of the memory was in the file when its writer was caught, so nothing was left to break off
            memory.unlink()
            before, listed = vm.disks(), set(snapshots(vm))
            continue
        assert (status, document["error"]["code"]) == (130, "interrupted")
        break
    else:
        pytest.fail("the memory was never caught while it was saved")
    assert (vm.disks(), set(snapshots(vm)), memory.exists()) == (before, listed, False)
    assert_nothing_left(shared.vmkeep, vm)
    vm.suspend()


def _memory_writer(host: Host, process: Started) -> int | None:
    """Return the process of libvirt's that writes a memory to its file; None when the command ends without one seen."""
    while process.poll() is None:
        # Only what is younger: a look at all processes of a machine takes as long as the memory.
        young = [name for name in os.listdir("/proc") if name.isdecimal() and int(name) > process.pid]  # noqa: PTH208
        for entry in map(Path("/proc").joinpath, young):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if b"libvirt_iohelper" in words and str(host.dir).encode() in words:
                    return int(entry.name)
    return None


def test_paused_vm_stays_paused_and_halted_vm_is_off(shared: Shared) -> None:
    vm, vmkeep = shared.vm, shared.vmkeep
    paused = create_snapshot(vmkeep, "guest", "paused")
    assert (vm.state(), paused["was"], paused["pause_ms"]) == (VmState.PAUSED, "paused", 0.0)
    vm.resume()
    vm.settle()
    base = vm.disk_path("vdb")
    vm.write("vdb", start=0, length=65536)
    image = vm.read_image("vdb")
    said = vmkeep.run("snapshot", "create", "guest", "halted", "--halt")
    assert said.returncode == 0, said.stderr
    assert "the guest was paused for" in said.stdout
    assert vm.state() is VmState.OFF
    assert_images_equal(read_offline_image(base, "qcow2"), image)
    assert kept_snapshot(vmkeep, vm, "halted").states == {"nvram": vm.nvram(), "tpm": vm.tpm_state()}
