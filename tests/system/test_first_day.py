"""What a newcomer meets: names with blanks in hints and completion, and tables that say in a word what is wrong."""

from __future__ import annotations

import re

import pytest

from tests.rig import Disk, Host, MiB
from tests.rig.cli import COMMAND, Vmkeep

pytestmark = pytest.mark.system
NAME, SNAPSHOT = "my box", "before the update"


def _offered(vmkeep: Vmkeep, line: str) -> list[str]:
    asked = {**vmkeep.environment, "_VMKEEP_COMPLETE": "fish", "_VMKEEP_LINE": line}
    return vmkeep.host.run([COMMAND], env=asked).stdout.splitlines()


def test_names_with_blanks_are_completed_and_hints_can_be_pasted(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define(NAME, disks=(Disk("vda", 4 * MiB), Disk("vdb", 4 * MiB)), firmware="bios", tpm=False)
    vm.start(paused=True)
    point = vmkeep.json("backup", NAME)["point"]
    vmkeep.json("snapshot", "create", NAME, SNAPSHOT)

    assert _offered(vmkeep, "vmkeep vm show ") == [f"{NAME}\tpaused"]
    assert _offered(vmkeep, "vmkeep snapshot revert 'my box' ") == [SNAPSHOT]
    assert _offered(vmkeep, r"vmkeep snapshot list my\ box --from ") == [SNAPSHOT]
    assert _offered(vmkeep, "vmkeep checkpoint info 'my box' vm") == [point["checkpoint"]]
    assert [line.split("\t")[0] for line in _offered(vmkeep, "vmkeep backup 'my box' --exclude v")] == ["vda", "vdb"]
    assert _offered(vmkeep, f"vmkeep restore {point['id'][:4]}")[0].startswith(f"{point['id'][:8]}\t{NAME}, ")

    refused = vmkeep.fails("snapshot", "revert", NAME, "nosuch")
    assert (refused.code, refused.error["message"]) == ("moment-not-found", f"VM {NAME!r} has no snapshot 'nosuch'")
    (hinted,) = re.findall("`vmkeep (.*)`", refused.error["hint"])
    listed = host.run(["sh", "-c", f"{COMMAND} {hinted}"], env=vmkeep.environment).stdout
    assert SNAPSHOT in listed


def test_a_vm_that_cannot_be_kept_whole_is_told_in_a_word_and_below_in_sentences(host: Host, vmkeep: Vmkeep) -> None:
    host.define("web", firmware="uefi", tpm=True, disks=(Disk("vda", 4 * MiB),))
    listed = vmkeep.run("vm", "list").stdout.splitlines()
    assert re.fullmatch("web +off +vda +uefi +emulator 2.0 +never +no", listed[1])
    told = [f"web: no {what} yet: it was never started" for what in ("TPM state", "UEFI variables")]
    assert sorted(listed[2:]) == told
    assert not [line for line in listed if line != line.rstrip()]


def test_a_name_with_a_slip_of_the_pen_makes_no_repository(vmkeep: Vmkeep) -> None:
    assert vmkeep.fails("backup", "nosuch").code == "vm-not-found"
    assert not (vmkeep.home / "repository").exists()
