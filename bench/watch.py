"""What `vmkeep watch` costs while nothing happens, and how soon it keeps what changed."""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path

from bench.measuring import Figures
from tests.rig import Disk, Host, KiB, MiB
from tests.rig.cli import Vmkeep

VMS = 200
IDLE_SECONDS = 60
CHANGES = 10


def measure(host: Host, runs: int) -> Figures:
    """Return memory and processor time of an idle minute with 200 defined VMs, and the seconds from a change on."""
    del runs
    vms = [host.define(f"vm{number}", disks=[Disk("vda", size_bytes=64 * KiB)]) for number in range(VMS)]
    vms[0].start(paused=True)
    vms[0].destroy()
    vmkeep = Vmkeep(host)
    with vmkeep.start("watch") as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["new"]
            pid = _child(process.pid)
            time.sleep(5)
            libvirtd = int(host.run(["pidof", "libvirtd"], check=True).stdout)
            before, theirs = _processor(Path(f"/proc/{pid}")), _of_libvirtd(host, libvirtd)
            time.sleep(IDLE_SECONDS)
            idle = _processor(Path(f"/proc/{pid}")) - before
            libvirt = _of_libvirtd(host, libvirtd) - theirs
            status = Path(f"/proc/{pid}/status").read_text("ascii")
            seconds = []
            for _ in range(CHANGES):
                vms[0].change_tpm()
                begun = time.monotonic()
                assert json.loads(process.stdout.readline())["new"]
                seconds.append(time.monotonic() - begun)
        finally:
            process.kill()
    host.clear()
    return {
        "watch_idle_processor_share": idle / IDLE_SECONDS,
        "watch_idle_libvirtd_processor_share": libvirt / IDLE_SECONDS,
        "watch_memory_mib": int(status.partition("VmRSS:")[2].split()[0]) * KiB / MiB,
        "change_to_version_seconds": statistics.median(seconds),
        "change_to_version_seconds_max": max(seconds),
    }


def _child(pid: int) -> int:
    """Return the process below ``pid`` that is vmkeep itself: the command that enters the host waits for it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    return _child(int(children[0])) if children else pid


def _processor(process: Path) -> float:
    fields = (process / "stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _of_libvirtd(host: Host, pid: int) -> float:
    fields = host.run(["cat", f"/proc/{pid}/stat"], check=True).stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
