"""A point is of one instant, whatever the guest does while it is taken."""

from __future__ import annotations

import threading

import pytest

from tests.rig import Disk, Host, KiB, MiB, VmState, read_offline_image
from tests.rig.cli import Vmkeep
from tests.rig.tpm import SoftwareTpm

pytestmark = pytest.mark.system

_COUNTER_BYTES = 64 * KiB


def test_disks_written_during_the_backup_are_those_of_the_instant(host: Host, vmkeep: Vmkeep) -> None:
    """A counter is written to three places in turn; at any instant they hold n, n, n or the later ones n - 1."""
    size = 48 * MiB
    places = [("vda", 0), ("vda", size - _COUNTER_BYTES), ("vdb", size - _COUNTER_BYTES)]
    vm = host.define("guest", disks=[Disk("vda", size), Disk("vdb", size)])
    vm.start(paused=True)
    vm.write_random("vda", start=1 * MiB, length=24 * MiB, seed=1)
    vm.write_random("vdb", start=1 * MiB, length=24 * MiB, seed=2)
    vm.resume()
    stop, written = threading.Event(), [0]

    def count() -> None:
        while not stop.is_set():
            number = written[0] + 1
            for target, start in places:
                vm.write(target, start=start, length=_COUNTER_BYTES, pattern=number % 251)
            written[0] = number

    writer = threading.Thread(target=count)
    writer.start()
    try:
        points, seen = [], []
        for _ in range(3):
            points.append(vmkeep.backup("guest"))
            seen.append(written[0])
    finally:
        stop.set()
        writer.join()

    assert vm.state() is VmState.RUNNING
    assert [point["kind"] for point in points] == ["full", "incremental", "incremental"]
    for number, output in enumerate(vmkeep.restore_all(points, host.dir / "work")):
        images = {target: read_offline_image(output / f"{target}.qcow2", "qcow2") for target in ("vda", "vdb")}
        blocks = [images[target][start : start + _COUNTER_BYTES] for target, start in places]
        assert all(block == block[:1] * _COUNTER_BYTES for block in blocks)  # none is half written
        counters = [block[0] for block in blocks]
        steps = [(counters[0] - counter) % 251 for counter in counters]
        assert steps in ([0, 0, 0], [0, 0, 1], [0, 1, 1]), counters
        assert (seen[number] - counters[0]) % 251 > 1  # the guest did write while the point was copied


def test_tpm_state_taken_while_the_firmware_writes_it_is_whole(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)])
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(b"the secret")
    vm.start()
    for number in range(2):
        vm.reset()
        point = vmkeep.backup("guest")
        output = vmkeep.restore(point, host.dir / "work" / str(number))
        assert len((output / "nvram.fd").read_bytes()) == len(vm.nvram())
        with SoftwareTpm(output / "tpm" / "tpm2") as tpm:
            assert tpm.load(10) == b"the secret"
    assert vm.state() is VmState.RUNNING
