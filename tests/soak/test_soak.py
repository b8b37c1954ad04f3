"""A short soak, and the proof that a soak finds what it is there for."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import Host
from tests.rig.quickclock import quick_qemu_img
from tests.soak.__main__ import main
from tests.soak.ledger import Ledger
from tests.soak.life import Life, Plan, find_harm
from tests.soak.model import Violation
from tests.soak.operations import OPERATIONS
from tests.soak.sabotage import SABOTAGES
from tests.soak.world import Hosts, World, new_world

pytestmark = pytest.mark.system

_SEED = 12
_STEPS = 30

_FOUND = {
    "flipped-byte": "not done, and (object-damaged|damaged) is not to be expected",
    "lost-point": "points are gone",
    "paused-vm": "is paused .* in place of running",
    "wrong-chain": "the definition's chain is",
    "left-job": "has a backup job",
}


@pytest.fixture(scope="module")
def resting_host() -> Iterator[Host]:
    """One whose firmware halts at once: what is done to a VM on purpose is not done by its firmware."""
    with Host("resting", idle_firmware=True) as host:
        yield host


@pytest.fixture
def world(resting_host: Host) -> Iterator[World]:
    with new_world(Hosts({"alpha": resting_host}), Ledger(io.StringIO()), own_store=False) as world:
        yield world
    resting_host.clear()


@pytest.mark.timeout(600)
def test_short_soak_violates_nothing(host: Host, second_session_host: Host, tmp_path: Path) -> None:
    hosts = Hosts({"alpha": host, "beta": second_session_host})
    with (tmp_path / "soak.log").open("w") as log:
        ledger = Ledger(log)
        for number in range(1, 4):
            if ledger.total < _STEPS:
                Life(Plan(_SEED, calm=True), number, hosts, ledger).live(_STEPS - ledger.total)
    assert ledger.violations == [], (tmp_path / "soak.log").read_text()
    assert ledger.total == _STEPS


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("name", sorted(SABOTAGES))
def test_harm_done_on_purpose_is_found(world: World, name: str) -> None:
    chance = random.Random(3)
    guest = world.add_guest(chance)
    OPERATIONS["write-random"].run(world, guest, chance)
    OPERATIONS["backup"].run(world, guest, chance)
    if name == "wrong-chain":
        guest.stop()
    find_harm(world)  # nothing yet
    assert SABOTAGES[name].possible(world)
    SABOTAGES[name].run(world, chance)
    with pytest.raises(Violation, match=_FOUND[name]):
        find_harm(world)


def test_violation_is_told_with_how_to_live_it_again(
    resting_host: Host, second_session_host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--seed", "3", "--steps", "30", "--calm", "--sabotage", "lost-point", "--log", str(tmp_path / "log")]
    with quick_qemu_img():  # the guest of this seed has an encrypted disk
        assert main(words, Hosts({"alpha": resting_host, "beta": second_session_host})) == 1
    told = capsys.readouterr().out
    assert re.search(
        r"VIOLATION seed 3, life 1, step \d+: points are gone: .* \[make soak SEED=3 ARGS='--only-life 1", told
    )
    assert "points are gone" in (tmp_path / "log").read_text()
