"""What a repository takes: twenty points of a disk that changes slowly, and a second VM made from the same image."""

from __future__ import annotations

import random
from pathlib import Path

from bench import disks, product
from bench.measuring import Figures
from bench.proof import prove_point
from tests.rig import Host, MiB

POINTS = 20


def measure(host: Host, runs: int) -> Figures:  # noqa: ARG001 - what is counted is the same in every run
    """Return the figures of space; docs/performance.md says what each means."""
    vm, twin = disks.define_filled(host, "bench"), disks.define_filled(host, "twin")
    disks.start_quiet(vm)
    disks.start_quiet(twin)
    repository = host.dir / "home/repository"
    first = product.disk_of(product.first_point(host, vm))
    of_first = _bytes_of(repository)
    generator = random.Random(7)
    for _ in range(POINTS):
        disks.dirty([vm], generator)
        product.backup(host, vm)
    of_all = _bytes_of(repository)
    prove_point(vm)
    second = product.disk_of(product.backup(host, twin))
    prove_point(twin)
    return {
        "repository_growth_over_changes": (of_all - of_first) / (POINTS * disks.DIRTY_BYTES),
        "second_vm_stored_over_first": second["bytes_stored"] / first["bytes_stored"],
        "first_point_mib": of_first / MiB,
        "repository_mib_after_points": of_all / MiB,
        "second_vm_stored_mib": second["bytes_stored"] / MiB,
    }


def _bytes_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
