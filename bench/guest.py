"""What the guest's own writes lose while its point is copied: pieces of 1 MiB, one after the other, without a pause.

They take the way of a guest's writes, through the device's block backend; what is overwritten for the first time goes
to scratch before. The same loop without a point is the other side.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Self

from bench import disks, product
from bench.measuring import Figures, Samples, alternating
from tests.rig import Host, MiB, Vm

_QUIET_SECONDS = 2.0


def measure(host: Host, runs: int) -> Figures:
    """Return the figures of a guest that writes; docs/performance.md says what each means."""
    vm = disks.define_filled(host, "bench")
    disks.start_quiet(vm)
    samples = Samples()
    generator = random.Random(9)

    def while_copied() -> None:
        product.new_repository(host, vm)
        with _Writer(vm, generator) as writer:
            product.backup(host, vm)
        samples.add("write_during_point", writer.seconds_for_each())

    def alone() -> None:
        with _Writer(vm, generator) as writer:
            time.sleep(_QUIET_SECONDS)
        samples.add("write_alone", writer.seconds_for_each())

    for _ in alternating(runs, [while_copied, alone]):
        pass
    return {
        "write_throughput_during_over_alone": samples.ratio("write_alone", "write_during_point"),
        **samples.figures(),
    }


class _Writer:
    """A thread that writes random pieces for as long as the ``with`` block lasts."""

    def __init__(self, vm: Vm, generator: random.Random) -> None:
        self._vm = vm
        self._generator = generator
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._pieces = 0
        self._seconds = 0.0

    def _write(self) -> None:
        begun = time.monotonic()
        while not self._end.is_set():
            start = self._generator.randrange(disks.SIZE_BYTES // MiB) * MiB
            self._vm.write("vda", start=start, length=MiB, pattern=self._generator.randrange(1, 256))
            self._pieces += 1
        self._seconds = time.monotonic() - begun

    def seconds_for_each(self) -> float:
        return self._seconds / self._pieces

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._end.set()
        self._thread.join()
