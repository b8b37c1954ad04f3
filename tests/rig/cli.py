"""vmkeep's command line as its users meet it: run inside a host, read through ``--json``.

It imports nothing of vmkeep; what a test knows of a command is its exit status and its two streams.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.rig.errors import RigError
from tests.rig.forking import ForkedCommand, can_fork
from tests.rig.host import Host

COMMAND = Path(sys.executable).with_name("vmkeep")

Started = subprocess.Popen[str] | ForkedCommand
"""A command that runs, whether it was started or forked."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a command failed: the JSON error object, the exit status, and the document that it printed all the same."""

    error: dict[str, Any]
    status: int
    document: dict[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def code(self) -> str:
        return str(self.error["code"])


class Vmkeep:
    """The command on one host. ``home`` replaces VMKEEP_HOME, for an installation of its own.

    ``user`` is the number of the user that runs it in place of root, with no group and no capability. ``forked`` as
    false: each command is a program of its own, with its own arguments, also where nothing else demands it.
    """

    def __init__(self, host: Host, *, home: Path | None = None, user: int | None = None, forked: bool = True) -> None:
        self.host = host
        self._forked = forked
        self._become = [] if user is None else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        self.home = home if home is not None else host.dir / "home"

    @property
    def environment(self) -> dict[str, str]:
        return {"VMKEEP_HOME": str(self.home)}

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        """Run it as a person would, and return what it printed; see ``forking`` for how it is started."""
        environment = {**self.environment, **(env or {})}
        if self._forked and not self._become and can_fork(environment):
            return self.host.forks.run([COMMAND, *arguments], environment, input)
        return self.host.run([*self._become, COMMAND, *arguments], env=environment, input=input)

    def start(self, *arguments: str | Path) -> Started:
        """Start it with ``--json`` and do not wait for it."""
        if self._forked and not self._become:
            return self.host.forks.start([COMMAND, "--json", *arguments], self.environment)
        return self.host.popen([*self._become, COMMAND, "--json", *arguments], env=self.environment)

    def json(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Run a command that must succeed and return its document."""
        result = self.run("--json", *arguments, env=env)
        if result.returncode != 0:
            raise RigError(f"{_words(arguments)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
        return _document(result.stdout, arguments)

    def fails(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Failure:
        """Run a command that must fail, with one error object on standard error and nothing else there."""
        result = self.run("--json", *arguments, env=env)
        if result.returncode == 0:
            raise RigError(f"{_words(arguments)}: it should fail, and printed\n{result.stdout}{result.stderr}")
        said = _document(result.stderr, arguments)
        document = _document(result.stdout, arguments) if result.stdout else None
        return Failure(said["error"], result.returncode, document, tuple(said.get("notes", ())))

    def backup(self, vm: str, *options: str) -> dict[str, Any]:
        """Take a point and return its object."""
        point = self.json("backup", *options, "--", vm)["point"]
        assert isinstance(point, dict)
        return point

    def restore(self, point: dict[str, Any], output: Path, *options: str) -> Path:
        """Restore a point to files and return their directory. No libvirt is within reach meanwhile."""
        self.json("restore", str(point["id"]), "--output", output, *options, env=NO_LIBVIRT)
        return output

    def restore_all(self, points: Sequence[dict[str, Any]], parent: Path) -> list[Path]:
        """Restore several points at once, each into a directory of ``parent`` that is named after its id."""
        outputs = [parent / str(point["id"]) for point in points]

        def restore(point: dict[str, Any], output: Path) -> None:
            # Not a subclass's way to run commands, which may be for one at a time.
            ended = Vmkeep.run(self, "--json", "restore", str(point["id"]), "--output", output)
            if ended.returncode != 0:
                raise RigError(f"restore: exit status {ended.returncode}: {ended.stderr}")

        with ThreadPoolExecutor(len(points)) as pool:
            list(pool.map(restore, points, outputs))
        return outputs


NO_LIBVIRT = {"LIBVIRT_DEFAULT_URI": "qemu+unix:///system?socket=/nowhere/libvirt-sock"}


def finished(process: Started, timeout_seconds: float = 120) -> tuple[int, dict[str, Any]]:
    """Wait for a command of ``Vmkeep.start``; return its exit status and what it printed: document or error."""
    with process:
        output, errors = process.communicate(timeout=timeout_seconds)
    text = output if process.returncode == 0 else errors
    return process.returncode, _document(text, process.args if isinstance(process.args, list) else ())


def _document(text: str, arguments: Any) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise RigError(f"{_words(arguments)}: this is not one JSON document: {text!r}") from error
    if not isinstance(document, dict):
        raise RigError(f"{_words(arguments)}: not an object: {text!r}")
    return document


def _words(arguments: Any) -> str:
    return " ".join(["vmkeep", *(str(word) for word in arguments)])
