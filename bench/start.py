"""What every command costs before and around its work: lists, points of which nothing changed, many small VMs at once.

All of it is the whole command, from outside. Processor time is that of the command and of all it started; where other
things run it says more than the seconds do. docs/performance.md says what each figure means.
"""

from __future__ import annotations

from bench import product
from bench.measuring import Figures, Run, Samples, alternating
from tests.rig import Disk, Host, MiB, Vm

MANY = 10


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of short commands."""
    one = [Disk("vda", size_bytes=64 * MiB)]
    running = host.define("running", disks=one, firmware="bios", tpm=False)
    running.start(paused=True)
    stopped = host.define("stopped", disks=one, firmware="bios", tpm=False)
    samples = Samples()

    def take(name: str, vm: Vm) -> None:
        run = product.backup(host, vm)
        assert product.disk_of(run)["mode"] == "incremental", run.output
        _add(samples, name, run)

    for vm in (running, stopped):
        product.backup(host, vm)
    sides = [
        lambda: _add(samples, "points", product.command(host, "points")),
        lambda: take("nothing_changed_running", running),
        lambda: take("nothing_changed_stopped", stopped),
    ]
    for _ in alternating(runs, sides):
        pass
    host.clear()
    return {**_of_many(host, runs, samples), **samples.figures()}


def _of_many(host: Host, runs: int, samples: Samples) -> Figures:
    """Measure `backup --all` of one small VM, and of ten."""
    _define(host, 0)
    product.command(host, "backup", "--all")
    for _ in range(runs):
        _add(samples, "all_of_one", product.command(host, "backup", "--all"))
    for number in range(1, MANY):
        _define(host, number)
    product.command(host, "backup", "--all")
    for _ in range(runs):
        _add(samples, f"all_of_{MANY}", product.command(host, "backup", "--all"))

    def of_each(of: str) -> float:
        return (samples.median(f"all_of_{MANY}{of}") - samples.median(f"all_of_one{of}")) / (MANY - 1)

    return {
        "all_seconds_of_each_beyond_the_first": of_each(""),
        "all_processor_seconds_of_each_beyond_the_first": of_each("_processor"),
    }


def _define(host: Host, number: int) -> None:
    host.define(f"small{number}", disks=[Disk("vda", size_bytes=4 * MiB)], firmware="bios", tpm=False)


def _add(samples: Samples, name: str, run: Run) -> None:
    samples.add(name, run)
    samples.add(f"{name}_processor", run.processor_seconds)
