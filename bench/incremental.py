"""A point after 1 % of the disk changed, against an incremental backup by virtnbdbackup after the same change.

The two tools have a VM each, with equal disks and equal changes: virtnbdbackup refuses a VM that has another tool's
checkpoints.
"""

from __future__ import annotations

import random

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating
from bench.proof import prove_backup, prove_point
from tests.rig import Host


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of incremental points; docs/performance.md says what each means."""
    vm, twin = disks.define_filled(host, "bench"), disks.define_filled(host, "twin")
    disks.start_quiet(vm)
    disks.start_quiet(twin)
    directory = host.dir / "work/chain"
    product.first_point(host, vm)
    peers.virtnbdbackup(twin, "full", directory)
    samples = Samples()
    read: list[float] = []
    stored: list[float] = []

    def take_point() -> None:
        run = product.backup(host, vm)
        disk = product.disk_of(run)
        assert disk["mode"] == "incremental", disk
        samples.add("incremental", run)
        read.append(disk["bytes_read"] / disks.DIRTY_BYTES)
        stored.append(disk["bytes_stored"] / disks.DIRTY_BYTES)

    def back_up() -> None:
        samples.add("virtnbdbackup_inc", peers.virtnbdbackup(twin, "inc", directory))

    generator = random.Random(7)
    for _ in alternating(runs, [take_point, back_up]):
        disks.dirty([vm, twin], generator)
    prove_point(vm)
    prove_backup(twin, directory)
    peer_stored = [path.stat().st_size / disks.DIRTY_BYTES for path in directory.glob("vda.inc.*.data")]
    for _ in range(runs):
        samples.add("nothing_changed", product.backup(host, vm))
        samples.add("points", product.command(host, "points"))
    return {
        "incremental_read_over_dirty": max(read),
        "incremental_stored_over_dirty": max(stored),
        "virtnbdbackup_inc_stored_over_dirty": max(peer_stored),
        "incremental_over_virtnbdbackup": samples.ratio("incremental", "virtnbdbackup_inc"),
        "incremental_peak_mib": samples.peak_mib("incremental"),
        **samples.figures(),
    }
