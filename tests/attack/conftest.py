"""A place where root keeps something, and where the users of QEMU and swtpm have what is theirs, as on a host."""

from __future__ import annotations

import json
import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.rig import KiB, random_bytes
from tests.rig.cli import NO_LIBVIRT
from vmkeep.cli.main import main
from vmkeep.transfer import imagegrounds
from vmkeep.transfer.qemuuser import QemuUser

QEMU_USER, SWTPM_USER = "libvirt-qemu", "tss"


@dataclass(frozen=True, slots=True)
class Ground:
    """``images`` belongs to root, as /var/lib/libvirt/images does; ``root_only`` may be entered by root alone."""

    top: Path
    secret: bytes

    @property
    def images(self) -> Path:
        return self.top / "images"

    @property
    def secret_file(self) -> Path:
        return self.top / "root-only" / "secret"

    def folder_of(self, user: str) -> Path:
        """Return a folder of that user's own."""
        folder = self.top / f"of-{user}"
        if not folder.exists():
            folder.mkdir(mode=0o755)
            shutil.chown(folder, user, user)
        return folder

    def assert_untouched(self) -> None:
        """The secret is as it was: content, owner, mode, and nothing beside it."""
        about = self.secret_file.stat()
        assert (about.st_uid, about.st_gid, about.st_mode & 0o7777, about.st_nlink) == (0, 0, 0o600, 1)
        assert self.secret_file.read_bytes() == self.secret
        assert [entry.name for entry in self.secret_file.parent.iterdir()] == ["secret"]


@pytest.fixture
def ground() -> Iterator[Ground]:
    if os.geteuid() != 0:
        pytest.skip("only root can become the users who attack")
    for user in (QEMU_USER, SWTPM_USER):
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip(f"there is no user {user} here")
    top = Path(tempfile.mkdtemp(prefix="vmkeep-attack-", dir="/var/tmp"))
    try:
        top.chmod(0o755)
        (top / "images").mkdir(mode=0o711)
        (top / "root-only").mkdir(mode=0o700)
        ground = Ground(top, random_bytes(77, 192 * KiB))
        ground.secret_file.write_bytes(ground.secret)
        ground.secret_file.chmod(0o600)
        yield ground
    finally:
        shutil.rmtree(top, ignore_errors=True)


def as_user(user: str, *command: str | Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run something with the rights of an attacker and no others."""
    words = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--inh-caps=-all", "--no-new-privs"]
    return subprocess.run([*words, *map(str, command)], capture_output=True, text=True, check=check)


def command(home: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Run a command with ``--json`` in this process, without a libvirt; return its exit status, document and error."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**NO_LIBVIRT, "VMKEEP_HOME": str(home)}.items():
            patch.setenv(name, value)
        capsys.readouterr()
        status = main(["--json", *words])
    logging.getLogger("dbos").handlers.clear()  # they hold the streams of this test
    told = capsys.readouterr()
    return status, json.loads(told.out or "{}"), json.loads(told.err or "{}").get("error", {})


@dataclass(slots=True)
class Told:
    """What libvirt would say, set by a test."""

    own: Mapping[str, str] = field(default_factory=dict)
    below: Mapping[str, str] = field(default_factory=dict)
    pools: tuple[str, ...] = ()

    def user(self, _image: str) -> QemuUser | None:
        return QemuUser.named(QEMU_USER, None)

    def listed(self, _image: str, path: str) -> bool:
        return path in self.below

    def listed_format(self, _image: str, path: str) -> str | None:
        return self.below.get(path)

    def used_by(self, _image: str, path: str, *, chains: bool) -> str | None:  # noqa: ARG002
        return self.own.get(path)

    def in_pool(self, path: str) -> bool:
        return str(Path(path).parent) in self.pools


@pytest.fixture
def told() -> Iterator[Told]:
    before = imagegrounds.grounds()
    told = Told()
    imagegrounds.ask(told)
    yield told
    imagegrounds.ask(before)
