"""What a VM really holds, read by the test rig without any of vmkeep's code."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rig import Vm, assert_images_equal


@dataclass(frozen=True, slots=True)
class Truth:
    """A VM at one moment: each disk as a raw image on this machine, NVRAM and TPM state as bytes."""

    disks: Mapping[str, Path]
    nvram: bytes
    tpm: bytes


@contextmanager
def truth_of(vm: Vm, targets: tuple[str, ...]) -> Iterator[Truth]:
    """Read a VM; its images are removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="truth-", dir=vm.host.dir / "work") as directory:
        disks = {target: Path(directory) / f"{target}.raw" for target in targets}
        nvram, tpm = vm.nvram(), vm.tpm_state()
        for target, raw in disks.items():
            vm.read_image_to(target, raw)
        yield Truth(disks, nvram, tpm)


def compare(found: Truth, expected: Truth) -> Iterator[tuple[str, str]]:
    """Yield each thing compared, and how it differs ("" when every byte is equal)."""
    for target, image in expected.disks.items():
        size_bytes = image.stat().st_size
        yield f"disk {target}: all {size_bytes:,} bytes equal", _difference(found.disks[target], image)
    yield f"UEFI variables: all {len(expected.nvram):,} bytes equal", _difference(found.nvram, expected.nvram)
    yield f"TPM state: all {len(expected.tpm):,} bytes equal", _difference(found.tpm, expected.tpm)


def _difference(found: bytes | Path, expected: bytes | Path) -> str:
    try:
        assert_images_equal(found, expected)
    except AssertionError as error:
        return str(error)
    return ""
