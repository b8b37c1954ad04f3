"""A bundle of state: what was sealed comes out, with its key and no other, and nothing is worked for in vain."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache

import pytest

from tests.integration.repository.samples import sample_key
from vmkeep.errors import InvalidRequest, WrongKey
from vmkeep.keys import KeyFile, Passphrase, passphrase
from vmkeep.repository import PointSecret, StateVersion
from vmkeep.repository.statebundle import (
    BUNDLE_BYTES_LIMIT,
    BundledState,
    StateBundle,
    bundle_key,
    open_bundle,
    seal_bundle,
)

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
SECRET = PointSecret("vtpm", "5e1f2c6a-0000-4000-8000-000000000000", "tpm", "", False, b"open \xff sesame")


def bundled(content: bytes, kind: str = "tpm", generation: int = 3) -> BundledState:
    version = StateVersion(
        id="a" * 32,
        vm_uuid=VM,
        kind=kind,
        generation=generation,
        file="nvram.fd" if kind == "nvram" else "tpm2/tpm2-00.permall",
        owner="tss",
        group="tss",
        mode=0o600,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        created="2026-11-30T09:12:44.299940+00:00",
    )
    return BundledState(version, content)


BUNDLE = StateBundle(
    VM, "win11", "2026-11-30T10:00:00.000000+00:00", (bundled(b"tpm state"), bundled(b"variables", "nvram")), (SECRET,)
)


@cache
def sealed() -> bytes:
    return seal_bundle(BUNDLE, sample_key())


@cache
def sealed_to_words() -> bytes:
    return seal_bundle(BUNDLE, Passphrase("correct horse"))


def checked(body: bytes) -> bytes:
    """Return bytes with a right checksum, for which nobody needs a key."""
    return body + hashlib.sha256(body).digest()


def test_what_was_sealed_comes_out_and_nothing_of_it_is_in_plain() -> None:
    keys = ((sample_key(), sample_key().key_id, sealed()), (Passphrase("correct horse"), None, sealed_to_words()))
    for key, named, data in keys:
        assert bundle_key(data, "FILE") == named
        assert open_bundle(data, key, "FILE") == BUNDLE
        assert not any(word in data for word in (b"tpm state", b"variables", b"sesame", b"win11", VM.encode()))
        assert len(data) % 1024 == (116 + 4 + 16 + 32) % 1024  # whatever the secret's length is


def test_passphrase_that_is_wrong_is_told_as_such() -> None:
    data = sealed_to_words()
    with pytest.raises(WrongKey, match="the passphrase does not open FILE"):
        open_bundle(data, Passphrase("battery staple"), "FILE")
    with pytest.raises(WrongKey, match=r"key .* does not open FILE"):
        open_bundle(sealed(), KeyFile.draw(), "FILE")
    with pytest.raises(InvalidRequest, match="cannot be empty"):
        seal_bundle(BUNDLE, Passphrase(""))
    # Typed on another keyboard it may arrive composed differently.
    assert Passphrase("\u00e9").unwrap(Passphrase("e\u0301").wrap(b"secret", b"for"), b"for") == b"secret"


@pytest.mark.parametrize("place", [0, 15, 16, 17, 20, 40, 115, 116, 300, -1])
def test_each_damaged_byte_is_found_without_a_key(place: int) -> None:
    data = bytearray(sealed())
    data[place] ^= 1
    with pytest.raises(InvalidRequest, match="FILE"):
        bundle_key(bytes(data), "FILE")


@pytest.mark.parametrize("length", [0, 16, 100, 167, 1000])
def test_file_that_was_cut_off_is_told_as_such(length: int) -> None:
    with pytest.raises(InvalidRequest):
        bundle_key(sealed()[:length], "FILE")


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(bytes([1, 22, 16, 4]), id="8 GiB"),
        pytest.param(bytes([1, 18, 8, 1]), id="twice the memory"),
        pytest.param(bytes([1, 14, 1, 1]), id="easier to guess"),
        pytest.param(bytes([3, 0, 0, 0]), id="another kind of key"),
        pytest.param(bytes([2, 17, 8, 1]), id="a key file with a passphrase's work"),
    ],
)
def test_work_that_was_never_asked_for_is_refused_before_it_is_done(
    asked: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = sealed_to_words()
    forged = checked(data[:16] + asked + data[20:-32])

    def derive(*_: object, **__: object) -> None:
        pytest.fail("work was done for a file that nobody can have written")

    monkeypatch.setattr(passphrase, "Scrypt", derive)
    with pytest.raises(InvalidRequest, match="by a newer vmkeep, or by nobody"):
        open_bundle(forged, Passphrase("correct horse"), "FILE")


def test_file_that_is_too_long_is_refused_by_its_length() -> None:
    with pytest.raises(InvalidRequest, match="bytes, and a bundle has"):
        bundle_key(sealed()[:200] + bytes(BUNDLE_BYTES_LIMIT), "FILE")


def test_content_of_another_bundle_does_not_open() -> None:
    other = seal_bundle(replace(BUNDLE, vm_name="web"), sample_key())
    with pytest.raises(InvalidRequest, match="put together from two"):
        open_bundle(checked(sealed()[:116] + other[116:-32]), sample_key(), "FILE")


@pytest.mark.parametrize(
    ("forged", "told"),
    [
        (replace(BUNDLE, states=()), "another number of states"),
        (replace(BUNDLE, states=(bundled(b"x1"),) * 17), "another number of states"),
        (replace(BUNDLE, vm_uuid="11111111-2222-3333-4444-555555555555"), "a state of another VM"),
        (replace(BUNDLE, vm_uuid="../../etc"), "vm_uuid"),
        (replace(BUNDLE, vm_name="\x1b[2J"), "vm_name"),
        (replace(BUNDLE, states=(bundled(bytes(600)),)), "a blank tpm state"),
        (replace(BUNDLE, states=(BundledState(bundled(b"good").version, b"evil"),)), "another state than it says"),
        (replace(BUNDLE, states=(BundledState(bundled(b"good").version, b"good and more"),)), "more than it says"),
        (replace(BUNDLE, states=(BundledState(bundled(b"good").version, b"goo"),)), "another state than it says"),
        (
            replace(BUNDLE, states=(BundledState(replace(bundled(b"good").version, file="../x"), b"good"),)),
            "wrong file",
        ),
        (replace(BUNDLE, secrets=(SECRET, SECRET)), "a secret twice"),
        (replace(BUNDLE, secrets=(replace(SECRET, usage="volume"),)), "not for a TPM"),
        (replace(BUNDLE, secrets=(replace(SECRET, uuid="x"),)), "secrets[0].uuid"),
    ],
)
def test_content_that_no_vmkeep_writes_is_refused_with_what_is_wrong(forged: StateBundle, told: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        open_bundle(seal_bundle(forged, sample_key()), sample_key(), "FILE")
    assert told in raised.value.message
    assert raised.value.message.startswith("FILE ")
    assert "sesame" not in raised.value.message
