"""A TPM state is given another key by the real swtpm, and is the same TPM; what does not open is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.integration.host.test_trial import made
from tests.rig.tpm import SoftwareTpm
from vmkeep.custody.encryption import is_encrypted
from vmkeep.errors import IntegrityError, StateUnsupported
from vmkeep.host.vm import reencryption
from vmkeep.host.vm.reencryption import reencrypt_tpm
from vmkeep.host.vm.trial import try_tpm

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a place for swtpm")

_FILE = "tpm2/tpm2-00.permall"
_OLD, _NEW = b"what libvirt's secret holds", b"\x00 and \xff, " + bytes(range(20))
_STORED = b"seals the guest's disks"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("swtpm") / "plain"
    made(directory, "--tpm2")
    with SoftwareTpm(directory) as tpm:
        tpm.store(_STORED)
    return (directory / "tpm2-00.permall").read_bytes()


def stored_in(state: bytes, key: bytes | None, directory: Path) -> bytes:
    directory.mkdir()
    (directory / "tpm2-00.permall").write_bytes(state)
    with SoftwareTpm(directory, secret=key) as tpm:
        return tpm.load(len(_STORED))


def test_same_tpm_opens_with_the_new_key_and_no_other(plain: bytes, tmp_path: Path) -> None:
    old = reencrypt_tpm(plain, None, _OLD)
    new = reencrypt_tpm(old, _OLD, _NEW)
    assert [is_encrypted(each) for each in (plain, old, new)] == [False, True, True]
    for key in (_OLD, None, _NEW[:10], b""):
        assert try_tpm(new, _FILE, key).loads is not True, key
    again = reencrypt_tpm(new, _NEW, None)
    assert not is_encrypted(again)
    for number, (state, key) in enumerate(((old, _OLD), (new, _NEW), (again, None))):
        assert stored_in(state, key, tmp_path / str(number)) == _STORED


def test_what_does_not_open_is_refused(plain: bytes) -> None:
    old = reencrypt_tpm(plain, None, _OLD)
    for state, key in ((old, _NEW), (old, None), (plain, _OLD), (old[:-1], _OLD), (b"x" * 600, None), (b"", None)):
        with pytest.raises(IntegrityError) as caught:
            reencrypt_tpm(state, key, _NEW)
        assert caught.value.hint
    with pytest.raises(IntegrityError, match="which no TPM's has"):
        reencrypt_tpm(bytes(97 << 10), None, _NEW)


def test_another_tpm_in_place_of_the_same_is_found(
    plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = made(tmp_path / "other", "--tpm2")
    put_in, state = reencryption._put_in, reencryption._with_swtpm(other, None, reencryption._take_out)[0]
    monkeypatch.setattr(reencryption, "_put_in", lambda swtpm, _state: put_in(swtpm, state))
    with pytest.raises(IntegrityError, match="holds something else"):
        reencrypt_tpm(plain, None, _NEW)


def test_host_without_swtpm_is_told(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmkeep.host.vm.reencryption.shutil.which", lambda _name: None)
    with pytest.raises(StateUnsupported, match="not installed"):
        reencrypt_tpm(plain, None, _NEW)
