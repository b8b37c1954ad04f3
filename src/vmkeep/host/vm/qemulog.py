"""What a VM's log tells of its QEMU: the version that runs, and of one that died what it said last."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from vmkeep.errors import QemuDied, VmkeepError, VmNotFound
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.hypervisor.translation import shortened

# libvirt's own lines have a time; the command line that it writes down at a start is one of lines that go on.
_LIBVIRTS = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:.]+\+[0-9]{4}: ?(.*)")
_STARTED = "starting up"
_VERSION = re.compile(r"qemu version: ([0-9]{1,4})\.([0-9]{1,4})\.([0-9]{1,4})(?![0-9])")
_CRASHED = "reason=crashed"
_LOOKED_AT_BYTES = 64 << 10
# QEMU serves a disk in an I/O thread without the fault from here on, as far as is known: 10.0.13 was left early 72
# times and resumed, and was unharmed. Between 7.2 and 9.0 there may be versions without it.
SERVES_IO_THREADS_UNHARMED = (9, 0, 0)


def qemu_log(vm: str, uri: str) -> Path:
    """Return the file to which libvirt has a VM's QEMU write what it says."""
    if urlsplit(uri).path.rstrip("/").endswith("session"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "libvirt/qemu/log" / f"{vm}.log"
    return Path("/var/log/libvirt/qemu") / f"{vm}.log"


def qemu_version(vm: str, hypervisor: Hypervisor) -> tuple[int, int, int]:
    """Return the version of the QEMU that a VM was started with, which may be older than the one that is installed.

    Where the log does not tell, because it was rotated or cannot be read, it is the one that is installed.
    """
    started = [line for line in _lines(qemu_log(vm, hypervisor.uri)) if _STARTED in line]
    found = _VERSION.search(started[-1]) if started else None
    if found is not None:
        return int(found[1]), int(found[2]), int(found[3])
    installed = hypervisor.versions()[1]
    return installed // 1_000_000, installed // 1_000 % 1_000, installed % 1_000


def death_of(domain: Domain, uri: str, doing: str) -> QemuDied | None:
    """Return that the VM's QEMU died while we were ``doing`` something; None when it lives or was ended in order."""
    log = qemu_log(domain.name, uri)
    try:
        if not domain.state().killed:
            return None
        lines = _lines(log)
    except VmNotFound:
        # A transient VM is gone with its QEMU.
        lines = _lines(log)
        if not lines or _CRASHED not in lines[-1]:
            return None
    except VmkeepError:
        return None
    said = shortened(last_words(lines))
    message = f"QEMU died {doing}, and VM {domain.name!r} with it"
    return QemuDied(f"{message}; it said: {said}" if said else message, vm=domain.name, path=str(log))


def _lines(log: Path) -> list[str]:
    return _contents(log).decode(errors="replace").splitlines()


def _contents(log: Path) -> bytes:
    """Return the end of a log, nothing when it cannot be read. QEMU may write on meanwhile."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LOOKED_AT_BYTES))
            return stream.read(_LOOKED_AT_BYTES)
    except OSError:
        return b""


def last_words(lines: list[str]) -> str:
    """Return the last line of QEMU's own since its start; nothing when it was silent, as one that was killed is."""
    words = ""
    continued = False
    for line in lines:
        found = _LIBVIRTS.match(line)
        if found is not None and _STARTED in found[1]:
            words, continued = "", True
        elif continued:
            continued = line.endswith("\\")
        elif found is None:
            words = line.strip() or words
    return words
