"""Points of a raw disk that has not changed: all is read, nothing is stored. Against tools that only read the same."""

from __future__ import annotations

from bench import disks, peers, product
from bench.measuring import Figures, Samples, alternating
from bench.proof import prove_point
from tests.rig import Host, Vm


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of scans, of the running and of the stopped VM; docs/performance.md says what each means."""
    vm = disks.define_filled(host, "bench", image_format="raw")
    disks.start_quiet(vm)
    figures = _measure(host, vm, runs, "running")
    vm.destroy()
    return {**figures, **_measure(host, vm, runs, "stopped")}


def _measure(host: Host, vm: Vm, runs: int, state: str) -> Figures:
    image = vm.disk_path("vda")
    product.first_point(host, vm)
    samples = Samples()
    read: list[int] = []
    stored: list[int] = []

    def take_point() -> None:
        run = product.backup(host, vm)
        disk = product.disk_of(run)
        assert disk["mode"] == "scan", disk
        samples.add(f"scan_{state}", run)
        read.append(disk["bytes_read"])
        stored.append(disk["bytes_stored"])

    def copy_to_nothing() -> None:
        copy = peers.nbdcopy if state == "running" else peers.nbdcopy_offline
        samples.add(f"nbdcopy_null_{state}", copy(vm, "null:"))

    def convert_to_nothing() -> None:
        samples.add(f"convert_null_{state}", peers.convert_to_nothing(image, "raw"))

    def read_whole() -> None:
        samples.add(f"python_read_{state}", peers.read_whole(image))

    for _ in alternating(runs, [take_point, copy_to_nothing, convert_to_nothing, read_whole]):
        pass
    prove_point(vm)
    return {
        f"scan_{state}_over_nbdcopy_null": samples.ratio(f"scan_{state}", f"nbdcopy_null_{state}"),
        f"scan_{state}_over_convert_null": samples.ratio(f"scan_{state}", f"convert_null_{state}"),
        f"scan_{state}_over_python_read": samples.ratio(f"scan_{state}", f"python_read_{state}"),
        f"scan_{state}_read_over_size": max(read) / disks.SIZE_BYTES,
        f"scan_{state}_stored_bytes": max(stored),
        f"scan_{state}_peak_mib": samples.peak_mib(f"scan_{state}"),
        **samples.figures(),
    }
