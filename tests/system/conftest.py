"""What every test of the main job works with: the command on the test's host."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.bed import Zygote
from tests.rig import Host
from tests.rig.cli import Vmkeep
from tests.system.history import Forked


@pytest.fixture
def vmkeep(host: Host) -> Vmkeep:
    """The command line on ``host``, with an installation that is new to this test."""
    return Vmkeep(host)


@pytest.fixture(scope="module")
def zygote(session_host: Host) -> Iterator[Zygote]:
    process = Zygote(session_host, session_host.dir / "home")
    yield process
    process.close()


@pytest.fixture
def forked(host: Host, zygote: Zygote) -> Forked:
    """The same with a memory of its points, where each command is forked: for tests of many commands."""
    return Forked(host, zygote)
