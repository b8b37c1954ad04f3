"""The clone of this checkout that stands in a tree."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from lane.errors import LaneError

INSIDE = "/root/vmkeep"


def left_out(checkout: Path) -> int:
    """Return how many files of the checkout differ from its last commit: a clone does not have those changes."""
    return len(_git(checkout, "status", "--porcelain").splitlines())


def clone(checkout: Path, tree: Path) -> str:
    """Bring the clone in a tree to the checkout's last commit, and return that commit.

    The first time it is cloned. Later it is fetched, and everything that git does not ignore is put back, so that
    what was installed (.venv) need not be installed again.
    """
    commit = _git(checkout, "rev-parse", "HEAD").strip()
    # A bundle, because git does not clone what belongs to another user, as the checkout does when sudo runs this.
    bundle = tree / "root/vmkeep.bundle"
    bundle.unlink(missing_ok=True)
    target = tree / INSIDE.lstrip("/")
    _git(checkout, "bundle", "create", "--quiet", str(bundle), "HEAD")
    try:
        if not (target / ".git").exists():
            _git(tree, "clone", "--quiet", "--no-checkout", str(bundle), str(target))
        _git(target, "fetch", "--quiet", "--force", str(bundle), "HEAD")
        _git(target, "checkout", "--quiet", "--force", "--detach", commit)
        _git(target, "clean", "--quiet", "-ffd")
    finally:
        bundle.unlink(missing_ok=True)
    return commit


def _git(directory: Path, *arguments: str) -> str:
    # Variables of a git that runs us (a hook) would make it look at another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-c", "safe.directory=*", "-C", str(directory), *arguments]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if result.returncode != 0:
        raise LaneError(f"git {' '.join(arguments)}: {result.stderr.strip()}")
    return result.stdout
