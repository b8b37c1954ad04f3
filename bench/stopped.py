"""Points of a VM that is off: full, after 1 % changed, and after nothing did. Against nbdcopy and virtnbdbackup.

virtnbdbackup makes no checkpoint of a VM that is off: its full backup is a copy, and its incremental one reads all that
changed since the last backup of the running VM. So that both sides read 1 %, the same pieces are written each time.
"""

from __future__ import annotations

import random

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating
from bench.proof import prove_backup, prove_point
from tests.rig import Host


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of VMs that are off; docs/performance.md says what each means."""
    vm, twin = disks.define_filled(host, "bench"), disks.define_filled(host, "twin")
    for each in (vm, twin):
        disks.start_quiet(each)  # NVRAM and TPM exist from the first start on
    chain = host.dir / "work/chain"
    peers.virtnbdbackup(twin, "full", chain)
    vm.destroy()
    twin.destroy()
    samples = Samples()
    copy, directory = host.dir / "work/peer.raw", host.dir / "work/copy"

    def take_full_points() -> None:
        samples.add("stopped_full", product.first_point(host, vm))
        samples.add("stopped_nothing_changed", product.backup(host, vm))

    def copy_only() -> None:
        samples.add("stopped_nbdcopy", peers.nbdcopy_offline(vm, copy))

    def back_up_whole() -> None:
        samples.add("stopped_virtnbdbackup_copy", peers.virtnbdbackup(twin, "copy", directory))

    for _ in alternating(runs, [take_full_points, copy_only, back_up_whole]):
        pass
    read: list[float] = []
    stored: list[float] = []

    def take_point() -> None:
        run = product.backup(host, vm)
        disk = product.disk_of(run)
        assert disk["mode"] == "incremental", disk
        samples.add("stopped_incremental", run)
        read.append(disk["bytes_read"] / disks.DIRTY_BYTES)
        stored.append(disk["bytes_stored"] / disks.DIRTY_BYTES)

    def back_up() -> None:
        for earlier in chain.glob("vda.inc.*"):
            earlier.unlink()
        samples.add("stopped_virtnbdbackup_inc", peers.virtnbdbackup(twin, "inc", chain))

    starts = disks.piece_starts(random.Random(7))
    generator = random.Random(8)
    for _ in alternating(runs, [take_point, back_up]):
        disks.rewrite([vm, twin], starts, generator)
    prove_point(vm)
    prove_backup(twin, chain)
    return {
        "stopped_full_over_nbdcopy": samples.ratio("stopped_full", "stopped_nbdcopy"),
        "stopped_full_over_virtnbdbackup_copy": samples.ratio("stopped_full", "stopped_virtnbdbackup_copy"),
        "stopped_incremental_over_virtnbdbackup": samples.ratio("stopped_incremental", "stopped_virtnbdbackup_inc"),
        "stopped_incremental_read_over_dirty": max(read),
        "stopped_incremental_stored_over_dirty": max(stored),
        "stopped_full_peak_mib": samples.peak_mib("stopped_full"),
        **samples.figures(),
    }
