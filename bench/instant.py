"""How long the guest stands still for a point, against nothing but libvirt's backupBegin of the same job.

Both begin a pull job that is incremental since vmkeep's checkpoint, with a new checkpoint.
"""

from __future__ import annotations

import random
import time

from bench import disks, product
from bench.measuring import Figures, Samples, alternating
from tests.rig import Host


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of the instant; docs/performance.md says what each means."""
    vm = disks.define_filled(host, "bench")
    vm.start()
    vm.settle()
    product.first_point(host, vm)
    samples = Samples()

    def take_point() -> None:
        point = product.point_of(product.backup(host, vm))
        samples.add("pause", point["pause_ms"] / 1000)

    def begin_only() -> None:
        (base,) = vm.domain.listAllCheckpoints()
        begun = time.monotonic()
        with vm.own_backup_job(["vda"], checkpoint="bare", since=base.getName()):
            samples.add("backup_begin", time.monotonic() - begun)
        vm.domain.checkpointLookupByName("bare").delete()

    generator = random.Random(7)
    for _ in alternating(runs, [take_point, begin_only]):
        disks.dirty([vm], generator)
    return {"pause_over_backup_begin": samples.ratio("pause", "backup_begin"), **samples.figures()}
