"""The manual pages that the packages bring: one for each command, with all that its help says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

_SOURCE = Path(__file__).parents[3] / "packaging" / "manpages.py"


@pytest.fixture(scope="module")
def manpages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manpages", _SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_have_arguments_options_commands_and_an_example(manpages: ModuleType, tmp_path: Path) -> None:
    written = {path.stem: path.read_text() for path in manpages.write_pages(tmp_path, "2026-01-31")}
    assert {"vmkeep", "vmkeep-backup", "vmkeep-tpm-removal-show", "vmkeep-checkpoint-create"} <= set(written)
    restore = written["vmkeep-restore"]
    assert restore.startswith('.TH "VMKEEP-RESTORE" "1" "2026-01-31"')
    for shown in (r".B \-\-in\-place", ".B POINT", ".SH EXAMPLE", r"\-h, \-\-help"):
        assert shown in restore
    assert r"vmkeep\-restore(1)" in written["vmkeep"]
    assert r"vmkeep(1)" in restore
    for name, page in written.items():
        lines = page.splitlines()
        assert [line for line in lines if line.startswith("'")] == [], name
        assert {line.split()[0] for line in lines if line.startswith(".")} <= {".TH", ".SH", ".PP", ".TP", ".B"}, name


def test_text_that_looks_like_a_request_is_shown(manpages: ModuleType) -> None:
    assert manpages._roff(r".so \x -y") == r"\&.so \ex \-y"
