"""A small installation with two points of a VM that is not here, on file systems that can be made to fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.bed import Printed, Zygote
from tests.integration.repository.samples import Sample, make_sample
from tests.rig import Host
from tests.rig.cli import NO_LIBVIRT
from vmkeep.catalog import OperationState, SqlCatalog
from vmkeep.keys import KeyFile

NEWEST_OPERATION = "f" * 32


@dataclass(frozen=True, slots=True)
class Failed:
    """How a command failed, and the document that it printed all the same."""

    status: int
    error: dict[str, Any]
    document: dict[str, Any] | None


@dataclass(slots=True)
class Installation:
    """``home`` is on a small file system of its own, ``repository`` on another; both are filled anew by ``restock``."""

    host: Host
    zygote: Zygote
    sample: Sample
    kept: Path
    mounted: list[Path] = field(default_factory=list)

    @property
    def work(self) -> Path:
        return self.host.dir / "work"

    @property
    def home(self) -> Path:
        return self.work / "small"

    @property
    def repository(self) -> Path:
        return self.work / "store" / "repository"

    @property
    def points(self) -> list[str]:
        return [point.id for point in self.sample.points]

    @classmethod
    def make(cls, host: Host, zygote: Zygote, directory: Path) -> Installation:
        """Make the installation that every test begins with, once."""
        sample = make_sample(directory / "sample")
        made = cls(host, zygote, sample, directory / "kept")
        made.home.mkdir(parents=True)
        made.repository.parent.mkdir(parents=True)
        shutil.copytree(sample.location, made.repository)
        key = getattr(sample.key, "key", None)
        assert isinstance(key, KeyFile)
        key.save(made.home / "keys")
        made.done("init", "--adopt", "--repository", made.repository)
        made.done("restore", made.points[0], "--output", made.work / "first")
        shutil.rmtree(made.work / "first")
        made.home.chmod(0o700)
        shutil.copytree(made.home, made.kept / "home")
        shutil.copytree(made.repository.parent, made.kept / "store")
        _commit_to_the_log(made.kept / "home", made.kept / "logged")
        return made

    def restock(self, *, home_size: str = "size=24m", logged: bool = False) -> None:
        """Put both in place on new file systems. ``logged``: the newest commit is in the log of the catalogue alone."""
        self.clear()
        for place, options in ((self.home, home_size), (self.repository.parent, "size=64m")):
            place.mkdir(exist_ok=True)
            self.inside("mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "tmpfs", place)
            self.mounted.append(place)
        self.inside("cp", "-a", f"{self.kept}/{'logged' if logged else 'home'}/.", self.home)
        self.inside("cp", "-a", f"{self.kept}/store/.", self.repository.parent)

    def clear(self) -> None:
        """Take the file systems away, and what commands wrote elsewhere."""
        while self.mounted:
            self.inside("umount", "--lazy", self.mounted.pop())
        for path in self.work.glob("out-*"):
            shutil.rmtree(path)

    def inside(self, *command: str | Path) -> str:
        return self.host.run(command, check=True).stdout

    def fill(self) -> None:
        """Leave no byte free in the home."""
        self.host.run(["sh", "-c", f"dd if=/dev/zero of={self.home}/filler bs=4k 2>/dev/null; true"], check=True)

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Printed:
        environment = {**NO_LIBVIRT, "VMKEEP_HOME": str(self.home), **(env or {})}
        return self.zygote.command("--json", *words, env=environment)

    def done(self, *words: str | Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self.run(*words, env=env).document()

    def fails(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Failed:
        ended = self.run(*words, env=env)
        assert ended.status != 0, f"it should fail, and printed {ended.out}"
        return failed(ended)

    def restored(self, point: int, name: str, env: Mapping[str, str] | None = None) -> tuple[bytes, ...]:
        """Restore a point to files, and return its disks."""
        output = self.work / f"out-{name}"
        self.done("restore", self.points[point], "--output", output, "--format", "raw", env=env)
        return tuple(path.read_bytes() for path in sorted(output.glob("vd*.raw")))

    def images(self, point: int) -> tuple[bytes, ...]:
        return tuple(self.sample.images[self.points[point]])


def failed(ended: Printed) -> Failed:
    """Return how a command failed that was to fail."""
    return Failed(ended.status, json.loads(ended.err)["error"], json.loads(ended.out) if ended.out else None)


def _commit_to_the_log(home: Path, copy: Path) -> None:
    """Copy a home whose catalogue has its newest commit in the write-ahead log, as after a kill; no -shm beside it."""
    shutil.copytree(home, copy)
    with closing(SqlCatalog.open(copy / "catalog.sqlite")) as catalog:
        catalog.begin_operation(NEWEST_OPERATION, "restore.files", None, "e" * 32, {"point": "1" * 32})
        catalog.move_operation(NEWEST_OPERATION, "e" * 32, OperationState.DONE)
        (copy / "aside").mkdir()
        for name in ("catalog.sqlite", "catalog.sqlite-wal"):
            shutil.copyfile(copy / name, copy / "aside" / name)
    for path in copy.glob("catalog.sqlite*"):
        path.unlink()
    for path in (copy / "aside").iterdir():
        path.chmod(0o600)
        path.rename(copy / path.name)
    (copy / "aside").rmdir()
    assert (copy / "catalog.sqlite-wal").stat().st_size > 0
