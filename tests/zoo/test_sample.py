"""A sample of the zoo's rows, others each day, played whole; `make zoo` plays all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig import Host
from tests.turns import sampled
from tests.zoo.keeper import Keeper
from tests.zoo.row import KEPT, Image, Promise, Refused, Row
from tests.zoo.rows import ROWS
from tests.zoo.stage import Held, Stage

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def keeper(booting_session_host: Host) -> Iterator[Keeper]:
    booting_session_host.clear()
    keeper = Keeper(booting_session_host)
    yield keeper
    keeper.close()


@pytest.mark.parametrize("name", sampled([row.name for row in ROWS.values() if row.sample], 2))
def test_a_configuration_is_kept_as_promised(keeper: Keeper, name: str) -> None:
    assert keeper.play(ROWS[name]).violations == ()


def test_a_promise_that_is_not_kept_is_told(keeper: Keeper) -> None:
    wrong = Row("wrong", "", promise=Promise(running=Refused("vm-busy", ""), off=KEPT))
    (first, *_) = keeper.play(wrong).violations
    assert "points_of_the_running_vm" in first
    assert "it should be refused with vm-busy" in first


def test_a_byte_that_differs_is_told(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Stage.held

    def flipped(stage: Stage) -> Held:
        held = honest(stage)
        held.disks["vda"] = bytes([held.disks["vda"][0] ^ 1]) + held.disks["vda"][1:]
        return held

    monkeypatch.setattr(Stage, "held", flipped)
    told = " ".join(keeper.play(Row("flipped", "", (Image(size_bytes=1 << 20),))).violations)
    for phase in ("restored_as_files", "restored_as_a_vm", "restored_in_place", "reverted_to_the_snapshot"):
        assert f"{phase}: vda" in told
