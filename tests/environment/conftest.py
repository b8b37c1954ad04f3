"""What the tests of faults work with: the injector, and vmkeep forked with it in its process."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.bed import Zygote
from tests.environment.injector import Injector
from tests.rig import Host


@dataclass(frozen=True, slots=True)
class Preloaded:
    """A host in which the forked commands have the injector in them; it does nothing until a run asks for it."""

    host: Host
    injector: Injector

    @property
    def dir(self) -> Path:
        return self.host.dir

    def popen(self, command: Sequence[str | Path], *, stdin: int, stderr: int | None) -> subprocess.Popen[str]:
        env = {"LD_PRELOAD": str(self.injector.library)}
        return self.host.popen(command, env=env, stdin=stdin, stderr=stderr)  # type: ignore[arg-type] # as in Popen

    def run(self, command: Sequence[str | Path], *, check: bool) -> object:
        return self.host.run(command, check=check)


@pytest.fixture(scope="session")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Injector:
    directory = tmp_path_factory.mktemp("injector")
    directory.chmod(0o755)  # what runs as another user loads it too
    return Injector(directory)


@pytest.fixture(scope="module")
def zygote(session_host: Host, injector: Injector) -> Iterator[Zygote]:
    """Runs commands in the host, forked, with the injector in them."""
    process = Zygote(Preloaded(session_host, injector), session_host.dir / "home")  # type: ignore[arg-type] # as a host
    yield process
    process.close()
