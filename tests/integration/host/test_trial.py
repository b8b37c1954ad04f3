"""What swtpm's trial of a TPM state finds, with states that swtpm itself has made."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmkeep.host.vm import trial
from vmkeep.host.vm.trial import Trial, try_tpm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a place for swtpm")

_FILE = "tpm2/tpm2-00.permall"
_KEY = b"what libvirt's secret holds"


def made(directory: Path, *words: str) -> bytes:
    directory.mkdir()
    command = ["swtpm_setup", "--tpmstate", str(directory), "--overwrite", *words]
    subprocess.run(command, check=True, capture_output=True)
    (permall,) = directory.glob("*.permall")
    return permall.read_bytes()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return made(tmp_path_factory.mktemp("swtpm") / "plain", "--tpm2")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    top = tmp_path_factory.mktemp("swtpm")
    (top / "key").write_bytes(_KEY)
    return made(top / "encrypted", "--tpm2", "--pwdfile", str(top / "key"), "--cipher", "aes-256-cbc")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(120)]
    yield
    for descriptor in opened:
        os.close(descriptor)


@pytest.mark.usefixtures("many_descriptors")
def test_state_that_swtpm_made_loads(plain: bytes, encrypted: bytes) -> None:
    assert try_tpm(plain, _FILE) == Trial(True)
    assert try_tpm(encrypted, _FILE, _KEY) == Trial(True)


def test_other_secret_none_and_one_too_many_are_found(plain: bytes, encrypted: bytes) -> None:
    for content, key in ((encrypted, b"another"), (encrypted, None), (plain, _KEY)):
        assert try_tpm(content, _FILE, key).loads is False


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_state_that_is_cut_zeroed_at_its_end_or_longer_is_found(plain: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(plain) - 1))
    kept = plain[:-cut]
    for content in (kept, kept + bytes(cut), plain + bytes(cut)):
        assert try_tpm(content, _FILE).loads is False or content == plain, (cut, len(content))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_flipped_byte_of_an_encrypted_state_is_found_beyond_the_header(encrypted: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(24, len(encrypted) - 1))
    flipped = bytearray(encrypted)
    flipped[place] ^= data.draw(st.integers(1, 255))
    assert try_tpm(bytes(flipped), _FILE, _KEY).loads is False


def test_state_of_another_kind_and_no_state_are_found(tmp_path: Path) -> None:
    assert try_tpm(made(tmp_path / "older"), _FILE).loads is False
    assert try_tpm(b"\xff" * 6000, _FILE).loads is False


def test_what_cannot_be_tried_is_no_verdict(plain: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert try_tpm(plain, "tpm1.2/tpm-00.permall").loads is None
    assert try_tpm(plain + bytes(1 << 20), _FILE).loads is None
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert try_tpm(plain, _FILE).loads is None
        (tmp_path / "swtpm").symlink_to("/usr/bin/swtpm")
        assert try_tpm(plain, _FILE).loads is None, "without setpriv there is no place for it"
        assert not Path("/state").exists()


def test_swtpm_that_hangs_is_ended(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_SECONDS", 0.3)
    monkeypatch.setattr(trial, "_SWTPM", "sh")
    monkeypatch.setattr(trial, "_WORDS", ("-c", "sleep 61"))
    begun = time.monotonic()
    assert try_tpm(plain, _FILE).loads is None
    assert time.monotonic() - begun < 5
    listed = subprocess.run(["ps", "-eo", "args"], check=True, capture_output=True, text=True).stdout
    assert "sleep 61" not in listed
