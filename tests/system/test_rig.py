"""The rig itself: what the other system tests believe it about."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Trap, Zygote
from tests.rig import (
    Disk,
    Host,
    KiB,
    MiB,
    NvIndexMissingError,
    RigError,
    Vm,
    VmState,
    assert_images_equal,
    random_bytes,
    read_offline_image,
)
from tests.system.truth import guardians

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """What it does is among what is looked at here."""
    return booting_session_host


def test_what_was_written_is_what_is_read(vm: Vm) -> None:
    vm.write("vda", start=1 * MiB, length=64 * KiB, pattern=0xAA)
    vm.write_random("vda", start=5 * MiB + 512, length=3 * MiB, seed=7)

    image = bytearray(64 * MiB)
    image[1 * MiB : 1 * MiB + 64 * KiB] = b"\xaa" * (64 * KiB)
    image[5 * MiB + 512 : 8 * MiB + 512] = random_bytes(7, 3 * MiB)
    assert_images_equal(vm.read_image("vda"), bytes(image))


def test_many_ranges_are_written_quickly(vm: Vm) -> None:
    ranges = [(index * 128 * KiB, 64 * KiB) for index in range(200)]
    began = time.monotonic()
    vm.write_many("vda", ranges, pattern=0x5A)

    assert time.monotonic() - began < 5
    image = vm.read_image("vda")
    assert all(image[start : start + 2 * length] == b"\x5a" * length + bytes(length) for start, length in ranges)


@pytest.mark.parametrize("way", ["zeroes", "zeroes with unmap", "discard"])
def test_ranges_that_were_zeroed_or_discarded_read_as_zero(vm: Vm, way: str) -> None:
    vm.write("vda", start=0, length=4 * MiB)
    if way == "discard":
        vm.discard("vda", start=1 * MiB, length=1 * MiB)
    else:
        vm.write_zeroes("vda", start=1 * MiB, length=1 * MiB, unmap=way == "zeroes with unmap")

    image = vm.read_image("vda")
    assert image[: 4 * MiB] == b"\xaa" * MiB + bytes(MiB) + b"\xaa" * (2 * MiB)


def test_a_write_that_fails_is_an_error(vm: Vm) -> None:
    with pytest.raises(RigError, match="failed"):
        vm.write("vda", start=65 * MiB, length=64 * KiB)
    with pytest.raises(RigError, match="no disk vdz"):
        vm.write("vdz", start=0, length=64 * KiB)


def test_image_of_a_paused_and_of_a_stopped_vm_is_that_of_the_running_one(vm: Vm) -> None:
    vm.write_random("vda", start=2 * MiB, length=1 * MiB, seed=1)
    running = vm.read_image("vda")
    vm.suspend()
    paused = vm.read_image("vda")
    assert vm.state() is VmState.PAUSED
    vm.destroy()

    assert_images_equal(paused, running)
    assert_images_equal(vm.read_image("vda"), running)
    assert_images_equal(read_offline_image(vm.disk_path("vda")), running)


def test_difference_between_images_is_named() -> None:
    image = bytearray(3 * MiB)
    image[2 * MiB + 100 : 2 * MiB + 104] = b"\x01\x02\x03\x04"

    assert_images_equal(bytes(image), bytes(image))
    with pytest.raises(AssertionError, match=r"vda: first difference at start=2097252 length=4 .*1 pieces"):
        assert_images_equal(bytes(image), bytes(3 * MiB), "vda")
    with pytest.raises(AssertionError, match="3145728 bytes, expected 1048576"):
        assert_images_equal(bytes(image), bytes(1 * MiB))


def test_ranges_changed_after_a_checkpoint_are_dirty_in_every_way_of_changing_them(vm: Vm) -> None:
    vm.write("vda", start=0, length=16 * MiB)
    with vm.own_backup_job(["vda"], checkpoint="first"):
        pass
    vm.write("vda", start=1 * MiB, length=64 * KiB)
    vm.write_zeroes("vda", start=3 * MiB, length=64 * KiB)
    vm.write_zeroes("vda", start=5 * MiB, length=64 * KiB, unmap=True)
    vm.discard("vda", start=7 * MiB, length=64 * KiB)

    assert [found.getName() for found in vm.domain.listAllCheckpoints()] == ["first"]
    assert vm.dirty_ranges("vda", "first") == [(start * MiB, 64 * KiB) for start in (1, 3, 5, 7)]


def test_nvram_changes_at_once_and_nothing_else_does(vm: Vm) -> None:
    vm.suspend()
    nvram, tpm = vm.nvram(), vm.tpm_state()
    vm.change_nvram()
    second = vm.nvram()
    vm.change_nvram()

    assert len({nvram, second, vm.nvram()}) == 3
    assert vm.tpm_state() == tpm
    assert len(nvram) == len(second)


def test_firmware_keeps_a_changed_nvram_and_changes_no_state_once_at_rest(host: Host) -> None:
    vm = host.define("guest")
    vm.start(paused=True)
    vm.change_nvram()
    vm.destroy()
    vm.change_nvram()
    before = vm.nvram()
    vm.start()
    vm.settle()
    nvram, tpm = vm.nvram(), vm.tpm_state()
    time.sleep(1)

    assert nvram != before  # the firmware has written its own variables
    assert nvram[-512:] == before[-512:]
    assert (vm.nvram(), vm.tpm_state()) == (nvram, tpm)


def test_idle_firmware_rests_at_once_and_changes_no_state() -> None:
    with Host("idle", idle_firmware=True) as host:
        vm = host.define("guest", disks=[Disk("vda", 1 * MiB)])
        vm.start(paused=True)
        before = vm.nvram(), vm.tpm_state()
        vm.resume()
        vm.settle()
        vm.reset()
        vm.settle()
        assert (vm.nvram(), vm.tpm_state()) == before
        assert vm.state() is VmState.RUNNING
        assert vm.domain.info()[4] < 2e9  # nanoseconds of the processor, of which a real one needs three times as many
        vm.write("vda", start=0, length=4096)
        assert vm.read_image("vda")[:4096] == b"\xaa" * 4096


def test_tpm_changes_by_a_reset_of_the_running_vm(vm: Vm) -> None:
    states = {vm.tpm_state()}
    for _ in range(2):
        vm.change_tpm()
        states.add(vm.tpm_state())

    assert len(states) == 3
    assert vm.state() is VmState.RUNNING


def test_secret_stored_in_the_tpm_survives_the_guest_and_is_in_no_other_tpm(host: Host) -> None:
    first, second = host.define("first", disks=[]), host.define("second", disks=[])
    for vm in (first, second):
        vm.start(paused=True)
        vm.destroy()
    first.store_in_tpm(b"the secret of the first", index=3)
    state = first.tpm_state()
    first.start()
    first.change_tpm()
    first.destroy()

    assert first.tpm_state() != state
    assert first.load_from_tpm(23, index=3) == b"the secret of the first"
    with pytest.raises(NvIndexMissingError):
        second.load_from_tpm(23, index=3)


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("name", ["two words", "quo\"te'd & <tag>", "Größe-名前-🙂", "semi;colon: $(id)`x`%s"])
def test_vm_names_may_hold_anything(host: Host, name: str) -> None:
    vm = host.define(name)  # a comma or backslash is beyond swtpm_setup 0.7, so no VM with a vTPM has one
    vm.start()
    vm.write("vda", start=0, length=64 * KiB)

    assert vm.read_image("vda")[:2] == b"\xaa\xaa"
    assert vm.nvram()
    assert vm.tpm_state()
    listed = host.run(["virsh", "list", "--name"], check=True).stdout
    assert name in listed


def test_two_vms_with_several_kinds_of_disks_run_at_once(host: Host) -> None:
    data = host.dir / "work" / "image.iso"
    data.write_bytes(b"\x11" * MiB)
    odd = host.define(
        "odd",
        firmware="bios",
        tpm=False,
        disks=[
            Disk("vda", 8 * MiB, error_policy="report", create_options=("cluster_size=4k",)),
            Disk("vdb", 8 * MiB, format="raw"),
            Disk("sda", 8 * MiB, bus="sata"),
            Disk("sdb", bus="sata", device="cdrom", format="raw", readonly=True, path=data),
            Disk("sdc", bus="sata", device="cdrom", format="raw", readonly=True, media=False),
        ],
    )
    plain = host.define("plain")
    odd.start()
    plain.start()
    for target, pattern in (("vda", 1), ("vdb", 2), ("sda", 3)):
        odd.write(target, start=0, length=64 * KiB, pattern=pattern)
    plain.write("vda", start=0, length=64 * KiB, pattern=4)

    assert [odd.read_image(target)[0] for target in ("vda", "vdb", "sda")] == [1, 2, 3]
    assert plain.read_image("vda")[0] == 4
    assert [disk.target for disk in odd.disks()] == ["vda", "vdb", "sda", "sdb", "sdc"]
    assert "error_policy='report'" in odd.xml()


def test_commands_inside_see_the_host_and_can_be_killed(host: Host) -> None:
    assert host.run(["hostname"], check=True).stdout == "alpha\n"
    assert host.run(["pwd"], check=True, cwd=host.dir / "work").stdout == f"{host.dir / 'work'}\n"
    assert host.run(["cat"], input="words").stdout == "words"
    assert host.run(["sh", "-c", "echo $VMKEEP_HOME"]).stdout == f"{host.dir / 'home'}\n"
    (host.dir / "run" / "seen").write_text("both ways")
    assert host.run(["cat", "/run/seen"], check=True).stdout == "both ways"
    with pytest.raises(RigError, match=r"false: exit status 1"):
        host.run(["false"], check=True)

    with host.popen(["sleep", "60"]) as process:
        assert _eventually(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x0060\x00")
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_host_goes_on_after_its_libvirtd_was_killed(host: Host) -> None:
    vm = host.define("guest")
    vm.start()
    host.restart_libvirtd(signal.SIGKILL)

    assert vm.state() is VmState.RUNNING
    vm.write("vda", start=0, length=64 * KiB)
    assert vm.read_image("vda")[0] == 0xAA


def test_second_host_knows_nothing_of_the_first(vm: Vm, second_host: Host) -> None:
    other = second_host.define(vm.name)
    other.start()

    assert other.uuid != vm.uuid
    assert second_host.run(["hostname"]).stdout == "beta\n"
    assert vm.host.host_uuid in vm.host.connection.getCapabilities()
    assert second_host.host_uuid in second_host.connection.getCapabilities()
    assert second_host.run(["virsh", "domuuid", vm.name]).stdout.strip() == other.uuid
    other.delete()
    assert vm.state() is VmState.RUNNING


def test_clear_leaves_nothing_of_any_vm(host: Host) -> None:
    vm = host.define("guest")
    vm.start()
    with vm.own_backup_job(["vda"], checkpoint="first"):
        pass
    nvram, tpm, disk = vm.nvram_path, vm.tpm_directory, vm.disk_path("vda")
    host.clear()

    assert host.connection.listAllDomains() == []
    assert not any(path.exists() for path in (nvram, tpm, disk))
    assert not any((host.dir / "jobs").iterdir())


def test_guardian_that_was_forked_is_like_one_that_was_started(host: Host, zygote: Zygote) -> None:
    vm = host.define("guest", disks=[Disk("vda", 1 * MiB)], firmware="bios", tpm=False)
    vm.start(paused=True)
    copying = Trap("before", "vmkeep.host.points.point:capture_disk", "hold")
    starting = Trap("before", "vmkeep.host.guard.guardian:Guardian.wait_ready", "count")  # so the driver forks none
    forked, started = (_guardian(zygote, vm, traps) for traps in ([copying], [copying, starting]))

    assert forked == started
    assert forked["words"][1:] == ["-P", "-m", "vmkeep.host.guard.guardian", str(host.dir / "home" / "guards")]
    assert forked["leads a session"]
    assert forked["folder"] == "/"


def _guardian(zygote: Zygote, vm: Vm, traps: Sequence[Trap]) -> dict[str, Any]:
    """Return what the process of a guardian is made of, while its point is copied."""
    zygote.start(["backup", vm.name], traps=traps)
    zygote.wait_reached()
    (pid,) = guardians(vm.host.dir / "home")
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    links = [os.readlink(link) for link in (process / "fd").iterdir()]  # noqa: PTH115 -- to nothing that is a path
    told = {
        "words": (process / "cmdline").read_bytes().rstrip(b"\0").decode().split("\0"),
        "leads a session": status["NSsid"].split()[-1] == status["NSpid"].split()[-1],
        "folder": str((process / "cwd").readlink()),
        "signals": [status[name].strip() for name in ("SigBlk", "SigIgn", "SigCgt")],
        "umask": status["Umask"].strip(),
        "descriptors": sorted(re.sub(r"[0-9a-f]{32}|\d+", "N", link) for link in links),
    }
    zygote.go.touch()
    zygote.finish().acts  # noqa: B018  raises unless all went well
    return told


_HOLDER = """
import time
from tests.rig import Host
host = Host("short-lived")
host.start()
vm = host.define("guest")
vm.start()
print(host.init_pid, host.dir, flush=True)
time.sleep(60)
"""


def test_everything_dies_with_the_process_that_holds_the_host() -> None:
    project = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", _HOLDER], cwd=project, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        init_pid, directory = holder.stdout.readline().split()
        namespace = os.readlink(f"/proc/{init_pid}/ns/pid")  # noqa: PTH115 -- a link to nothing that is a path
        assert len(_processes_in(namespace)) >= 4  # process 1, libvirtd, virtlogd, QEMU, swtpm
        holder.kill()

    assert _eventually(lambda: _processes_in(namespace) == [])
    assert directory.startswith("/var/tmp/vmkeep-rig-")  # noqa: S108 -- only compared
    subprocess.run(["rm", "-rf", directory], check=True)


def _processes_in(namespace: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "ns" / "pid") == namespace:  # noqa: PTH115 -- as above
                found.append(process.name)
        except OSError:
            continue
    return found


def _eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
