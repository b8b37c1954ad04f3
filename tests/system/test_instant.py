"""A point is of one instant, whatever the guest does while it is taken."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Self

import pytest

from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, assert_images_equal, read_offline_image
from tests.rig.cli import Vmkeep, finished
from tests.rig.tpm import SoftwareTpm
from tests.system.busy_guest import TARGETS, WritingGuest
from tests.system.held import held_in_its_copy

pytestmark = pytest.mark.system

_COUNTER_BYTES = 64 * KiB
_PATIENCE = 30.0  # seconds for the firmware to write the TPM's state
_NVRAM_BYTES = 512  # what the rig changes of the UEFI variables, at the end


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """It writes variables while points are taken."""
    return booting_session_host


def test_disks_and_uefi_variables_written_during_the_backup_are_those_of_the_instant(
    host: Host, vmkeep: Vmkeep
) -> None:
    """A counter is written to four places in turn; at any instant they hold n, n, n, n or the later ones n - 1."""
    size = 16 * MiB
    places = [("vda", 0), ("vda", size - _COUNTER_BYTES), ("vdb", size - _COUNTER_BYTES)]
    vm = host.define("guest", disks=[Disk("vda", size), Disk("vdb", size)])
    vm.start()
    vm.settle()  # so that nobody else writes UEFI variables
    vm.write_random("vda", start=1 * MiB, length=8 * MiB, seed=1)
    vm.write_random("vdb", start=1 * MiB, length=8 * MiB, seed=2)
    base = {target: vm.read_image(target) for target in ("vda", "vdb")}
    nvram, first = vm.nvram(), vm.nvram()[-_NVRAM_BYTES]
    stop, written = threading.Event(), [0]

    def count() -> None:
        while not stop.is_set():
            number = written[0] + 1
            for target, start in places:
                vm.write(target, start=start, length=_COUNTER_BYTES, pattern=number % 256)
            vm.change_nvram()  # one more than before
            written[0] = number

    writer = threading.Thread(target=count)
    writer.start()
    try:
        points, seen = [], []
        for _ in range(2):
            points.append(_point_written_over(vm, vmkeep, lambda: written[0]))
            seen.append(written[0])
    finally:
        stop.set()
        writer.join()

    assert vm.state() is VmState.RUNNING
    assert [point["kind"] for point in points] == ["full", "incremental"]
    for number, output in enumerate(vmkeep.restore_all(points, host.dir / "work")):
        images = {target: read_offline_image(output / f"{target}.qcow2", "qcow2") for target in ("vda", "vdb")}
        counters = [images[target][start] for target, start in places]
        kept = (output / "nvram.fd").read_bytes()
        counters.append((kept[-_NVRAM_BYTES] - first) % 256)
        steps = [(counters[0] - counter) % 256 for counter in counters]
        assert steps in ([0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 1, 1, 1]), counters
        assert (seen[number] - counters[0]) % 256 > 1  # the guest did write while the point was copied
        expected = {target: bytearray(image) for target, image in base.items()}
        for (target, start), counter in zip(places, counters[:3], strict=True):
            expected[target][start : start + _COUNTER_BYTES] = bytes([counter]) * _COUNTER_BYTES
        for target, image in images.items():
            assert_images_equal(image, bytes(expected[target]), target)
        assert kept == nvram[:-_NVRAM_BYTES] + bytes([(first + counters[3]) % 256]) * _NVRAM_BYTES


def test_tpm_state_taken_while_the_firmware_writes_it_is_whole(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(b"the secret")
    vm.start()
    with _Versions(vm) as versions:
        points = []
        for resets in (1, 2):
            vm.reset()
            points.append(vmkeep.backup("guest"))
            # One more for each, written up to half a second after it, unless the next reset comes before.
            versions.wait_for(1 + resets)
    for output in vmkeep.restore_all(points, host.dir / "work"):
        assert len((output / "nvram.fd").read_bytes()) == len(vm.nvram())
        assert (output / "tpm" / "tpm2" / "tpm2-00.permall").read_bytes() in versions.seen
        with SoftwareTpm(output / "tpm" / "tpm2") as tpm:
            assert tpm.load(10) == b"the secret"
    assert vm.state() is VmState.RUNNING


def test_point_of_a_guest_that_writes_hard_is_both_whole_disks_of_one_instant(host: Host, vmkeep: Vmkeep) -> None:
    """The guest itself writes to all its disks all through the copy, and each write is known by its number."""
    guest = WritingGuest(host, "writer", size=24 * MiB)
    points, bases = [], []
    for number in range(2):
        guest.change(start=8 * MiB, length=12 * MiB, seed=number * 10)
        points.append(_point_written_over(guest.vm, vmkeep, lambda: guest.written_bytes() // (64 * KiB)))
        bases.append(guest.base())

    assert [point["kind"] for point in points] == ["full", "incremental"]
    came = 0
    for point, base in zip(vmkeep.restore_all(points, host.dir / "work"), bases, strict=True):
        images = {target: read_offline_image(point / f"{target}.qcow2", "qcow2") for target in TARGETS}
        writes = guest.assert_of_one_instant(images, base)
        assert writes > came
        came = writes
    guest.wait_written(64 * KiB)


def _point_written_over(vm: Vm, vmkeep: Vmkeep, written: Callable[[], int]) -> dict[str, Any]:
    """Take a point, and hold its copy up until the guest has made 20 writes more.

    On a busy machine a guest may not get to run while a copy this short is made.
    """
    with held_in_its_copy(vm, vmkeep) as process:
        end, deadline = written() + 20, time.monotonic() + _PATIENCE
        while written() < end:
            assert time.monotonic() < deadline, "the guest does not write"
            time.sleep(0.01)
    status, document = finished(process)
    assert status == 0, document
    point = document["point"]
    assert isinstance(point, dict)
    return point


class _Versions:
    """Every content that the TPM state of a VM has, one after the other: swtpm replaces the file as a whole."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._path = vm.tpm_directory / "tpm2" / "tpm2-00.permall"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.seen: set[bytes] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._ending.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        """Return when so many contents were seen; fails when they do not come."""
        until = time.monotonic() + _PATIENCE
        while len(self.seen) < count:
            assert time.monotonic() < until, f"{len(self.seen)} of {count} versions in {_PATIENCE} s"
            time.sleep(0.01)

    def _look(self) -> None:
        inode = 0
        while not self._ending.wait(0.0005):
            about = self._path.stat()
            if about.st_ino != inode:
                inode = about.st_ino
                self.seen.add(self._path.read_bytes())
