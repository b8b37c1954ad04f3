"""What a limit slows down, and what it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmkeep.rates import Limits, limit_process, stop_waiting
from vmkeep.repository.store import ObjectStore, create_store
from vmkeep.threads import working_for

PIECE = bytes(100_000)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ObjectStore]:
    limit_process(Limits(bytes_a_second=400_000))
    yield create_store(str(tmp_path / "store"))
    limit_process(Limits())


def test_packs_and_what_is_read_of_them_share_one_rate(store: ObjectStore) -> None:
    began = time.monotonic()
    for number in range(2):
        store.put_pack(f"packs/{number}", [PIECE])
        store.ranges(f"packs/{number}", [(0, 50_000), (50_000, 50_000)])
    assert time.monotonic() - began >= 3 * 0.25 - 0.1  # the fourth goes when three could have passed


def test_small_objects_count_and_do_not_wait(store: ObjectStore) -> None:
    store.put("points/1", bytes(4_000_000))
    began = time.monotonic()
    store.put("intents/1", b"lease")
    assert store.get("intents/1") == b"lease"
    assert time.monotonic() - began < 5  # ten seconds would be its turn


def test_an_operation_that_is_cancelled_waits_no_more(store: ObjectStore) -> None:
    store.put("points/1", bytes(40_000_000))
    stop_waiting("cancelled")
    with working_for("cancelled"):
        store.put_pack("packs/1", [PIECE])
