"""The gate's files on the host: libvirt's hook, and in vmkeep's home what it goes by.

The hook in libvirt's directory is three lines of shell that give way when the home, Python or vmkeep is gone: a product
that is not there may not be why a VM does not start. What decides is ``vmkeep.host.gate.hook``, copied into the home.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from vmkeep.config import Settings
from vmkeep.custody.gate import GatedState, GatePolicy
from vmkeep.errors import HostFileMissing, InvalidRequest, TargetExists
from vmkeep.filesystem import file_errors, make_directory, replace_file, sync_directory
from vmkeep.host.gate import hook
from vmkeep.host.tasks.gate import GatedVm, GateStatus, HookInstalled, SaidOfVm
from vmkeep.statefiles.location import StateRoots

# libvirt runs every executable file in there, by name: https://libvirt.org/hooks.html
_HOOKS: Final = Path("/etc/libvirt/hooks/qemu.d")
_HOOK: Final = _HOOKS / "vmkeep"
_OURS: Final = "# vmkeep's gate"
_PYTHON: Final = "/usr/bin/python3"
_DAEMONS: Final = {"/run/virtqemud.pid": "virtqemud", "/run/libvirtd.pid": "libvirtd"}
_PACKAGE: Final = str(Path(hook.__file__).parents[2])
_FOLDERS: Final = ("vms", "policies", "passes", "said")


class GatePlace:
    """The gate of this installation."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._directory = settings.home / "gate"

    # -- the hook ----------------------------------------------------------------------------------------------

    def install(self, vms: Iterable[GatedVm], *, refuse_unsure: bool | None) -> HookInstalled:
        """Write what the hook goes by, then the hook, and have libvirt look for hooks again.

        Raises InvalidRequest where libvirt is not the system's, TargetExists for a hook of that name that is another's,
        and what the file system refuses, by name.
        """
        if not urlsplit(self._settings.uri).path.endswith("/system"):
            raise InvalidRequest(
                f"the gate is for the VMs of the system's libvirt, not for those of {self._settings.uri}",
                hint="Use it with `--connect qemu:///system`, as root.",
            )
        self._refuse_foreign_hook()
        if refuse_unsure is None:
            refuse_unsure = self._read_settings().get("unsure") == "refuse"
        unsure = "refuse" if refuse_unsure else "allow"
        with file_errors(self._directory):
            for folder in (self._directory, *(self._directory / name for name in _FOLDERS)):
                make_directory(folder)
            self._put_program(unsure)
            wanted = {vm.uuid for vm in vms if vm.states}
            for vm in vms:
                self._write_vm(vm)
            for note in (self._directory / "vms").glob("*.json"):
                if note.stem not in wanted:
                    note.unlink()
        with file_errors(_HOOK):
            make_directory(_HOOKS, 0o755)
            self._sweep()
            replace_file(_HOOK, self._script(unsure).encode())
            _HOOK.chmod(0o755)
        return HookInstalled(str(_HOOK), _make_libvirt_look())

    def remove(self) -> bool:
        """Take the hook away, then what it goes by; return whether there was a hook. Policies stay."""
        present = _HOOK.exists()
        if present:
            self._refuse_foreign_hook()
        with file_errors(_HOOK, "removed"):
            self._sweep()
            if present:
                _HOOK.unlink()
                sync_directory(_HOOKS)
            for name in ("vms", "passes", "said"):
                shutil.rmtree(self._directory / name, ignore_errors=True)
            for name in ("hook.py", "settings.json"):
                (self._directory / name).unlink(missing_ok=True)
        return present

    def status(self) -> GateStatus:
        """Return how the gate stands."""
        return GateStatus(
            hook=str(_HOOK) if _HOOK.exists() else None,
            problem=self._problem(),
            refuses_unsure=self._read_settings().get("unsure") == "refuse",
            gated=len(list((self._directory / "vms").glob("*.json"))),
            policies=self._policies(),
            said=tuple(sorted(self._said(), key=lambda said: said.when, reverse=True)),
        )

    # -- what it goes by ---------------------------------------------------------------------------------------

    def is_there(self) -> bool:
        """Return whether there is a gate that goes by something."""
        return (self._directory / "settings.json").exists()

    def renew(self, vm: GatedVm) -> None:
        """Let it go by this from now on. Raises what the file system refuses.

        A gate that another release made is brought along: that one will be removed, and the gate would give way.
        """
        self._require_gate()
        with file_errors(self._directory / "vms"):
            self._write_vm(vm)
            if self._is_of_another_release():
                self._put_program(str(self._read_settings().get("unsure", "allow")))

    def set_policy(self, uuid: str, policy: GatePolicy) -> None:
        """Say what it does about a VM."""
        self._require_gate()
        path = self._directory / "policies" / uuid
        with file_errors(path):
            if policy is GatePolicy.STRICT:
                path.unlink(missing_ok=True)
            else:
                replace_file(path, f"{policy}\n".encode())

    def let_start(self, uuid: str, seconds: float) -> None:
        """Give leave for one start."""
        self._require_gate()
        path = self._directory / "passes" / uuid
        with file_errors(path):
            hook.leave(str(path), seconds)

    def _sweep(self) -> None:
        """Remove what was half written when a process was killed; none of it was ever executable."""
        for left in (*_HOOKS.glob(".vmkeep.*.partial"), *self._directory.rglob(".*.partial")):
            left.unlink(missing_ok=True)

    def _put_program(self, unsure: str) -> None:
        replace_file(self._directory / "hook.py", Path(hook.__file__).read_bytes())
        replace_file(self._directory / "settings.json", json.dumps(self._own_settings(unsure)).encode())

    def _read_settings(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            settings = json.loads((self._directory / "settings.json").read_bytes())
            return settings if isinstance(settings, dict) else {}
        return {}

    def _is_of_another_release(self) -> bool:
        copied = b""
        with suppress(OSError):
            copied = (self._directory / "hook.py").read_bytes()
        return copied != Path(hook.__file__).read_bytes() or self._read_settings().get("package") != _PACKAGE

    def _write_vm(self, vm: GatedVm) -> None:
        path = self._directory / "vms" / f"{vm.uuid}.json"
        if not vm.states:
            path.unlink(missing_ok=True)
            return
        kinds = {state.kind: _contents(state) for state in vm.states}
        content = json.dumps({"format": hook.FORMAT, "kinds": kinds}).encode()
        with suppress(OSError):
            if path.read_bytes() == content:
                return
        replace_file(path, content)

    def _own_settings(self, unsure: str) -> dict[str, Any]:
        roots = StateRoots.of(self._settings.uri)
        return {
            "format": hook.FORMAT,
            "roots": {"swtpm": str(roots.swtpm), "nvram": str(roots.nvram)},
            "package": _PACKAGE,
            "unsure": unsure,
        }

    def _script(self, unsure: str) -> str:
        """Return the hook. Without its Python it lets every VM start, or says why it does not."""
        program = shlex.quote(str(self._directory / "hook.py"))
        python = shlex.quote(_PYTHON if os.access(_PYTHON, os.X_OK) else os.path.realpath(sys.executable))
        otherwise = "exit 0"
        if unsure == "refuse":
            told = shlex.quote(f"vmkeep's gate cannot tell whether this VM has the right state: {program} is not there")
            otherwise = f'case "$2" in prepare) echo {told} >&2; exit 1;; esac'
        return (
            f"#!/bin/sh\n{_OURS}, written by `vmkeep hook install`; `vmkeep hook remove` takes it away.\n"
            # libvirt asks three times for each start, and waits each time: Python is begun for what matters.
            'case "$2 $3" in "prepare begin"|"migrate begin"|"restore begin");; *) exit 0;; esac\n'
            f'if [ -r {program} ] && [ -x {python} ]; then exec {python} -I -S -B {program} {unsure} "$@"; fi\n'
            f"{otherwise}\n"
        )

    def _refuse_foreign_hook(self) -> None:
        with file_errors(_HOOK, "read"):
            script = _HOOK.read_text("utf-8", "replace") if _HOOK.exists() else None
        if script is None:
            return
        if _OURS not in script or shlex.quote(str(self._directory / "hook.py")) not in script:
            raise TargetExists(
                f"{_HOOK} is not the hook of this installation of vmkeep",
                path=str(_HOOK),
                hint="If it is of another home (VMKEEP_HOME), remove it there; else move the file away.",
            )

    def _require_gate(self) -> None:
        if not self.is_there():
            raise HostFileMissing(
                "this host has no gate", path=str(_HOOK), hint="`vmkeep hook install` makes it, and protects all VMs."
            )

    def _problem(self) -> str | None:
        """Return why a gate that is there does not do its work."""
        if not _HOOK.exists():
            return f"{_HOOK} is gone, and what it goes by is not" if self.is_there() else None
        if not os.access(_HOOK, os.X_OK):
            return f"{_HOOK} is not executable, so libvirt does not call it"
        try:
            self._refuse_foreign_hook()
        except TargetExists as error:
            return error.message
        if self._is_of_another_release():
            return "its program is not the one of this release of vmkeep, or is not there"
        return None

    def _policies(self) -> dict[str, str]:
        found = {}
        for path in (self._directory / "policies").glob("*"):
            policy = hook.Gate(str(self._directory)).policy(path.name)
            if policy != hook.STRICT:
                found[path.name] = policy
        return found

    def _said(self) -> Iterable[SaidOfVm]:
        for path in (self._directory / "said").glob("*.json"):
            with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
                said = json.loads(path.read_bytes())
                when = datetime.fromtimestamp(float(said["when"]), UTC).isoformat(timespec="milliseconds")
                yield SaidOfVm(path.stem, str(said["vm"]), when, str(said["verdict"]), str(said["why"]))


def _contents(state: GatedState) -> dict[str, list[str]]:
    return {"allowed": list(state.allowed), "superseded": list(state.superseded)}


def _make_libvirt_look() -> bool:
    """Have the daemon look for hooks again; return whether one was asked.

    A daemon that found no hook when it was started calls none that comes later, until it reads its configuration again
    (tried with 9.0: not called, called after SIGHUP). VMs do not notice.
    """
    told = False
    for file, name in _DAEMONS.items():
        with suppress(OSError, ValueError):
            pid = int(Path(file).read_text("ascii"))
            if Path(f"/proc/{pid}/comm").read_text("ascii").strip() == name:
                os.kill(pid, signal.SIGHUP)
                told = True
    return told
