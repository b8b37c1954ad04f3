"""One host for all crash tests, and one VM whose points they kill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.bed import Bed
from tests.rig import Disk, Host, MiB


@pytest.fixture(scope="package")
def crash_host() -> Iterator[Host]:
    with Host("crash") as host:
        yield host


@pytest.fixture(scope="module")
def bed(crash_host: Host) -> Iterator[Bed]:
    """A running, settled VM with two disks and two points; one for a module, because each start costs seconds."""
    vm = crash_host.define("guest", disks=[Disk("vda", 6 * MiB), Disk("vdb", 2 * MiB + 512)])
    vm.start()
    vm.settle()
    made = Bed.make(crash_host, vm)
    yield made
    made.zygote.close()
    crash_host.clear()
