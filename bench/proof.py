"""What was measured is worth nothing unless it was right: one restore of each side, compared byte for byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench import peers, product
from tests.rig import Vm, assert_images_equal
from tests.rig.images import convert_to_raw


def prove_point(vm: Vm, point: str | None = None) -> None:
    """Restore a point, the last one if None, of a VM that is as it was then: AssertionError names what differs."""
    output = vm.host.dir / "work/proof"
    product.restore(vm.host, point or f"{vm.name}@latest", output, "--format", "raw")
    _compare(output / "vda.raw", vm, "vmkeep")
    shutil.rmtree(output)


def prove_backup(vm: Vm, directory: Path) -> None:
    """The same for a directory of virtnbdbackup."""
    output = vm.host.dir / "work/proof"
    peers.virtnbdrestore(vm.host, directory, output)
    peers.seconds_until_durable(output)
    image = peers.restored_image(output)
    convert_to_raw(image, image.with_suffix(".raw"))
    _compare(image.with_suffix(".raw"), vm, "virtnbdbackup")
    shutil.rmtree(output)


def _compare(raw: Path, vm: Vm, tool: str) -> None:
    truth = vm.host.dir / "work/truth.raw"
    vm.read_image_to("vda", truth)
    assert_images_equal(raw, truth, f"{vm.name} restored by {tool}")
    truth.unlink()
