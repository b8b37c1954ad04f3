"""Why a state version has its number (format 1.8): said by points and pins, in pinned bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.repository.samples import VM, opener, record_of, sample_key
from tests.integration.repository.test_pins import CREATED, make_pinned
from tests.integration.repository.test_repository_golden import files
from vmkeep.custody.states import Because
from vmkeep.errors import ObjectDamaged
from vmkeep.flows.installation import catalog_states
from vmkeep.repository import PinRecord, PointRecord, Repository
from vmkeep.repository.record import state_ref

GOLDEN = Path(__file__).parent / "golden" / "reasons"


@dataclass(frozen=True, slots=True)
class Reasoned:
    """A repository with a pin of a version that was put in place on purpose, and a point of one that had changed."""

    location: Path
    pin: PinRecord
    point: PointRecord


def make_reasoned(directory: Path) -> Reasoned:
    """Built the same way each time."""
    made = make_pinned(directory, seed=31)
    repository = made.repository
    tpm, nvram = made.snapshot.states
    placed = replace(tpm, because=str(Because.PLACED))
    pin = repository.pins.put(PinRecord("", VM, "win11", "alpha", CREATED, "kept", (placed,)))
    changed = (placed, replace(nvram, because=str(Because.CHANGED)))
    with repository.begin(purpose="point", host="alpha", cache=directory / "cache", workers=1) as writer:
        point = writer.commit(record_of((), states=changed))
    return Reasoned(made.location, pin, point)


def test_golden_repository_with_reasons_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    written, golden = files(make_reasoned(tmp_path).location), files(GOLDEN)
    assert sorted(written) == sorted(golden)
    for name, content in golden.items():
        assert written[name] == content, name


def test_golden_repository_with_reasons_is_read_and_proved(tmp_path: Path) -> None:
    truth = make_reasoned(tmp_path)
    repository = Repository.open(str(GOLDEN), opener(sample_key()))
    pin, point = repository.pins.get(truth.pin.id), repository.point(truth.point.id)
    assert pin.signature is not None
    assert [state.because for state in catalog_states(pin)] == ["placed"]
    assert [state.because for state in catalog_states(point)] == ["placed", "changed"]
    assert repository.verify_all().sound


def test_who_says_nothing_writes_no_field_and_another_word_is_kept(tmp_path: Path) -> None:
    (state,) = make_pinned(tmp_path).captured.states
    assert "because" not in state.as_json()
    assert state_ref({**state.as_json(), "because": "of-a-later-minor"}).because == "of-a-later-minor"
    assert state_ref(state.as_json() | {"because": "placed"}) == state  # the version itself does not say it
    for wrong in (None, 1, "two words", "a" * 33):
        with pytest.raises(ObjectDamaged):
            PinRecord.from_json(_pin_with(state.as_json() | {"because": wrong}), "pins/x")


def _pin_with(state: dict[str, object]) -> dict[str, object]:
    record = PinRecord("1" * 32, VM, "win11", "alpha", CREATED, "kept", ())
    return {**record.as_json(), "states": [state]}
