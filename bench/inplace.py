"""Going back in place: what it writes and takes by how much of the disk differs, against copying the disk whole."""

from __future__ import annotations

import json
import random

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating
from bench.proof import prove_point
from tests.rig import Host

# Pieces of 64 KiB that differ: none, a tenth of a percent, one percent, a tenth of the disk.
_PIECES = disks.SIZE_BYTES // disks.DIRTY_PIECE_BYTES
_CASES = {"nothing": 0, "0.1%": _PIECES // 1000, "1%": _PIECES // 100, "10%": _PIECES // 10}


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of restores in place; docs/performance.md says what each means."""
    vm = disks.define_filled(host, "bench")
    disks.start_quiet(vm)
    vm.destroy()
    point = product.point_of(product.first_point(host, vm))["id"]
    samples = Samples()
    written: dict[str, float] = {}
    generator = random.Random(7)

    def go_back(case: str, pieces: int) -> None:
        starts = [piece * disks.DIRTY_PIECE_BYTES for piece in generator.sample(range(_PIECES), pieces)]
        for at in range(0, len(starts), 500):
            disks.rewrite([vm], starts[at : at + 500], generator)
        run = product.command(host, "restore", point, "--in-place", "--yes")  # a safety point included
        samples.add(f"in_place_{case}", run)
        written[case] = json.loads(run.output)["restored"]["bytes_written"] / max(1, pieces * disks.DIRTY_PIECE_BYTES)

    def convert() -> None:
        samples.add("convert", peers.convert(vm.disk_path("vda"), host.dir / "work/converted.qcow2"))

    for _ in alternating(runs, [convert]):
        for case, pieces in _CASES.items():
            go_back(case, pieces)
    prove_point(vm, point)
    return {
        **{f"in_place_{case}_over_convert": samples.ratio(f"in_place_{case}", "convert") for case in _CASES},
        **{f"in_place_{case}_written_over_differing": written[case] for case in _CASES if case != "nothing"},
        "in_place_nothing_written_bytes": written["nothing"],
        **samples.figures(),
    }
