"""The directory of a lane: made once, used again, removed only when nothing is mounted in it.

DIRECTORY/lock       held by whoever uses the lane, as long as any process of it lives
DIRECTORY/tree       the Debian, whole or absent: it is made as tree.new
DIRECTORY/../cache   packages of apt and pip, shared by all lanes
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lane import site
from lane.errors import LaneError
from lane.room import run_in_private_mounts

SUITES = ("bookworm", "trixie")

# What a person needs to have before they can type the README's commands. ca-certificates makes the site's known.
_PACKAGES = "ca-certificates,git,make"
_POLICY = "#!/bin/sh\n# There is no init here: packages start nothing.\nexit 101\n"
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Tree:
    """A lane's directory and Debian's name for the release in it."""

    directory: Path
    suite: str

    @property
    def root(self) -> Path:
        return self.directory / "tree"

    @property
    def cache(self) -> Path:
        return self.directory.parent / "cache"

    def lock(self) -> int:
        """Take the lane for this process and all that it starts. Raises LaneError when somebody has it."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(descriptor, True)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LaneError(
                f"{self.directory} is in use by another lane; wait for its end, or give this one a name of its own "
                "(NAME=other)"
            ) from None
        return descriptor

    def make(self) -> None:
        """Make the tree unless it is there. An interrupted attempt is removed first."""
        if self.root.exists():
            return
        unfinished = self.directory / "tree.new"
        remove(unfinished)
        packages = self.cache / "debootstrap"
        packages.mkdir(parents=True, exist_ok=True)
        options = ["--variant=minbase", f"--include={_PACKAGES}", f"--cache-dir={packages}"]
        command = ["debootstrap", *options, self.suite, str(unfinished), site.mirror()]
        if run_in_private_mounts(command) != 0:
            raise LaneError(f"debootstrap could not make {unfinished}; its log is debootstrap/debootstrap.log in there")
        (unfinished / "etc/apt/sources.list").write_text(self._sources(site.mirror()))
        (unfinished / "etc/apt/apt.conf.d/90site").write_text(site.apt_settings())
        (unfinished / "usr/sbin/policy-rc.d").write_text(_POLICY)
        (unfinished / "usr/sbin/policy-rc.d").chmod(0o755)
        unfinished.rename(self.root)

    def remove(self) -> None:
        """Remove the tree, whole or unfinished. Raises LaneError when something is mounted in it."""
        remove(self.root)
        remove(self.directory / "tree.new")

    def _sources(self, mirror: str) -> str:
        lines = [f"deb {mirror} {self.suite} main", f"deb {mirror} {self.suite}-updates main"]
        if mirror == site.DEFAULT_MIRROR:
            lines.append(f"deb {mirror}-security {self.suite}-security main")
        return "".join(f"{line}\n" for line in lines)


def install_debootstrap() -> None:
    """Install what makes a tree, unless it is there, as ``scripts/setup`` does with packages."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if shutil.which("debootstrap", path=path) is not None:
        return
    print("lane: installing Debian packages: debootstrap", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", "debootstrap"]):
        if subprocess.run(["apt-get", *words], check=False, env=environment).returncode != 0:
            raise LaneError(f"apt-get {words[0]} failed; install debootstrap by hand")


def remove(directory: Path) -> None:
    """Remove a tree. Raises LaneError when anything is mounted at it or below: that would be removed as well.

    ``--one-file-system`` is the second lock on the same door: rm itself does not enter another file system.
    """
    if not directory.exists():
        return
    mounted = mounts_below(directory.resolve(), Path("/proc/self/mountinfo").read_text())
    if mounted:
        raise LaneError(f"{directory} is not removed: {mounted[0]} is mounted; unmount it first (umount {mounted[0]})")
    subprocess.run(["rm", "-rf", "--one-file-system", "--", str(directory)], check=True)


def mounts_below(directory: Path, mountinfo: str) -> list[Path]:
    """Return the mount points at a directory or below it, as ``/proc/self/mountinfo`` has them (proc(5))."""
    points = (Path(_OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4])) for line in mountinfo.splitlines())
    return [point for point in points if point.is_relative_to(directory)]
