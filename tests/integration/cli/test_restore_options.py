"""What of `vmkeep restore` cannot be meant is refused before anything is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.command_line import vmkeep


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--in-place", "--as", "copy"),
        ("--in-place", "--output", "out"),
        ("--in-place", "--force"),
        ("--in-place", "--format", "raw"),
        ("--in-place", "--disks-dir", "images"),
        ("--in-place", "--decrypt"),
        ("--as", "copy", "--decrypt"),
        ("--in-place", "--tpm", "new"),
        ("--as", "copy", "--tpm", "keep"),
        ("--as", "copy", "--only", "vda"),
        ("--output", "out", "--yes"),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    answer = vmkeep(tmp_path / "home", "restore", "0123abcd", "--json", *options)
    assert (answer.status, answer.error()["code"]) == (2, "invalid-request")
    assert "--" in answer.error()["message"]
