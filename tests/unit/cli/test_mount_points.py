"""Which file system a directory is on is told by its name alone, because a dead server would not answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.mounts import mount_point

MOUNTS = ["/", "/var", "/mnt/backup", "/mnt/back"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/var/lib/vmkeep/repository", "/var"),
        ("/mnt/backup", "/mnt/backup"),
        ("/mnt/backup/vmkeep", "/mnt/backup"),
        ("/mnt/backups", "/"),
        ("/srv", "/"),
    ],
)
def test_longest_mount_point_above_a_path_counts(path: str, expected: str) -> None:
    assert mount_point(Path(path), MOUNTS) == expected
