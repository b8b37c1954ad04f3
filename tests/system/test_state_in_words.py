"""`vmkeep state show` and `state diff` on a VM with UEFI variables and a TPM, on the host and after it is gone."""

from __future__ import annotations

import hashlib
import os

import pytest

from tests.rig import Disk, Host, MiB, Vm
from tests.rig.cli import Vmkeep
from vmkeep.custody.variables import read_variables

pytestmark = pytest.mark.system

_SEALED = b"what the guest sealed"


def turn_secure_boot_off(vm: Vm) -> None:
    """Let the firmware find SecureBootEnable 0: its content is the byte behind its name, in the last that counts."""
    content = bytearray(vm.nvram())
    name = "SecureBootEnable".encode("utf-16-le") + b"\0\0"
    place = content.rindex(name) + len(name)
    assert content[place] == 1
    content[place] = 0
    vm.nvram_path.write_bytes(content)


def test_state_is_shown_and_compared_in_words(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    shown = vmkeep.json("state", "show", "guest")["state"]
    assert {kind: (each["standing"], each["newest"]) for kind, each in shown["kinds"].items()} == {
        "tpm": ("not-kept", None),
        "nvram": ("not-kept", None),
    }
    point = vmkeep.backup("guest")
    shown = vmkeep.json("state", "show", "guest")["state"]["kinds"]
    assert (shown["tpm"]["standing"], shown["tpm"]["encrypted"], shown["tpm"]["secret"]) == ("current", False, None)
    assert shown["nvram"]["newest"]["held_by"] == [point["id"]]
    variables = shown["nvram"]["variables"]
    assert (variables["secure_boot"], variables["problem"]) == ("on", None)
    assert variables["count"] == len(read_variables(vm.nvram()).variables)
    told = {each["subject"] for database in variables["databases"].values() for each in database["certificates"]}
    assert "Microsoft Corporation UEFI CA 2011" in told
    text = vmkeep.run("state", "show", "guest").stdout
    assert "Microsoft Corporation UEFI CA 2011, expired 2026-06-27" in text
    assert "Secure Boot  on" in text

    # What lies on the host now differs in one variable; its content is never told.
    turn_secure_boot_off(vm)
    vm.change_tpm()
    difference = vmkeep.json("state", "diff", "guest", "1")["difference"]
    (change,) = difference["variables"]
    assert (change["name"], change["after"]["sha256"]) == ("SecureBootEnable", hashlib.sha256(b"\0").hexdigest())
    assert vmkeep.json("state", "diff", "guest", "1", "--kind", "tpm")["difference"]["ranges"]
    vmkeep.json("state", "capture", "guest")
    shown = vmkeep.json("state", "show", "guest")["state"]["kinds"]
    assert (shown["nvram"]["versions"], shown["nvram"]["variables"]["secure_boot"]) == (2, "off")
    assert vmkeep.run("state", "diff", "guest", "2").stdout.splitlines()[1:] == ["nothing differs"]
    assert vmkeep.json("state", "conflicts")["conflicts"] == []

    (vm.tpm_directory / "tpm2" / "tpm2-00.permall").unlink()
    assert vmkeep.fails("state", "diff", "guest", "1", "--kind", "tpm").code == "host-file-missing"
    os.mkfifo(vm.tpm_directory / "tpm2" / "tpm2-00.permall")
    assert "not a regular file" in vmkeep.fails("state", "diff", "guest", "1", "--kind", "tpm").error["message"]
    vm.delete()
    gone = vmkeep.json("state", "show", "guest")["state"]
    assert (gone["on_host"], gone["kinds"]["nvram"]["variables"]) == (False, shown["nvram"]["variables"])
    (seen,) = gone["kinds"]["nvram"]["seen"]  # where it was, until that is too long ago
    assert (seen["path"].endswith("guest_VARS.fd"), seen["standing"]) == (True, "current")
    (again,) = vmkeep.json("state", "diff", "guest", "1", "2")["difference"]["variables"]
    assert again == change
    assert vmkeep.fails("state", "diff", "guest", "1").code == "vm-not-found"


def test_exported_state_comes_back_in_another_home(host: Host, vmkeep: Vmkeep) -> None:
    vm = host.define("guest", disks=[Disk("vda", MiB)])
    vm.start(paused=True)
    vm.destroy()
    vm.store_in_tpm(_SEALED)
    vmkeep.backup("guest")
    kept, variables = vm.tpm_state(), vm.nvram()
    work = host.dir / "work"
    words, file = work / "words", work / "guest.state"
    words.write_text("correct horse battery staple\n")
    exported = vmkeep.json("state", "export", "guest", "--to", file, "--passphrase-file", words)["exported"]
    assert [(each["kind"], each["version"]) for each in exported["versions"]] == [("nvram", 1), ("tpm", 1)]
    assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, exported["size_bytes"])
    assert kept[100:200] not in file.read_bytes()
    again = vmkeep.fails("state", "export", "guest", "--to", file, "--passphrase-file", words)
    assert again.code == "target-exists"

    # The home, its repository and its key are lost, and libvirt has made a blank TPM.
    vm.tpm_directory.rename(vm.tpm_directory.with_name("lost"))
    vm.start(paused=True)
    vm.destroy()
    other = Vmkeep(host, home=work / "other-home")
    wrong = work / "wrong"
    wrong.write_text("battery horse\n")
    assert other.fails("state", "import", file, "--passphrase-file", wrong).code == "wrong-key"
    imported = other.json("state", "import", file, "--passphrase-file", words)["imported"]
    assert [(each["kind"], each["version"]) for each in imported["new"]] == [("nvram", 1), ("tpm", 1)]
    standing = {kind: each["standing"] for kind, each in other.json("state", "show", "guest")["state"]["kinds"].items()}
    assert standing == {"tpm": "changed", "nvram": "current"}
    other.backup("guest")
    other.json("state", "restore", "guest", "--kind", "tpm", "--version", "1", "--yes")
    assert (vm.tpm_state(), vm.nvram()) == (kept, variables)
    assert vm.load_from_tpm(len(_SEALED)) == _SEALED
    assert other.json("verify", "--all")["ok"] is True
    again_here = other.json("state", "import", file, "--passphrase-file", words)["imported"]
    assert (again_here["new"], len(again_here["known"])) == ([], 2)

    # What the lost home knew later is kept beside what counts here, and goes back when it is named.
    vm.change_tpm()
    later = vm.tpm_state()
    vmkeep.json("state", "capture", "guest")
    vmkeep.json("state", "export", "guest", "--kind", "tpm", "--to", work / "later", "--passphrase-file", words)
    vm.change_tpm()
    (late,) = other.json("state", "import", work / "later", "--passphrase-file", words)["imported"]["late"]
    assert late["sha256"] == hashlib.sha256(later).hexdigest()
    versions = {each["sha256"]: each for each in other.json("state", "versions", "guest", "--kind", "tpm")["versions"]}
    assert (versions[late["sha256"]]["conflict"], versions[late["sha256"]]["current"]) == (True, False)
    (conflict,) = other.json("state", "conflicts", "guest")["conflicts"]
    assert conflict["conflict"]["command"] == late["command"]
    other.json(*late["command"].split()[1:], "--yes")
    assert vm.tpm_state() == later
    shown = other.json("state", "show", "guest")["state"]["kinds"]["tpm"]
    assert shown["standing"] == "current"

    files = other.json("state", "import", file, "--output", work / "files", "--passphrase-file", words)["imported"]
    assert (work / "files" / "tpm2-00.permall").read_bytes() == kept
    assert len(files["files"]) == 2
