"""A first, full point, against nbdcopy of the same export and against a full backup by virtnbdbackup."""

from __future__ import annotations

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating, seconds_of_sync
from bench.proof import prove_backup, prove_point
from tests.rig import Host, MiB


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of full points; docs/performance.md says what each means."""
    vm, twin = disks.define_filled(host, "bench"), disks.define_filled(host, "twin")
    disks.start_quiet(vm)
    disks.start_quiet(twin)
    copy, plain, packed = host.dir / "work/peer.raw", host.dir / "work/plain", host.dir / "work/packed"
    samples = Samples()
    stored = 0

    def take_points() -> None:
        nonlocal stored
        run = product.first_point(host, vm)
        samples.add("full_point", run)
        stored = product.disk_of(run)["bytes_stored"]
        samples.add("nothing_changed", product.backup(host, vm))

    def copy_only() -> None:
        samples.add("nbdcopy", peers.nbdcopy(vm, copy))
        samples.add("nbdcopy_flushed", peers.nbdcopy(vm, copy, "--flush"))

    def back_up() -> None:
        for name, directory, options in (("virtnbdbackup", plain, []), ("virtnbdbackup_lz4", packed, ["-z"])):
            run = peers.virtnbdbackup(twin, "full", directory, *options)
            samples.add(f"{name}_full", run)
            samples.add(f"{name}_full_durable", run.seconds + seconds_of_sync(directory))

    for _ in alternating(runs, [take_points, copy_only, back_up]):
        pass
    prove_point(vm)
    prove_backup(twin, plain)
    prove_backup(twin, packed)
    less_fixed = samples.median("full_point") - samples.median("nothing_changed")
    return {
        "full_point_less_fixed_over_nbdcopy": less_fixed / samples.median("nbdcopy"),
        "full_point_over_nbdcopy": samples.ratio("full_point", "nbdcopy"),
        "full_point_over_nbdcopy_flushed": samples.ratio("full_point", "nbdcopy_flushed"),
        "full_point_over_virtnbdbackup": samples.ratio("full_point", "virtnbdbackup_full"),
        "full_point_over_virtnbdbackup_durable": samples.ratio("full_point", "virtnbdbackup_full_durable"),
        "full_point_over_virtnbdbackup_lz4": samples.ratio("full_point", "virtnbdbackup_lz4_full"),
        "full_point_over_virtnbdbackup_lz4_durable": samples.ratio("full_point", "virtnbdbackup_lz4_full_durable"),
        "full_point_stored_mib": stored / MiB,
        "virtnbdbackup_full_stored_mib": (plain / "vda.full.data").stat().st_size / MiB,
        "virtnbdbackup_lz4_full_stored_mib": (packed / "vda.full.data").stat().st_size / MiB,
        "full_point_peak_mib": samples.peak_mib("full_point"),
        "virtnbdbackup_full_peak_mib": samples.peak_mib("virtnbdbackup_full"),
        **samples.figures(),
    }
