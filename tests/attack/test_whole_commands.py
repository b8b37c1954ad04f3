"""The same attacks met by whole commands on a real host; one VM is used for all."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import Zygote
from tests.rig import Disk, Host, KiB, MiB, Vm, VmState, random_bytes, read_offline_image
from tests.rig.cli import Vmkeep
from tests.system.history import Forking
from tests.system.offline import qemu_img, write_offline

pytestmark = pytest.mark.system

_QEMU_USER = "libvirt-qemu"
_PROMPT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Victim:
    """A VM that is off, a good point of it, and what root alone may read."""

    vm: Vm
    vmkeep: Vmkeep
    point: dict[str, Any]
    secret: Path

    @property
    def image(self) -> Path:
        return self.vm.disk_path("vda")

    @contextmanager
    def forged(self, *options: str) -> Iterator[None]:
        """Let its image be one that its QEMU wrote, which names something; the true one comes back."""
        true = self.image.with_suffix(".true")
        self.image.rename(true)
        try:
            qemu_img("create", "-q", "-u", "-f", "qcow2", *options, self.image, str(4 * MiB))
            yield
        finally:
            true.replace(self.image)

    def assert_secret_untouched(self) -> None:
        about = self.secret.stat()
        assert (about.st_uid, about.st_mode & 0o777) == (0, 0o600)
        assert self.secret.read_bytes() == _SECRET
        assert [entry.name for entry in self.secret.parent.iterdir()] == ["secret"]


_SECRET = random_bytes(9, 128 * KiB)


@pytest.fixture(scope="module")
def victim(session_host: Host) -> Iterator[Victim]:
    session_host.clear()
    vm = session_host.define("victim", disks=[Disk("vda", 4 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.destroy()
    vm.change_nvram()
    write_offline(vm, "vda", random_bytes(1, 256 * KiB), start=64 * KiB)
    secret = session_host.dir / "work" / "root-only" / "secret"
    secret.parent.mkdir(mode=0o700)
    secret.write_bytes(_SECRET)
    secret.chmod(0o600)
    zygote = Zygote(session_host, session_host.dir / "home")
    vmkeep = Forking(session_host, zygote)
    yield Victim(vm, vmkeep, vmkeep.backup("victim"), secret)
    zygote.close()
    vm.destroy()
    session_host.clear()


def test_file_of_roots_gets_into_no_point(victim: Victim) -> None:
    with victim.forged("-F", "raw", "-b", str(victim.secret)):
        failure = victim.vmkeep.fails("backup", "victim")
        assert (failure.code, failure.error["disk"]) == ("header-refused", "vda")
        assert str(victim.secret) in failure.error["message"]
        assert "qemu-img rebase" in failure.error["hint"]
        found = victim.vmkeep.run("--json", "doctor", "victim")
        assert str(victim.secret) in found.stdout
    victim.assert_secret_untouched()


def test_server_that_a_header_names_is_never_connected_to(victim: Victim) -> None:
    path = victim.vm.host.dir / "work" / "server"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.setblocking(False)
        with victim.forged("-F", "raw", "-b", f"nbd:unix:{path}"):
            victim.vmkeep.json("vm", "list")
            victim.vmkeep.run("--json", "doctor", "victim")
            assert "nbd:unix" in str(victim.vmkeep.json("vm", "show", "victim"))
            assert victim.vmkeep.fails("backup", "victim").code == "header-refused"
        with pytest.raises(BlockingIOError):
            server.accept()
    path.unlink()


def test_point_is_never_written_into_a_file_of_roots(victim: Victim) -> None:
    """The header names it as the file that holds the content of the disk."""
    place = victim.secret.parent / "secret_"
    with victim.forged("-o", f"data_file={place}"):
        place.unlink(missing_ok=True)
        content = victim.image.read_bytes()
        name = str(place).encode()
        victim.image.write_bytes(content.replace(name, str(victim.secret).encode().rjust(len(name), b"/"), 1))
        # The shorter name is filled up with a slash, which counts once.
        failure = victim.vmkeep.fails("restore", str(victim.point["id"]), "--in-place", "--yes")
        assert failure.code == "header-refused"
        assert victim.vm.state() is VmState.OFF
    victim.assert_secret_untouched()


def test_disk_of_another_vm_gets_into_no_point(victim: Victim) -> None:
    other = victim.vm.host.define("other", disks=[Disk("vda", 4 * MiB, format="raw")], tpm=False, firmware="bios")
    try:
        path = other.disk_path("vda")
        path.chmod(0o600)
        with victim.forged("-F", "raw", "-b", str(path)):
            failure = victim.vmkeep.fails("backup", "victim")
            assert failure.code == "header-refused"
            assert "VM other" in failure.error["message"]
    finally:
        other.delete()


def test_link_in_place_of_the_nvram_folder_leads_nowhere(victim: Victim) -> None:
    folder = victim.vm.nvram_path.parent
    elsewhere = folder.with_name("nvram.true")
    folder.rename(elsewhere)
    folder.symlink_to(victim.secret.parent)
    os.lchown(folder, pwd.getpwnam(_QEMU_USER).pw_uid, -1)
    try:
        restore = victim.vmkeep.fails("restore", str(victim.point["id"]), "--in-place", "--only", "state", "--yes")
        assert restore.code != "internal-error"
        as_vm = victim.vmkeep.fails(
            "restore", str(victim.point["id"]), "--as", "copy", "--disks-dir", str(victim.image.parent)
        )
        assert as_vm.code == "permission-denied"
        assert victim.vmkeep.fails("backup", "victim").code == "state-unsupported"
        for word in ("reset", "enroll"):
            assert victim.vmkeep.fails("nvram", word, "victim", "--yes").code == "state-unsupported"
        victim.assert_secret_untouched()
    finally:
        folder.unlink()
        elsewhere.rename(folder)


@pytest.mark.parametrize("running", [False, True])
def test_pipe_in_place_of_the_nvram_costs_nobody_time(victim: Victim, *, running: bool) -> None:
    nvram = victim.vm.nvram_path
    if running:
        victim.vm.start()
    true = nvram.with_suffix(".true")
    nvram.rename(true)
    os.mkfifo(nvram)
    shutil.chown(nvram, _QEMU_USER)
    try:
        begun = time.monotonic()
        failure = victim.vmkeep.fails("backup", "victim")
        assert time.monotonic() - begun < _PROMPT_SECONDS
        assert failure.code == "state-unsupported"
        assert victim.vm.state() is (VmState.RUNNING if running else VmState.OFF)
        victim.vmkeep.run("--json", "doctor", "victim")
        (row,) = victim.vmkeep.json("nvram", "list")["vms"]
        assert (row["secure_boot"], bool(row["problem"])) == (None, True)
        if not running:
            assert victim.vmkeep.fails("nvram", "enroll", "victim", "--yes").code == "state-unsupported"
        assert time.monotonic() - begun < 2 * _PROMPT_SECONDS
    finally:
        nvram.unlink()
        true.rename(nvram)
        victim.vm.destroy()


def test_overlay_over_a_base_that_root_alone_may_read_is_kept_and_restored(victim: Victim) -> None:
    base = victim.image.with_name("base.qcow2")
    shutil.copy(victim.image, base)
    base.chmod(0o600)
    truth = read_offline_image(base)
    with victim.forged("-F", "qcow2", "-b", "base.qcow2"):
        write_offline(victim.vm, "vda", b"above" * 1000, start=MiB)
        truth = truth[:MiB] + b"above" * 1000 + truth[MiB + 5000 :]
        point = victim.vmkeep.backup("victim")
        output = victim.vmkeep.restore(point, victim.vm.host.dir / "work" / "restored")
        assert read_offline_image(output / "vda.qcow2") == truth
        write_offline(victim.vm, "vda", b"later" * 1000, start=2 * MiB)
        victim.vmkeep.json("restore", str(point["id"]), "--in-place", "--yes")
        assert read_offline_image(victim.image) == truth
    base.unlink()
