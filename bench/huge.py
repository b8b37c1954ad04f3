"""A disk of 2 TiB that is nearly empty: what its size alone costs, in seconds and memory."""

from __future__ import annotations

import random

from bench import disks, product
from bench.measuring import Figures, Samples
from tests.rig import Disk, GiB, Host, MiB

SIZE_BYTES = 2048 * GiB
_PIECES = 100


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of a huge sparse disk; docs/performance.md says what each means."""
    vm = host.define("huge", disks=[Disk("vda", size_bytes=SIZE_BYTES)], firmware="uefi", tpm=True)
    disks.start_quiet(vm)
    samples = Samples()
    stored: list[int] = []
    generator = random.Random(7)
    for _ in range(runs):
        samples.add("huge_full", product.first_point(host, vm))
        for _ in range(_PIECES):
            start = generator.randrange(SIZE_BYTES // MiB) * MiB
            vm.write_random("vda", start=start, length=disks.DIRTY_PIECE_BYTES, seed=generator.getrandbits(32))
        run = product.backup(host, vm)
        samples.add("huge_incremental", run)
        stored.append(product.disk_of(run)["bytes_stored"])
    return {
        "huge_incremental_stored_over_dirty": max(stored) / (_PIECES * disks.DIRTY_PIECE_BYTES),
        "huge_full_peak_mib": samples.peak_mib("huge_full"),
        "huge_incremental_peak_mib": samples.peak_mib("huge_incremental"),
        **samples.figures(),
    }
