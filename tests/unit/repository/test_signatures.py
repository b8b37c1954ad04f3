"""Signatures of points as values: what they cover, and what is not accepted. No store, no files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.integration.repository.samples import VM
from tests.unit.repository.signed import REPOSITORY, ROGUE, SIGNER, STATE, signed_point
from vmkeep.errors import ObjectDamaged
from vmkeep.repository import PointRecord
from vmkeep.repository.layout import canonical
from vmkeep.repository.signatures import (
    prove_point,
    require_signed_envelope,
    require_signed_state,
    sign_point,
    signature_of,
)

POINT = "ab" * 16


def prove(value: dict[str, Any], *, repository: str = REPOSITORY, point: str = POINT) -> object:
    return prove_point(value, repository, point, f"points/{point}")


def test_signature_is_proved_and_says_which_installation_made_the_point() -> None:
    signature = prove_point(signed_point(POINT), REPOSITORY, POINT, "here")
    assert signature is not None
    assert (signature.installation, signature.fingerprint) == (SIGNER.installation, SIGNER.fingerprint)
    record = PointRecord.from_json(signed_point(POINT), "here")
    assert signature_of(record) == signature
    # Read and written again, as a later release may, it is still proved.
    assert prove(record.as_json()) == signature


def test_point_of_an_older_release_has_no_signature() -> None:
    value = signed_point(POINT)
    del value["signature"]
    assert prove(value) is None
    assert signature_of(PointRecord.from_json(value, "here")) is None


@pytest.mark.parametrize(
    "wrong", [{"repository": "cd" * 16}, {"point": "cd" * 16}], ids=["of another repository", "under another id"]
)
def test_signature_is_bound_to_its_place(wrong: dict[str, str]) -> None:
    with pytest.raises(ObjectDamaged, match="signature of point"):
        prove(signed_point(POINT), **wrong)


def test_key_of_another_host_does_not_fit() -> None:
    value = signed_point(POINT)
    value["signature"]["key"] = ROGUE.public_key.hex()
    with pytest.raises(ObjectDamaged, match="is wrong"):
        prove(value)


def _set(*path: str | int, to: object) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        place: Any = value
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("signature", to="text"),
        _set("signature", to={}),
        _set("signature", "value", to="00"),
        _set("signature", "value", to="ZZ" * 64),
        _set("signature", "value", to="AB" * 64),
        _set("signature", "key", to="00" * 31),
        _set("signature", "installation", to=None),
        _set("signature", "states", to=[]),
        _set("signature", "states", to={"x": "y"}),
        _set("signature", "envelope", to=7),
        _set("signature", "machine", to="somewhere"),
    ],
)
def test_signature_that_cannot_be_parsed_is_damage_and_no_fault(change: Callable[[dict[str, Any]], None]) -> None:
    value = signed_point(POINT)
    change(value)
    with pytest.raises(ObjectDamaged) as caught:
        prove(value)
    assert POINT in caught.value.message
    assert caught.value.path == f"points/{POINT}"


@pytest.mark.parametrize("left_out", ["states", "envelope"])
def test_signature_that_leaves_out_what_the_point_reaches_by_name_is_refused(left_out: str) -> None:
    value = signed_point(POINT)
    del value["signature"]
    states = () if left_out == "states" else (STATE,)
    value["secrets"] = [{"usage": "vtpm", "uuid": VM}]
    value["signature"] = sign_point(
        value, REPOSITORY, SIGNER, states=states, envelope=None if left_out == "envelope" else b"sealed"
    )
    with pytest.raises(ObjectDamaged, match="leaves out"):
        prove(value)


def test_state_version_with_another_owner_is_not_the_one_that_was_signed() -> None:
    record = PointRecord.from_json(signed_point(POINT), "here")
    require_signed_state(record, STATE)
    for name, to in (("owner", "root"), ("mode", 0o4755), ("file", "other"), ("generation", 9)):
        other = replace(STATE, **{name: to})  # type: ignore[arg-type] # mypy joins the types of the fields
        with pytest.raises(ObjectDamaged, match="was signed"):
            require_signed_state(record, other)


def test_envelope_with_other_bytes_is_not_the_one_that_was_signed() -> None:
    signature = signature_of(PointRecord.from_json(signed_point(POINT), "here"))
    require_signed_envelope(signature, b"sealed", "here", "point 1")
    with pytest.raises(ObjectDamaged, match="when point 1 was signed"):
        require_signed_envelope(signature, b"sealeD", "here", "point 1")


def test_what_a_later_version_adds_beside_the_signature_is_covered_too() -> None:
    value = signed_point(POINT, later={"earlier": ["x"]})
    assert prove(value) is not None
    value["later"]["earlier"].append("y")
    with pytest.raises(ObjectDamaged):
        prove(value)


def test_no_private_key_is_shown() -> None:
    assert SIGNER.seed.hex() not in repr(SIGNER)
    assert SIGNER.seed not in repr(SIGNER).encode()
    assert SIGNER.seed.hex() not in json.dumps(signed_point(POINT))
    assert canonical(signed_point(POINT))  # and it is JSON as the format has it
