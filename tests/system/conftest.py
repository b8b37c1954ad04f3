"""What every test of the main job works with: the command on the test's host."""

from __future__ import annotations

import pytest

from tests.rig import Host
from tests.rig.cli import Vmkeep


@pytest.fixture
def vmkeep(host: Host) -> Vmkeep:
    """The command line on ``host``, with an installation that is new to this test."""
    return Vmkeep(host)
