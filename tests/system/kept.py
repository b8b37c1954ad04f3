"""An installation with points, made once for several tests that only read it, each in a copy of its own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig import Host
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth


@dataclass(frozen=True, slots=True)
class Kept:
    """A VMKEEP_HOME without its host: points with the truth about each, oldest first."""

    home: Path
    points: tuple[dict[str, Any], ...]
    truths: tuple[Truth, ...]
    packs: tuple[frozenset[str], ...]  # the names of the packs that each point added

    def copy(self, host: Host, directory: Path) -> Vmkeep:
        """Return the command on a copy, which the test may damage."""
        home = directory / "home"
        shutil.copytree(self.home, home)
        return Vmkeep(host, home=home)


def packs(home: Path) -> dict[str, Path]:
    """Return the packs of an installation's own repository by name."""
    return {path.name: path for path in (home / "repository" / "packs").glob("*/*")}
