"""Two installations that share a repository and a VM: what each takes from the other before and after it is trusted."""

from __future__ import annotations

import shutil

import pytest

from tests.rig import Disk, Host, KiB, MiB
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth, checkpoints

pytestmark = pytest.mark.system


def test_hosts_are_trusted_by_hand_and_shut_out_again(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", 4 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=512 * KiB, seed=1)
    first = vmkeep.backup("guest")
    (own,) = vmkeep.json("host", "list")["hosts"]
    assert first["made_by"] == {"key": own["fingerprint"], "installation": own["installation"], "trust": "own"}
    assert (vmkeep.home / "host.key").stat().st_mode & 0o777 == 0o600

    other = Vmkeep(host, home=host.dir / "work" / "other-home")
    shutil.copytree(vmkeep.home / "keys", other.home / "keys")
    adopted = other.json("init", "--adopt", "--repository", vmkeep.home / "repository")["init"]
    assert [(met["fingerprint"], met["trust"]) for met in adopted["hosts"]] == [(own["fingerprint"], "unknown")]
    # Nothing is read against a point of a host that nobody has trusted: who has it could put anything into the base.
    vm.write_random("vda", start=1 * MiB, length=64 * KiB, seed=2)
    told = other.run("backup", "guest")
    assert "Nothing is read against it" in told.stderr
    second = other.json("point", "show", "guest@latest")["point"]
    assert [disk["mode"] for disk in second["disks"]] == ["full"]
    truth = Truth.of(vm, tpm=False)

    # Which of the two is the last one is not guessed.
    refused = vmkeep.fails("restore", "guest@latest", "--output", host.dir / "work" / "refused")
    theirs = second["made_by"]["key"]
    assert refused.code == "choice-required"
    assert all(word in refused.error["message"] for word in (first["id"], second["id"], theirs))
    vmkeep.json("host", "trust", theirs)
    latest = vmkeep.json("restore", "guest@latest", "--output", host.dir / "work" / "trusted")["restored"]
    assert latest["point"] == second["id"]
    truth.assert_files(host.dir / "work" / "trusted")
    vm.write_random("vda", start=2 * MiB, length=64 * KiB, seed=3)
    third = vmkeep.backup("guest")
    assert [(disk["mode"], disk["bytes_read"]) for disk in third["disks"]] == [("incremental", 64 * KiB)]
    assert (third["parent"], checkpoints(vm)) == (second["id"], [third["checkpoint"]])

    # Shut out, its points become no VM any more, and are data still.
    vmkeep.json("host", "distrust", theirs)
    vm.destroy()
    assert vmkeep.fails("restore", second["id"], "--as", "copy").code == "host-distrusted"
    assert vmkeep.fails("restore", second["id"], "--in-place", "--yes").code == "host-distrusted"
    assert [found.name() for found in host.connection.listAllDomains()] == ["guest"]
    truth.assert_files(vmkeep.restore(second, host.dir / "work" / "data"))
    assert vmkeep.json("verify", "--all")["ok"]
