"""Which places a walk of kills takes of a run."""

from __future__ import annotations

import pytest

from tests.crash import walk

_DONE = [*(f"rename {letter}" for letter in "abcdef"), *["sync home.sqlite-wal"] * 40]


@pytest.fixture(autouse=True)
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "EVERY", False)


def test_every_kind_has_its_day_where_there_are_more_than_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    met = set()
    for day in range(60):
        monkeypatch.setattr(walk, "DAY", day)
        met |= {_DONE[(death.effect or 0) - 1] for death in walk.deaths(_DONE, 2, daily=True)}
    assert met == set(_DONE)


def test_what_is_rare_is_always_taken_where_all_kinds_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(10):
        monkeypatch.setattr(walk, "DAY", day)
        met = [_DONE[(death.effect or 0) - 1] for death in walk.deaths(_DONE, 9, daily=True)]
        assert set(met) == set(_DONE)
        assert len(met) == 9
