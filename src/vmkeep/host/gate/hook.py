"""What libvirt asks before it starts a VM: whether its TPM and UEFI variables are the ones that vmkeep knows.

This file is copied into vmkeep's home, and runs from there with Python's standard library alone: it takes nothing from
vmkeep, which may be away, and asks libvirt nothing, which waits for it. What it goes by are small files beside it:

- ``settings.json``: ``roots`` (where libvirt keeps state files), ``package`` (vmkeep's own directory);
- ``vms/UUID.json``: of each kind of state which contents are ``allowed`` and which are ``superseded``, as SHA-256;
- ``policies/UUID``: a word, strict where there is none;
- ``passes/UUID``: leave for one start.

It writes what it said last to ``said/UUID.json``, and to the system log when that was more than yes. Its exit status is
1, and its standard error what a person should know, when the VM is not to be started; libvirt shows that to whoever
asked for the start. libvirt tells of an incoming migration and of a restore from managed save right before the start
itself (tried with 9.0), and those pass: the memory that is loaded belongs to the state that came, or lies there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import sys
import time
from xml.parsers import expat

TYPE_CHECKING = False  # typing takes as long to load as all else here
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MARKS = "/run/vmkeep-gate"
"""Where an arrival is noted: not in the home, which may be full."""
FORMAT = 1
REFUSED = 1
STRICT, WARN, OFF = "strict", "warn", "off"
LIMIT_BYTES = {"tpm": 1 << 20, "nvram": 8 << 20}
BACKUP_SUFFIX = ".bak"
_MOST_XML_BYTES = 16 << 20
_MOST_NOTE_BYTES = 8 << 20
_ARRIVAL_SECONDS = 120.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")
_NAMES = {"tpm": "TPM state", "nvram": "UEFI variables"}


class Unsure(Exception):
    """What is needed to decide cannot be read."""


class Asked:
    """The VM that libvirt is about to start: its name, its UUID, and where its state files are, by kind."""

    def __init__(self, definition: bytes, roots: Mapping[str, str]) -> None:
        """``roots`` are the directories of libvirt's, "swtpm" and "nvram". Raises Unsure."""
        self._texts: dict[str, str] = {}
        self._attributes: dict[str, dict[str, str]] = {}
        self._path: list[str] = []
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = lambda _name: self._path.pop()
        parser.CharacterDataHandler = self._read
        try:
            parser.Parse(definition, True)
        except expat.ExpatError as error:
            raise Unsure(f"libvirt's definition of the VM cannot be read: {error}") from error
        self.name = self._text("domain/name")
        self.uuid = self._text("domain/uuid").strip().lower()
        if not _UUID.match(self.uuid):
            raise Unsure("libvirt's definition of the VM has no UUID")
        self.files = {**self._variables(roots), **self._tpm(roots)}

    def _begin(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        # The first of its kind counts, as for vmkeep.
        self._attributes.setdefault("/".join(self._path), attributes)

    def _read(self, text: str) -> None:
        where = "/".join(self._path)
        self._texts[where] = self._texts.get(where, "") + text

    def _text(self, where: str) -> str:
        return self._texts.get(where, "")

    def _variables(self, roots: Mapping[str, str]) -> dict[str, str]:
        loader = self._attributes.get("domain/os/loader", {})
        nvram = self._attributes.get("domain/os/nvram")
        wish = self._attributes.get("domain/os", {}).get("firmware")
        uefi = wish == "efi" or (wish is None and (loader.get("type") == "pflash" or nvram is not None))
        if not uefi or loader.get("stateless") == "yes":
            return {}
        if nvram is None:
            return {"nvram": f"{roots['nvram']}/{self.name}_VARS.fd"}
        if nvram.get("type", "file") != "file":
            return {}
        source = self._attributes.get("domain/os/nvram/source")
        path = self._text("domain/os/nvram").strip() if source is None else source.get("file") or source.get("dev")
        return {"nvram": path or f"{roots['nvram']}/{self.name}_VARS.fd"}

    def _tpm(self, roots: Mapping[str, str]) -> dict[str, str]:
        backend = self._attributes.get("domain/devices/tpm/backend", {})
        if backend.get("type") != "emulator":
            return {}
        directory, file = ("tpm1.2", "tpm-00") if backend.get("version") == "1.2" else ("tpm2", "tpm2-00")
        source = self._attributes.get("domain/devices/tpm/backend/source")
        if source is None:
            return {"tpm": f"{roots['swtpm']}/{self.uuid}/{directory}/{file}.permall"}
        if source.get("type") != "dir":
            return {}
        return {"tpm": f"{source.get('path')}/{file}.permall"}


def objections(asked: Asked, known: Mapping[str, Any]) -> list[str]:
    """Return why the VM is not to be started, a sentence for each of its state files. Raises Unsure.

    ``known`` is what vmkeep wrote of it.
    """
    found = []
    for kind, of_kind in sorted(known["kinds"].items()):
        path = asked.files.get(kind)
        why = None if path is None else _objection(kind, path, of_kind)
        if why is not None:
            found.append(why)
    return found


def _objection(kind: str, path: str, of_kind: Mapping[str, Any]) -> str | None:
    content = hash_of(path, kind)
    what = f"its {_NAMES[kind]} {path}"
    if content is None:
        if kind == "tpm" and hash_of(path + BACKUP_SUFFIX, kind) is not None:
            return f"{what} is missing, and swtpm would take the state before its last write, which is kept beside it"
        if "" in of_kind["allowed"]:
            return None
        made = "make a blank TPM" if kind == "tpm" else "begin with empty ones"
        return f"{what} {'is' if kind == 'tpm' else 'are'} missing, and libvirt would {made}"
    if content in of_kind["allowed"] or content not in of_kind["superseded"]:
        return None
    return f"{what} {'is' if kind == 'tpm' else 'are'} an older version that somebody put there"


def hash_of(path: str, kind: str) -> str | None:
    """Return the SHA-256 of a state file, None when there is none. Raises Unsure for what is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unsure(f"{path} cannot be read: {error.strerror}") from error
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unsure(f"{path} is no regular file")
        content = stream.read(LIMIT_BYTES[kind] + 1)
    if len(content) > LIMIT_BYTES[kind]:
        raise Unsure(f"{path} is larger than such a file can be")
    return hashlib.sha256(content).hexdigest()


class Gate:
    """The files beside this one."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def settings(self) -> dict[str, Any]:
        """Return the settings; raises Unsure."""
        settings = self._note("settings.json")
        if settings is None:
            raise Unsure(f"{self.directory}/settings.json is missing")
        return settings

    def known(self, uuid: str) -> dict[str, Any] | None:
        """Return what vmkeep wrote of a VM; None when it keeps none of its state. Raises Unsure."""
        if not os.path.isdir(f"{self.directory}/vms"):
            raise Unsure(f"{self.directory}/vms is missing")
        return self._note(f"vms/{uuid}.json")

    def policy(self, uuid: str) -> str:
        """Return the word for a VM; strict for none, and for one that is not known."""
        try:
            with open(f"{self.directory}/policies/{uuid}", encoding="ascii") as stream:
                word = stream.read(16).strip()
        except (OSError, ValueError):
            return STRICT
        return word if word in (WARN, OFF) else STRICT

    def take_pass(self, uuid: str) -> bool:
        """Use up the leave for one start; return whether there was one that still holds."""
        path = f"{self.directory}/passes/{uuid}"
        holds = _holds(path)
        with contextlib.suppress(OSError):
            os.unlink(path)
        return holds

    def say(self, asked: Asked, verdict: str, why: str) -> None:
        """Note what was said last; a full disk changes nothing of it."""
        said = {"when": time.time(), "vm": asked.name, "verdict": verdict, "why": why}
        path = f"{self.directory}/said/{asked.uuid}.json"
        with contextlib.suppress(OSError):
            with open(f"{path}.new", "w", encoding="utf-8") as stream:
                json.dump(said, stream)
            os.replace(f"{path}.new", path)

    def _note(self, name: str) -> dict[str, Any] | None:
        path = f"{self.directory}/{name}"
        try:
            with open(path, "rb") as stream:
                note = json.loads(stream.read(_MOST_NOTE_BYTES))
            if note["format"] != FORMAT:
                raise Unsure(f"{path} is of another release of vmkeep")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unsure(f"{path} cannot be read: {error}") from error
        assert isinstance(note, dict)
        return note


def leave(path: str, seconds: float) -> None:
    """Write a leave that holds for so long, and not past the host's next boot."""
    with open(f"{path}.new", "w", encoding="ascii") as stream:
        stream.write(f"{_boot()} {time.clock_gettime(time.CLOCK_BOOTTIME) + seconds}\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(f"{path}.new", path)


def _holds(path: str) -> bool:
    try:
        with open(path, encoding="ascii") as stream:
            boot, until = stream.read(200).split()
        return boot == _boot() and time.clock_gettime(time.CLOCK_BOOTTIME) <= float(until)
    except (OSError, ValueError):
        return False


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
        return stream.read(64).strip()


def note_arrival(uuid: str) -> None:
    """Note that a VM arrives from elsewhere, so that its start passes."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(MARKS, 0o700)
    about = os.lstat(MARKS)
    if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022:
        leave(f"{MARKS}/{uuid}", _ARRIVAL_SECONDS)


def arrives(uuid: str) -> bool:
    """Return whether a VM arrives just now. It does so once."""
    holds = _holds(f"{MARKS}/{uuid}")
    with contextlib.suppress(OSError):
        os.unlink(f"{MARKS}/{uuid}")
    return holds


def decide(gate: Gate, asked: Asked) -> tuple[str, str]:
    """Return the verdict on a start, "allowed", "warned" or "refused", and why. Raises Unsure."""
    known = gate.known(asked.uuid)
    if known is None:
        return "allowed", "no state of the VM is kept"
    policy = gate.policy(asked.uuid)
    if policy == OFF:
        return "allowed", "the gate is off for this VM"
    why = "; ".join(objections(asked, known))
    if not why:
        return "allowed", ""
    if policy == WARN:
        return "warned", why
    if gate.take_pass(asked.uuid):
        return "warned", f"{why}; somebody gave leave for this start"
    return "refused", why


def answer(arguments: list[str], directory: str, *, refuse: bool) -> int:
    """Answer libvirt: ``arguments`` are VM, operation, suboperation, extra; the definition is at standard input.

    ``refuse``: also start no VM of which nothing can be told.
    """
    operation, suboperation = arguments[1:3]
    if suboperation != "begin" or operation not in ("prepare", "migrate", "restore"):
        return 0
    gate = Gate(directory)
    try:
        settings = gate.settings()
        if not os.path.isdir(settings["package"]):
            _log(f"vmkeep is gone from {settings['package']}, so its hook lets every VM start; remove the hook")
            return 0
        asked = Asked(sys.stdin.buffer.read(_MOST_XML_BYTES), settings["roots"])
        if operation != "prepare":
            note_arrival(asked.uuid)
            return 0
        verdict, why = ("allowed", "it arrives from elsewhere") if arrives(asked.uuid) else decide(gate, asked)
    except Exception as error:  # whatever it is, it must not be why a VM does not start, unless that was asked for
        told = f"vmkeep's gate could not tell whether VM {arguments[0]!r} has the right state: {error}"
        _log(told)
        if refuse and operation == "prepare":
            print(_printable(f"{told}; it is told to refuse then"), file=sys.stderr)
            return REFUSED
        return 0
    gate.say(asked, verdict, why)
    if verdict == "allowed":
        return 0
    told = f"vmkeep: VM {asked.name!r}: {why}"
    _log(f"{told} ({verdict})")
    if verdict == "warned":
        return 0
    name = asked.name if re.match(r"[\w.+-]+\Z", asked.name, re.ASCII) else asked.uuid
    back, leave_given = f"`vmkeep state restore {name}` puts the newest back", f"`vmkeep hook pass {name}`"
    print(_printable(f"{told}. {back}; {leave_given} lets it start once as it is"), file=sys.stderr)
    return REFUSED


def _log(told: str) -> None:
    import syslog

    syslog.openlog("vmkeep-gate")
    syslog.syslog(syslog.LOG_WARNING, _printable(told))


def _printable(told: str) -> str:
    """Return it with what steers a terminal, or is no text, as escapes: names and paths are others'."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in told)


if __name__ == "__main__":
    sys.exit(answer(sys.argv[2:], os.path.dirname(os.path.abspath(__file__)), refuse=sys.argv[1] == "refuse"))
