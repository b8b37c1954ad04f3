"""QEMU's command line tools, run in one place and logged as a line one can paste."""

from __future__ import annotations

import shlex
import shutil
import subprocess

from vmkeep.errors import HostFileMissing, NoSpace, TransferError
from vmkeep.logs import get_logger

_log = get_logger(__name__)


def find_tool(name: str) -> str:
    """Return the path of a tool; raises HostFileMissing with the package that holds it."""
    path = shutil.which(name)
    if path is None:
        raise HostFileMissing(
            f"the program {name} is not installed",
            path=name,
            hint="Install the package qemu-utils (qemu-img, qemu-nbd).",
        )
    return path


def run_tool(name: str, *arguments: str, doing: str, path: str | None = None) -> str:
    """Run a tool to its end and return what it printed.

    ``doing`` completes "could not …". Raises NoSpace when the tool says so, else TransferError with its words.
    """
    command = [find_tool(name), *arguments]
    _log.debug("running", command=shlex.join(command))
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"{name} ended with status {done.returncode}"
        if "No space left on device" in said:
            raise NoSpace(f"could not {doing}: {said}", path=path)
        raise TransferError(f"could not {doing}: {said}", path=path)
    return done.stdout
