"""QEMU's command line tools, run in one place and logged as a line one can paste."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import Final

from vmkeep.errors import NoSpace, ToolMissing, TransferError
from vmkeep.logs import get_logger
from vmkeep.transfer.confinement import run_confined

_log = get_logger(__name__)


_PACKAGES: Final = {"qemu-img": "qemu-utils", "qemu-nbd": "qemu-utils", "setpriv": "util-linux"}


def find_tool(name: str, doing: str) -> str:
    """Return the path of a tool; raises ToolMissing with what it is needed for and the package that holds it."""
    path = shutil.which(name)
    if path is None:
        raise ToolMissing(
            f"the program {name} is not installed, which is needed to {doing}",
            path=name,
            hint=f"Install the package {_PACKAGES[name]}, and run the command again.",
        )
    return path


def require_tools(*names: str, doing: str) -> None:
    """Raise ToolMissing unless all tools are there: before anything is begun that would come to need one."""
    for name in names:
        find_tool(name, doing)


def dying_with_us(signal_name: str, tool: str, doing: str) -> list[str]:
    """Return the words that start a tool that gets the signal when the thread which started it ends, in any way."""
    return [find_tool("setpriv", doing), "--pdeathsig", signal_name, "--", find_tool(tool, doing)]


def run_tool(
    name: str,
    *arguments: str,
    doing: str,
    path: str | None = None,
    descriptors: tuple[int, ...] = (),
    dying: bool = False,
    confined: bool = False,
) -> str:
    """Run a tool to its end and return what it printed. It inherits ``descriptors``; ``dying``: it dies with us.

    ``confined``: it opens what others wrote, by descriptors alone (``vmkeep.transfer.confinement``).
    ``doing`` completes "could not …". Raises ToolMissing, NoSpace when the tool says so, else TransferError with its
    words.
    """
    command = [*(dying_with_us("KILL", name, doing) if dying else [find_tool(name, doing)]), *arguments]
    _log.debug("running", command=shlex.join(command))
    if confined:
        return _printed(name, run_confined(command, descriptors=descriptors), doing, path)
    # In a session of its own: Ctrl-C would end it at once, with an image in the middle of a change, and the command
    # would tell of a tool that failed in place of the Ctrl-C.
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=descriptors,
    )
    return _printed(name, done, doing, path)


def _printed(name: str, done: subprocess.CompletedProcess[str], doing: str, path: str | None) -> str:
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip() or f"{name} ended with status {done.returncode}"
        if "No space left on device" in said:
            raise NoSpace(f"could not {doing}: {said}", path=path)
        raise TransferError(f"could not {doing}: {said}", path=path)
    return done.stdout
