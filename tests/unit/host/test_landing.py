"""Names that a point gives are single names of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.errors import IntegrityError
from vmkeep.host.restores.landing import below
from vmkeep.statefiles.capture import needs_another_file


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/x", "../x", "a\0b"])
def test_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(IntegrityError):
        below(Path("/images"), name)


@pytest.mark.parametrize("name", ["vda.qcow2", "Büro & 'win' 11-vda.qcow2", "...", "x" * 255])
def test_name_of_a_file_is_taken(name: str) -> None:
    assert below(Path("/images"), name) == Path("/images") / name


def test_variables_that_name_another_file_are_told_from_others() -> None:
    header = b"QFI\xfb" + (3).to_bytes(4, "big")
    whole = header.ljust(4096, b"\0")
    assert not needs_another_file(whole)
    assert not needs_another_file(b"\0" * 4096)
    assert not needs_another_file(b"QFI\xfb")
    assert needs_another_file(header + (104).to_bytes(8, "big") + bytes(4096))  # a backing file
    assert needs_another_file(header + bytes(64) + (4).to_bytes(8, "big") + bytes(4096))  # a data file
