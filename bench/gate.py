"""What a start of a VM waits for when the gate stands: the hook alone, and whole starts with and without it."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

from bench import product
from bench.measuring import Figures, Samples, alternating, timed
from tests.rig import Disk, Host, MiB, Vm

STARTS = 200
SUPERSEDED = 1_000
_HOOK = "/etc/libvirt/hooks/qemu.d/vmkeep"
# Inside the host, and one process for all: entering its namespaces takes longer than what is measured.
_ASK = """
import json, subprocess, sys, time
hook, definition, times = sys.argv[1], sys.stdin.buffer.read(), []
for _ in range(int(sys.argv[2])):
    for command in ([hook, "guest", "prepare", "begin", "-"], ["/bin/sh", "-c", "exit 0"]):
        begun = time.monotonic()
        subprocess.run(command, input=definition, check=True)
        times.append(time.monotonic() - begun)
print(json.dumps([times[::2], times[1::2]]))
"""


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of the gate, of a VM with a TPM and a thousand older versions."""
    vm = host.define("guest", disks=[Disk("vda", size_bytes=4 * MiB)])
    vm.start(paused=True)
    vm.destroy()
    product.backup(host, vm)
    product.command(host, "hook", "install")
    _have_many_versions(host.dir / "home" / "gate" / "vms" / f"{vm.uuid}.json")
    asked = host.run([sys.executable, "-c", _ASK, _HOOK, str(STARTS)], input=vm.domain.XMLDesc(), check=True)
    gate, shell = json.loads(asked.stdout)
    whole = _whole_starts(host, vm, runs)
    product.command(host, "hook", "remove")
    host.clear()
    return {
        "gate_p50_seconds": statistics.median(gate),
        "gate_p99_seconds": statistics.quantiles(gate, n=100)[98],
        "gate_over_an_empty_hook": statistics.median(gate) / statistics.median(shell),
        "start_with_gate_over_start_without": whole.ratio("start_with_gate", "start_without"),
        **whole.figures(),
    }


def _whole_starts(host: Host, vm: Vm, runs: int) -> Samples:
    samples = Samples()
    hook = host.path(_HOOK)

    def start(name: str, *, executable: bool) -> None:
        hook.chmod(0o755 if executable else 0o644)  # libvirt runs executable files alone
        samples.add(name, timed(lambda: vm.start(paused=True)))
        vm.destroy()

    sides = [
        lambda: start("start_with_gate", executable=True),
        lambda: start("start_without", executable=False),
    ]
    for _ in alternating(2 * runs, sides):
        pass
    return samples


def _have_many_versions(note: Path) -> None:
    known = json.loads(note.read_text("utf-8"))
    for of_kind in known["kinds"].values():
        of_kind["superseded"] = [f"{number:064x}" for number in range(SUPERSEDED)]
    note.write_text(json.dumps(known), encoding="utf-8")
