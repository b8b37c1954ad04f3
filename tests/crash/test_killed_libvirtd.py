"""libvirtd is killed in the middle of a snapshot: QEMU may be on overlays that libvirt does not know of, or forgets.

Whatever is left, the next command puts it right: QEMU writes to the images of the definition, the next start has them
too, and nothing that the guest wrote is lost.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.bed import KILLED, Bed, Trap
from tests.rig import VmState, assert_images_equal
from tests.rig.qemufiles import execute, images_open, images_written, put_on_overlays, qemu_process
from tests.system.snapshots import snapshots
from tests.system.truth import checkpoints

pytestmark = [pytest.mark.system, pytest.mark.crash]

_PLANNED = Trap("after", "vmkeep.host.guardian:Guardian.wait_ready")
_MERGING = "vmkeep.hypervisor.blocknodes:BlockNodes."
_SETTLING = "vmkeep.host.snapshot_overlays:"


def _interrupted(bed: Bed, name: str) -> dict[str, Path]:
    """Have a snapshot of the bed's VM die when it is planned, and QEMU on its overlays; return them."""
    bed.change()
    before = checkpoints(bed.vm)
    outcome = bed.zygote.run(["snapshot", bed.vm.name, name, ""], traps=[_PLANNED])
    killed_at = time.monotonic()
    assert outcome.status == KILLED
    bed.assert_safe(before, killed_at=killed_at)
    overlays = {disk.target: disk.path.with_suffix(f".{name}") for disk in bed.vm.disks() if disk.path is not None}
    put_on_overlays(bed.vm, overlays)
    bed.change()
    return overlays


def _assert_right(bed: Bed) -> None:
    images = {bed.vm.disk_path(disk.target) for disk in bed.vm.disks()}
    assert {path for path in images_written(bed.vm) if path.parent.name == "disks"} == images
    assert list((bed.home / "snapshots").glob("*")) == []
    assert not execute(bed.vm, "query-jobs")


@pytest.mark.parametrize(
    "trap",
    [
        None,
        Trap("after", _MERGING + "commit"),
        Trap("before", _MERGING + "complete"),
        Trap("after", _MERGING + "complete"),
        Trap("before", _MERGING + "dismiss"),
        Trap("before", _MERGING + "close"),
        Trap("after", _MERGING + "close"),
        Trap("before", _SETTLING + "remove_closed"),
        Trap("after", _SETTLING + "remove_closed"),
    ],
    ids=lambda trap: "whole" if trap is None else f"{trap.when}-{trap.place.rpartition('.')[2]}",
)
def test_overlays_of_an_interrupted_snapshot_are_merged_back_also_when_that_is_killed(
    bed: Bed, trap: Trap | None
) -> None:
    overlays = _interrupted(bed, f"m{time.monotonic_ns()}")
    if trap is not None:
        assert bed.zygote.run(traps=[trap]).status == KILLED
        bed.change()
    bed.zygote.run().acts  # noqa: B018  it ends well
    _assert_right(bed)
    assert not set(images_open(bed.vm)) & set(overlays.values())
    assert not any(overlay.exists() for overlay in overlays.values())
    for target, content in bed.content.copy().disks.items():
        assert_images_equal(bed.vm.read_image(target), bytes(content), target)
    bed.next_backup_and_prove_all(killed=bed.content.copy())
    assert bed.vm.state() is VmState.RUNNING


def test_vm_that_was_stopped_on_such_overlays_is_defined_on_them(bed: Bed) -> None:
    overlays = _interrupted(bed, f"o{time.monotonic_ns()}")
    bed.vm.destroy()
    recovered = bed.zygote.run().recovered
    assert any("it is defined to be on the former now" in told for told in recovered), recovered
    assert {disk.target: disk.path for disk in bed.vm.disks()} == overlays
    bed.start_when_free()
    _assert_right(bed)
    for target, content in bed.content.copy().disks.items():
        assert_images_equal(bed.vm.read_image(target), bytes(content), target)


def test_vm_that_was_started_below_such_overlays_is_told_of_and_both_stay(bed: Bed) -> None:
    overlays = _interrupted(bed, f"d{time.monotonic_ns()}")
    bed.vm.destroy()
    bed.start_when_free()
    bed.vm.write("vda", start=0, length=4096, pattern=0x77)
    recovered = bed.zygote.run().recovered
    assert any("each holds what the other one lacks" in told for told in recovered), recovered
    assert all(overlay.exists() for overlay in overlays.values())
    assert len(list((bed.home / "snapshots").glob("*"))) == 1
    for overlay in overlays.values():
        overlay.unlink()
    bed.zygote.run().acts  # noqa: B018  it ends well
    _assert_right(bed)
    bed.sound = False  # the guest lost what it wrote to the overlays, and the bed does not know


@pytest.mark.parametrize("moment", ["before-the-change", "at-the-change", "after-the-change"])
def test_libvirtd_killed_in_a_snapshot_loses_nothing(bed: Bed, moment: str) -> None:
    bed.change()
    name = f"k{time.monotonic_ns()}"
    images = {disk.target: disk.path for disk in bed.vm.disks() if disk.path is not None}
    overlay = images["vda"].with_suffix(f".{name}")
    reached = {
        "before-the-change": lambda: images_open(bed.vm).get(overlay, False),
        "at-the-change": lambda: not images_open(bed.vm).get(images["vda"], True),
        "after-the-change": lambda: str(overlay) in bed.vm.xml(),
    }[moment]
    libvirtd = _libvirtd(bed)
    bed.zygote.start(["snapshot", bed.vm.name, name, ""])
    _wait(reached)
    os.kill(libvirtd, signal.SIGKILL)
    bed.host.restart_libvirtd(signal.SIGKILL)
    bed.zygote.finish()
    bed.change()  # what the guest writes before anybody puts anything right
    bed.zygote.run().acts  # noqa: B018  it ends well
    assert name not in snapshots(bed.vm)
    _assert_right(bed)
    for target, content in bed.content.copy().disks.items():
        assert_images_equal(bed.vm.read_image(target), bytes(content), target)
    bed.next_backup_and_prove_all(killed=bed.content.copy())
    bed.vm.destroy()
    bed.start_when_free()
    for target, content in bed.content.copy().disks.items():
        assert_images_equal(bed.vm.read_image(target), bytes(content), target)
