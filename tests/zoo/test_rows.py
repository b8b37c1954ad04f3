"""The rows as values, and the document that is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.__main__ import main
from tests.zoo.conditions import CONDITIONS
from tests.zoo.document import DOCUMENT, text
from tests.zoo.row import Promise, Refused
from tests.zoo.rows import ROWS, SECTIONS
from vmkeep.errors import error_classes


def test_the_document_is_that_of_the_rows() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == text(), "python -m tests.zoo.document writes it anew"


def test_rows_are_many_and_no_two_are_the_same_vm() -> None:
    rows = [row for _title, section in SECTIONS for row in section]
    assert len(rows) == len(ROWS) >= 60
    for what in ("what", "configuration"):
        seen = [row.what if what == "what" else row.but(name="", what="", remark="", sample=False) for row in rows]
        twice = {row.name for row, value in zip(rows, seen, strict=True) if seen.count(value) > 1}
        assert twice == set(), f"rows with the same {what}"


def test_what_is_refused_is_refused_with_an_error_that_exists() -> None:
    known = set(error_classes())
    for row in ROWS.values():
        assert row.condition in {"", *CONDITIONS}
        for promise in (row.promise, row.promise_of_libvirt_11 or Promise()):
            outcomes = [getattr(promise, name) for name in Promise.__slots__]
            assert {each.code for each in outcomes if isinstance(each, Refused)} <= known


def test_a_name_that_is_no_rows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--rows", "virtio,nonsense"])
    assert ended.value.code == 2
    assert "nonsense" in capsys.readouterr().err


def test_the_sample_in_the_suite_has_rows_of_every_section() -> None:
    for title, rows in SECTIONS:
        assert any(row.sample for row in rows), title
    assert Path(DOCUMENT).name == "configurations.md"
