"""A TPM's state as swtpm wants it: in libvirt's directory of the VM, and in one that a definition names."""

from __future__ import annotations

import grp
import os
import pwd
from pathlib import Path

import pytest

from vmkeep.statefiles.installation import stage_tpm
from vmkeep.statefiles.location import swtpm_owner

_US = (pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(os.getgid()).gr_name)


def _modes(directory: Path) -> dict[str, int]:
    paths = [directory, *directory.rglob("*")]
    return {str(path.relative_to(directory)): path.stat().st_mode & 0o777 for path in paths}


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tpm2/tpm2-00.permall", {".": 0o711, "tpm2": 0o700, "tpm2/tpm2-00.permall": 0o600}),
        ("tpm2-00.permall", {".": 0o700, "tpm2-00.permall": 0o600}),
    ],
)
def test_nobody_but_swtpm_reads_the_state(tmp_path: Path, file: str, expected: dict[str, int]) -> None:
    staged = tmp_path / "vm"
    stage_tpm(staged, file, b"state", owner=_US)
    assert _modes(staged) == expected
    assert (staged / file).read_bytes() == b"state"


def test_state_is_given_to_no_user_that_only_a_point_names() -> None:
    """Every host has this user, and swtpm is never it."""
    assert swtpm_owner("nobody") == swtpm_owner(None)
    assert swtpm_owner(_US[0])[0] in (_US[0], swtpm_owner(None)[0])
