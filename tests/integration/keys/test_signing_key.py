"""The key with which an installation signs its points, as a file, and the machine that it is used on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmkeep.errors import InvalidRequest, KeyMissing, TargetExists
from vmkeep.keys.signing import SigningKey, is_same_machine, put_aside, this_machine

ZEROS = "0" * 16


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.draw(machine="a" * 32, host="alpha").save(tmp_path / "host.key")


def test_key_is_stored_for_its_owner_only_and_found_again(key: SigningKey, tmp_path: Path) -> None:
    assert SigningKey.load(tmp_path / "host.key") == key
    assert (tmp_path / "host.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["host.key"]


def test_no_key_is_ever_written_over(key: SigningKey, tmp_path: Path) -> None:
    with pytest.raises(TargetExists):
        SigningKey.draw(machine="a" * 32, host="alpha").save(tmp_path / "host.key")
    assert SigningKey.load(tmp_path / "host.key") == key
    for ending in ("damaged", "damaged-1"):
        assert put_aside(tmp_path / "host.key", "damaged").name == f"host.key.{ending}"
        (tmp_path / "host.key").write_text(ending)
    assert SigningKey.load(tmp_path / "host.key.damaged").seed == key.seed


def test_key_that_moved_to_another_machine_is_the_same_key(key: SigningKey) -> None:
    moved = key.used_on("b" * 32, "beta", "/home")
    assert key.path is not None
    assert SigningKey.load(key.path) == moved
    assert (moved.machine, moved.host, moved.home) == ("b" * 32, "beta", "/home")
    assert (moved.fingerprint, moved.installation) == (key.fingerprint, key.installation)


def test_key_of_an_older_release_says_nothing_of_its_home(key: SigningKey) -> None:
    assert key.path is not None
    value = json.loads(key.path.read_text())
    del value["home"]
    key.path.write_text(json.dumps(value))
    assert SigningKey.load(key.path) == key


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"version": 2},
        {"secret": "00" * 32},
        {"secret": "00"},
        {"secret": 7},
        {"public": "00" * 32},
        {"installation": "x"},
        {"machine": None},
    ],
)
def test_damaged_key_is_told_without_what_it_holds(key: SigningKey, change: dict[str, object]) -> None:
    assert key.path is not None
    key.path.write_text(json.dumps({**json.loads(key.path.read_text()), **change}))
    with pytest.raises(InvalidRequest) as caught:
        SigningKey.load(key.path)
    assert caught.value.path == str(key.path)
    assert caught.value.__cause__ is None
    for text in ("", "{", "[]", "null", "\0"):
        key.path.write_text(text)
        with pytest.raises(InvalidRequest):
            SigningKey.load(key.path)


def test_key_that_is_not_there_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        SigningKey.load(tmp_path / "host.key")


def test_machines_are_told_apart_by_what_both_know(tmp_path: Path) -> None:
    identity, hardware = tmp_path / "machine-id", tmp_path / "product_uuid"
    assert this_machine((identity, hardware)) == ZEROS * 2
    identity.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    only = this_machine((identity, hardware))
    assert (only[16:], only[:16] != ZEROS) == (ZEROS, True)
    hardware.write_text("4C4C4544-0033-4A10-8056-B4C04F4A4E32\n")
    both = this_machine((identity, hardware))
    assert (both[:16], both[16:] != ZEROS) == (only[:16], True)
    assert "3d1219c7" not in both
    hardware.write_text("4c4c4544-0033-4a10-8056-b4c04f4a4e32\n")
    assert this_machine((identity, hardware)) == both  # libvirt and the kernel differ in how they write it
    hardware.write_text("another\n")
    copied = this_machine((identity, hardware))  # the disk of a machine, started on other hardware
    assert not is_same_machine(both, copied)
    assert is_same_machine(both, only)  # what cannot be read says nothing: a user who is not root
    assert is_same_machine(ZEROS * 2, both)
    assert is_same_machine("", both)
    identity.write_text("another\n")
    assert not is_same_machine(only, this_machine((identity, tmp_path / "absent")))
