"""A restore to qcow2, against qemu-img convert of the same data and against virtnbdrestore.

Two states: that of a full backup, and that after incremental ones. A point of vmkeep is always complete; virtnbdrestore
writes the full backup and then each increment over it.
"""

from __future__ import annotations

import random
import shutil

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating
from bench.proof import prove_backup, prove_point
from tests.rig import Host

INCREMENTS = 5


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of restores; docs/performance.md says what each means."""
    vm, twin = disks.define_filled(host, "bench"), disks.define_filled(host, "twin")
    disks.start_quiet(vm)
    disks.start_quiet(twin)
    full, packed, chain = (host.dir / "work" / name for name in ("full", "packed", "chain"))
    first = product.point_of(product.first_point(host, vm))["id"]
    peers.virtnbdbackup(twin, "full", packed, "-z")
    peers.virtnbdbackup(twin, "full", full)
    shutil.copytree(full, chain)
    generator = random.Random(7)
    for _ in range(INCREMENTS):
        disks.dirty([vm, twin], generator)
        last = product.point_of(product.backup(host, vm))["id"]
        peers.virtnbdbackup(twin, "inc", chain)
    samples = Samples()
    output, source = host.dir / "work/output", host.dir / "work/source.qcow2"
    product.restore(host, first, output)
    (output / "vda.qcow2").rename(source)
    shutil.rmtree(output)

    def restore_points() -> None:
        for name, point in (("restore", first), ("restore_last", last)):
            samples.add(name, product.restore(host, point, output))
            shutil.rmtree(output)

    def convert() -> None:
        samples.add("convert", peers.convert(source, host.dir / "work/converted.qcow2"))

    def restore_backups() -> None:
        for name, directory in (("", full), ("_lz4", packed), ("_chain", chain)):
            run = peers.virtnbdrestore(host, directory, output)
            samples.add(f"virtnbdrestore{name}", run)
            samples.add(f"virtnbdrestore{name}_durable", run.seconds + peers.seconds_until_durable(output))
            shutil.rmtree(output)

    for _ in alternating(runs, [restore_points, convert, restore_backups]):
        pass
    prove_point(vm)
    prove_backup(twin, chain)
    return {
        "restore_over_convert": samples.ratio("restore", "convert"),
        "restore_over_virtnbdrestore": samples.ratio("restore", "virtnbdrestore"),
        "restore_over_virtnbdrestore_durable": samples.ratio("restore", "virtnbdrestore_durable"),
        "restore_over_virtnbdrestore_lz4": samples.ratio("restore", "virtnbdrestore_lz4"),
        "restore_over_virtnbdrestore_lz4_durable": samples.ratio("restore", "virtnbdrestore_lz4_durable"),
        "restore_last_over_virtnbdrestore_chain": samples.ratio("restore_last", "virtnbdrestore_chain"),
        "restore_last_over_virtnbdrestore_chain_durable": samples.ratio("restore_last", "virtnbdrestore_chain_durable"),
        "restore_peak_mib": samples.peak_mib("restore"),
        "virtnbdrestore_peak_mib": samples.peak_mib("virtnbdrestore"),
        **samples.figures(),
    }
