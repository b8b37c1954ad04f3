"""The gate's files, and the hook as libvirt runs it: a program with the definition at its standard input."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from vmkeep.config import load_settings
from vmkeep.custody.gate import GatedState, GatePolicy
from vmkeep.errors import HostFileMissing, InvalidRequest, TargetExists
from vmkeep.host.gate import hook, installation
from vmkeep.host.gate.installation import GatePlace
from vmkeep.host.tasks.gate import GatedVm
from vmkeep.statefiles.location import StateRoots

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
OLD, NEW, OTHER = b"old state", b"new state", b"a state that nobody kept yet"
SIXTY_SECONDS = 60.0


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Bed:
    """An installed gate, whose VM has a TPM of which two versions are kept."""

    def __init__(self, directory: Path, *, uri: str = "qemu:///system") -> None:
        self.home = directory / "home"
        self.home.mkdir(mode=0o700)
        self.roots = directory / "libvirt"
        self.tpm = self.roots / "swtpm" / UUID / "tpm2" / "tpm2-00.permall"
        self.tpm.parent.mkdir(parents=True)
        self.tpm.write_bytes(NEW)
        self.place = GatePlace(load_settings(home=self.home, environ={}, uri=uri))
        self.vm = GatedVm(UUID, (GatedState("tpm", (sha256(NEW),), (sha256(OLD),)),))

    def start(self, *, name: str = "win11", operation: str = "prepare") -> subprocess.CompletedProcess[str]:
        """Ask the hook as libvirt does before a start."""
        definition = (
            f"<domain type='kvm'><name>{name}</name><uuid>{UUID}</uuid><devices>"
            "<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices></domain>"
        )
        command = [str(installation._HOOK), name, operation, "begin", "-"]
        return subprocess.run(command, input=definition, capture_output=True, text=True, check=False, env={})

    def said(self) -> str:
        (said,) = self.place.status().said
        return said.verdict


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    hooks = tmp_path / "etc" / "hooks" / "qemu.d"
    monkeypatch.setattr(installation, "_HOOKS", hooks)
    monkeypatch.setattr(installation, "_HOOK", hooks / "vmkeep")
    monkeypatch.setattr(installation, "_DAEMONS", {})
    bed = Bed(tmp_path)
    roots = StateRoots(bed.roots / "swtpm", bed.roots / "nvram")
    monkeypatch.setattr(StateRoots, "of", lambda _uri: roots)
    bed.place.install((bed.vm,), refuse_unsure=False)
    return bed


def test_newest_and_changed_state_may_start_and_an_older_or_lost_one_not(bed: Bed) -> None:
    for content in (NEW, OTHER):
        bed.tpm.write_bytes(content)
        started = bed.start()
        assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
    assert bed.said() == "allowed"

    bed.tpm.write_bytes(OLD)
    refused = bed.start()
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == (
        f"vmkeep: VM 'win11': its TPM state {bed.tpm} is an older version that somebody put there. `vmkeep state "
        "restore win11` puts the newest back; `vmkeep hook pass win11` lets it start once as it is\n"
    )
    assert bed.said() == "refused"

    bed.tpm.rename(bed.tpm.with_name("tpm2-00.permall.bak"))
    assert "swtpm would take the state before its last write" in bed.start().stderr
    bed.tpm.with_name("tpm2-00.permall.bak").unlink()
    assert "is missing, and libvirt would make a blank TPM" in bed.start().stderr


def test_name_that_a_shell_would_read_otherwise_is_not_in_a_command(bed: Bed) -> None:
    bed.tpm.unlink()
    told = bed.start(name="ü;reboot").stderr
    assert "VM 'ü;reboot'" in told
    assert f"`vmkeep state restore {UUID}`" in told


def test_name_cannot_steer_a_terminal(bed: Bed) -> None:
    bed.tpm.unlink()
    told = bed.start(name="a&#x202e;&#x85;b").stderr
    assert told.strip().isprintable()
    assert "VM 'a\\u202e\\x85b'" in told


def test_other_questions_of_libvirts_are_not_the_gates(bed: Bed) -> None:
    bed.tpm.unlink()
    for operation in ("start", "started", "stopped", "release", "reconnect", "attach"):
        assert bed.start(operation=operation).returncode == 0
    assert bed.place.status().said == ()


def test_policy_and_leave(bed: Bed) -> None:
    bed.tpm.write_bytes(OLD)
    bed.place.set_policy(UUID, GatePolicy.WARN)
    assert (bed.start().returncode, bed.said()) == (0, "warned")
    bed.place.set_policy(UUID, GatePolicy.OFF)
    assert (bed.start().returncode, bed.said()) == (0, "allowed")
    assert bed.place.status().policies == {UUID: "off"}
    bed.place.set_policy(UUID, GatePolicy.STRICT)
    assert bed.start().returncode == 1

    bed.place.let_start(UUID, SIXTY_SECONDS)
    assert (bed.start().returncode, bed.said()) == (0, "warned")
    assert bed.start().returncode == 1  # it was for one start
    bed.place.let_start(UUID, 0.0)
    time.sleep(0.02)
    assert bed.start().returncode == 1
    # Of another boot of the host.
    note = bed.home / "gate" / "passes" / UUID
    note.write_text("11111111-2222-3333-4444-555555555555 99999999999.0\n")
    assert bed.start().returncode == 1


def test_what_it_goes_by_is_renewed(bed: Bed) -> None:
    bed.tpm.write_bytes(OLD)
    bed.place.renew(GatedVm(UUID, (GatedState("tpm", (sha256(NEW), sha256(OLD)), ()),)))
    assert bed.start().returncode == 0
    bed.tpm.unlink()
    assert bed.start().returncode == 1
    bed.place.renew(GatedVm(UUID, ()))  # nothing of it is kept
    assert bed.start().returncode == 0
    assert bed.place.status().gated == 0


@pytest.mark.parametrize("unsure", [False, True], ids=["allowed", "refused"])
@pytest.mark.parametrize(
    "fault", ["home", "program", "torn", "foreign", "folder", "state-link", "state-pipe", "state-large", "settings"]
)
def test_when_unsure_a_vm_starts_unless_that_was_forbidden(bed: Bed, fault: str, *, unsure: bool) -> None:
    bed.place.install((bed.vm,), refuse_unsure=unsure)
    bed.tpm.write_bytes(OLD)
    gate = bed.home / "gate"
    match fault:
        case "home":
            bed.home.rename(bed.home.with_name("away"))
        case "program":
            (gate / "hook.py").unlink()
        case "torn":
            (gate / "vms" / f"{UUID}.json").write_text('{"format": 1, "kinds": {"tpm"')
        case "foreign":
            (gate / "vms" / f"{UUID}.json").write_text('{"format": 2, "kinds": {}}')
        case "folder":
            (gate / "vms").rename(gate / "away")
        case "settings":
            (gate / "settings.json").write_text("[]")
        case "state-link":
            bed.tpm.unlink()
            bed.tpm.symlink_to("/dev/zero")
        case "state-pipe":
            bed.tpm.unlink()
            os.mkfifo(bed.tpm)
        case "state-large":
            bed.tpm.write_bytes(bytes((1 << 20) + 1))
    asked = bed.start()
    assert asked.returncode == (1 if unsure else 0), asked.stderr
    assert bool(asked.stderr) == unsure
    assert bed.start(operation="stopped").returncode == 0


def test_gate_of_a_vmkeep_that_is_gone_lets_everything_start(bed: Bed) -> None:
    bed.tpm.write_bytes(OLD)
    settings = bed.home / "gate" / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "package": "/usr/lib/gone"}))
    assert bed.start().returncode == 0
    assert "not the one of this release" in str(bed.place.status().problem)
    bed.place.renew(bed.vm)  # as the next point does, when an upgrade has moved it
    assert bed.place.status().problem is None
    assert bed.start().returncode == 1


def test_refusal_stands_where_it_cannot_be_written_down(bed: Bed) -> None:
    """As with a full disk: what is said last is lost, the verdict is not."""
    (bed.home / "gate" / "said").rename(bed.home / "gate" / "away")
    assert bed.start().returncode == 0
    bed.tpm.write_bytes(OLD)
    assert bed.start().returncode == 1


def test_it_goes_without_a_trace_but_for_policies(bed: Bed) -> None:
    bed.place.set_policy(UUID, GatePolicy.WARN)
    assert bed.place.remove()
    assert not installation._HOOK.exists()
    assert [str(path.relative_to(bed.home)) for path in sorted((bed.home / "gate").rglob("*")) if path.is_file()] == [
        f"gate/policies/{UUID}"
    ]
    assert not bed.place.remove()
    with pytest.raises(HostFileMissing, match="no gate"):
        bed.place.let_start(UUID, 1.0)
    with pytest.raises(HostFileMissing, match="no gate"):
        bed.place.renew(bed.vm)
    bed.place.install((bed.vm,), refuse_unsure=False)
    assert bed.place.status().policies == {UUID: "warn"}


def test_hook_of_somebody_else_is_left_alone(bed: Bed) -> None:
    other = GatePlace(load_settings(home=bed.home.with_name("other"), environ={}, uri="qemu:///system"))
    with pytest.raises(TargetExists, match="not the hook of this installation"):
        other.remove()
    with pytest.raises(TargetExists, match="not the hook of this installation"):
        other.install((), refuse_unsure=False)
    assert not (bed.home.with_name("other") / "gate").exists()
    installation._HOOK.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(TargetExists):
        bed.place.remove()
    assert "not the hook of this installation" in str(bed.place.status().problem)


def test_gate_that_is_made_anew_is_as_strict_as_it_was(bed: Bed) -> None:
    assert not bed.place.status().refuses_unsure
    bed.place.install((bed.vm,), refuse_unsure=True)
    bed.place.install((bed.vm,), refuse_unsure=None)
    assert bed.place.status().refuses_unsure
    bed.place.install((bed.vm,), refuse_unsure=False)
    assert not bed.place.status().refuses_unsure


def test_session_has_no_gate(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o700)
    place = GatePlace(load_settings(home=tmp_path / "home", environ={}, uri="qemu:///session"))
    with pytest.raises(InvalidRequest, match="system's libvirt"):
        place.install((), refuse_unsure=False)


def test_files_are_for_root_alone_and_the_hook_for_libvirt(bed: Bed) -> None:
    assert installation._HOOK.stat().st_mode & 0o777 == 0o755
    for path in (bed.home / "gate").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert [path.name for path in installation._HOOKS.iterdir()] == ["vmkeep"]
    assert bed.place.status().problem is None
    installation._HOOK.chmod(0o644)
    assert "not executable" in str(bed.place.status().problem)


def test_arrival_is_noted_once_and_in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "MARKS", str(tmp_path / "marks"))
    assert not hook.arrives(UUID)
    hook.note_arrival(UUID)
    assert hook.arrives(UUID)
    assert not hook.arrives(UUID)
    (tmp_path / "marks").chmod(0o777)  # somebody else may have made it
    hook.note_arrival(UUID)
    assert not hook.arrives(UUID)
    assert not list((tmp_path / "marks").iterdir())
