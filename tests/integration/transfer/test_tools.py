"""QEMU's tools as children of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_MAKE = """
import signal, sys
from vmkeep.transfer.tools import run_tool
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
run_tool("qemu-img", *sys.argv[1:], doing="make it", dying=True)
print("made")
"""


def test_tool_comes_to_its_end_when_its_command_is_interrupted_from_the_terminal(tmp_path: Path) -> None:
    """Ctrl-C goes to the whole process group; the command undoes what it began when the tool is done."""
    image = tmp_path / "image.raw"
    words = ["create", "-q", "-f", "raw", "-o", "preallocation=full", str(image), "256M"]  # some tenths of a second
    command = [sys.executable, "-c", _MAKE, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 30
        while not image.exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    image.unlink()
    assert (process.returncode, said) == (0, "interrupted\nmade\n")
