"""How many captures a catalogue accepts in a second: in a file of SQLite, and on PostgreSQL with the same disk."""

from __future__ import annotations

import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from bench.measuring import Figures, alternating
from tests.integration.catalog.examples import example_state, make_tables
from tests.rig import Host
from tests.rig.database import Cluster, postgres_programs
from vmkeep.catalog import Catalog, SqlCatalog
from vmkeep.errors import CatalogError

WRITERS = 8
SECONDS = 2.0
# Both sync each commit to it, so it is no file system in memory.
_DISK = Path("/var/tmp")  # noqa: S108 -- mkdtemp makes the names


def measure(host: Host, runs: int) -> Figures:
    """Return captures accepted per second: by one writer, by eight of a VM each, and by eight of one VM."""
    del host
    programs = postgres_programs()
    assert programs is not None, "PostgreSQL is not installed (make dev)"
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        cluster = Cluster(programs, durable_in=_DISK)
        stack.callback(cluster.remove)
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=_DISK)))
        url = stack.enter_context(cluster.database(make_tables))
        opened: dict[str, Catalog] = {
            "sqlite": stack.enter_context(SqlCatalog.open(directory / "catalog.sqlite")),
            "postgres": stack.enter_context(SqlCatalog.connect(url)),
        }

        def side(name: str, kind: str, writers: int, vms: int) -> Callable[[], None]:
            catalog = opened[name]
            return lambda: rates.setdefault(f"{name}_{kind}", []).append(_rate(catalog, writers, vms))

        shapes = (("one_writer", 1, 1), ("eight_vms", WRITERS, WRITERS), ("eight_writers_of_one_vm", WRITERS, 1))
        sides = [side(name, *shape) for shape in shapes for name in opened]
        for _ in alternating(runs, sides):
            pass
    return {f"{name}_per_second": statistics.median(each) for name, each in rates.items()}


def _rate(catalog: Catalog, writers: int, vms: int) -> float:
    """Return how many captures a second are accepted while all writers do nothing else."""
    uuids = [str(uuid.uuid4()) for _ in range(vms)]
    for vm in uuids:
        catalog.see_vm(vm, vm)
    end = time.monotonic() + SECONDS

    def capture(writer: int) -> int:
        accepted, vm = 0, uuids[writer % vms]
        while time.monotonic() < end:
            # Of one VM each writer takes numbers of its own, as no other one could: all that is asked is their order.
            generation = accepted + 1 if vms == writers else time.monotonic_ns()
            accepted += _accepted(catalog, vm, generation)
        return accepted

    with ThreadPoolExecutor(writers) as threads:
        return sum(threads.map(capture, range(writers))) / SECONDS


def _accepted(catalog: Catalog, vm: str, generation: int) -> bool:
    try:
        catalog.accept_states([example_state(uuid.uuid4().hex, generation, vm=vm)])
    except CatalogError:
        return False  # a later one was first
    return True
