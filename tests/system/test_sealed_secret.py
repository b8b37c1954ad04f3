"""The proof that counts: what a real guest sealed in its vTPM opens again after every way back, and only then.

The guest is Linux; it judges with its own TPM tools (tests/guest). Each word is in four places: sealed blobs on the
disk, one of them bound to PCR 7, an NV index of the TPM, and a UEFI variable. One guest is sealed and kept for all
tests, which share its points; each test begins from one of them.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import libvirt
import pytest

from tests.guest import LinuxGuest
from tests.guest.sealing import Told, seal, tell
from tests.rig import Disk, Host, MiB, VmState
from tests.rig.cli import Vmkeep
from tests.turns import EVERY

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def session_host(booting_session_host: Host) -> Host:
    """A guest measures what started it."""
    return booting_session_host


@pytest.fixture(scope="module")
def second_session_host() -> Iterator[Host]:
    with Host("beta-boots") as host:
        yield host


@dataclass(slots=True)
class Kept:
    """A guest's points: ``first`` and ``second`` were taken while it ran, ``third`` while it was off."""

    host: Host
    vmkeep: Vmkeep
    first: dict[str, Any]
    second: dict[str, Any]
    third: dict[str, Any]

    def lose_original(self) -> None:
        with contextlib.suppress(libvirt.libvirtError):
            self.host.vm("linux").delete()

    def restore(self, point: dict[str, Any], name: str, *options: str) -> LinuxGuest:
        self.vmkeep.json("restore", str(point["id"]), "--as", name, *options)
        return LinuxGuest(self.host.vm(name))

    def original(self) -> LinuxGuest:
        """Return the VM, off and as ``third`` has it."""
        self.lose_original()
        return self.restore(self.third, "linux")


@pytest.fixture(scope="module")
def kept(session_host: Host) -> Iterator[Kept]:
    session_host.clear()
    vmkeep = Vmkeep(session_host)
    with LinuxGuest.define(session_host, "linux", disks=[Disk("vda", 4 * MiB)]).boot() as guest:
        seal(guest, "first")
        first = vmkeep.backup("linux")
        seal(guest, "second")
        second = vmkeep.backup("linux")
        seal(guest, "third")
        guest.shutdown()
        third = vmkeep.backup("linux")
    yield Kept(session_host, vmkeep, first, second, third)
    session_host.clear()


@pytest.mark.in_turn(1, among="ways back")
def test_secret_opens_after_stop_and_start(kept: Kept) -> None:
    """Without vmkeep: the guest itself is right."""
    with kept.original() as guest:
        seal(guest.boot(), "fourth")
        guest.shutdown()
        assert tell(guest.boot()) == Told.of("fourth")


@pytest.mark.in_turn(1, among="ways back")
def test_secret_opens_in_an_older_point_here_and_in_a_newer_one_on_another_host(kept: Kept, second_host: Host) -> None:
    there = Vmkeep(second_host)
    work = kept.host.dir / "work"
    passphrase = work / "passphrase"
    passphrase.write_text("correct horse\n")
    kept.vmkeep.json("key", "export", "--passphrase-file", passphrase, "--output", work / "key.txt")
    there.json("key", "import", work / "key.txt", "--passphrase-file", passphrase)
    there.json("init", "--repository", kept.host.dir / "home" / "repository", "--adopt")
    images = second_host.dir / "disks"
    as_vm = ("restore", kept.second["id"], "--as", "linux", "--disks-dir", images)
    asked = there.fails(*as_vm)  # of another host's point: it boots a kernel that is a file of the host
    assert [part["part"] for part in asked.error["parts"]] == ["os/kernel", "os/initrd", "os/cmdline"]
    restored = there.json(*as_vm, "--trust-definition")["restored"]
    kept.lose_original()

    with kept.restore(kept.first, "linux") as here, LinuxGuest(second_host.vm("linux")) as beta:
        assert (restored["identity"], here.vm.uuid, beta.vm.uuid) == ("same", kept.first["vm_uuid"], here.vm.uuid)
        _boot_side_by_side(here, beta)
        assert tell(here) == Told.of("first")
        assert tell(beta) == Told.of("second")


@pytest.mark.in_turn(1, among="ways back")
def test_secret_opens_in_a_point_that_was_taken_while_the_vm_was_off(kept: Kept) -> None:
    assert kept.third["parent"] == kept.second["id"]
    with kept.original() as guest:
        assert tell(guest.boot()) == Told.of("third")


def test_secret_stays_shut_with_a_new_tpm_and_opens_with_the_same_one(kept: Kept) -> None:
    kept.original()
    same, new = (kept.restore(kept.second, choice, "--tpm", choice) for choice in ("same", "new"))
    with same, new:
        _boot_side_by_side(same, new)
        told = tell(new)

        assert tell(same) == Told.of("second")
        # The blobs belong to a parent key that no other TPM can have: TPM_RC_INTEGRITY, not a wrong policy or password.
        assert "integrity check failed" in told.plain
        assert "integrity check failed" in told.measured
        assert "second" not in told.plain + told.measured + told.nv
        assert told.variable == "variable second"  # NVRAM is the point's: only the TPM is new
    for copy in (same, new):
        copy.vm.delete()


@pytest.mark.in_turn(1, among="ways back")
def test_secret_opens_after_going_back_in_place(kept: Kept) -> None:
    with kept.original() as guest:
        kept.vmkeep.json("restore", str(kept.first["id"]), "--in-place", "--yes")
        assert guest.vm.state() is VmState.OFF
        assert tell(guest.boot()) == Told.of("first")


@pytest.mark.in_turn(1, among="ways back")
def test_secret_opens_after_its_tpm_was_lost_the_start_refused_and_the_newest_put_back(kept: Kept) -> None:
    """What libvirt does by itself is a blank TPM, to which nothing opens (the test with ``--tpm new``)."""
    with kept.original() as guest:
        kept.vmkeep.json("hook", "install")
        try:
            shutil.rmtree(guest.vm.tpm_directory)
            with pytest.raises(libvirt.libvirtError, match="libvirt would make a blank TPM"):
                guest.vm.start()
            kept.vmkeep.json("state", "restore", "linux", "--yes")
            assert tell(guest.boot()) == Told.of("third")
        finally:
            kept.vmkeep.json("hook", "remove")


@pytest.mark.skipif(not EVERY, reason="a start of Linux more: with VMKEEP_CRASH_ALL=1")
def test_secret_bound_to_pcr_7_is_shut_by_certificates_that_are_added_and_opens_after_the_way_back(kept: Kept) -> None:
    with kept.original() as guest:
        enrolled = kept.vmkeep.json("nvram", "enroll", "linux", "--yes")["replaced"]
        told = tell(guest.boot())
        assert (told.plain, told.nv, told.variable) == ("plain third", "nv third", "variable third")
        assert "a policy check failed" in told.measured
        guest.shutdown()
        kept.vmkeep.json(*shlex.split(enrolled["way_back"])[1:], "--yes")
        assert tell(guest.boot()) == Told.of("third")


def _boot_side_by_side(*guests: LinuxGuest) -> None:
    """The firmware alone keeps one of the machine's processors busy for seconds."""
    for guest in guests:
        guest.vm.start()
    for guest in guests:
        guest.boot()
