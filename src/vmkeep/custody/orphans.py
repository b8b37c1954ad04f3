"""Which state on a host belongs to no VM: the rule, and what is known of its content. No I/O.

libvirt names swtpm's directory after the VM's UUID, in small letters with dashes, and UEFI variables after the VM's
name unless a definition says otherwise (qemu_conf.c). A directory of another name is not libvirt's, and nobody's
orphan. What vmkeep has beside a name (``.NAME.0123456789ab.partial``) makes that name an operation's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final, Literal

from vmkeep.values import dataclass

_VM: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_IN_WORK: Final = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.(?:partial|replaced|published)", re.DOTALL)
_VARIABLES: Final = re.compile(r"(?P<vm>.+)_VARS(?:\.ms)?\.(?:fd|qcow2)", re.DOTALL)
_STATES: Final = ("tpm2/tpm2-00.permall", "tpm1.2/tpm-00.permall")
_BACKUP: Final = ".bak"
WITHOUT_CONTENT: Final = frozenset((".lock",))
"""Files of swtpm's that hold nothing: it locks this one while it runs."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory of state, and which file or directory it is (device and inode)."""

    name: str
    identity: tuple[int, int]
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Claims:
    """What belongs to VMs, or to an operation that is not at its end.

    ``vms`` are UUIDs, ``paths`` absolute paths of files and directories, as they are named and with links followed,
    ``identities`` what is there, ``secrets`` UUIDs. ``doubts`` are sentences about what could not be read: a definition
    may name anything, so nothing is an orphan then.
    """

    vms: frozenset[str]
    paths: frozenset[str] = frozenset()
    identities: frozenset[tuple[int, int]] = frozenset()
    secrets: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OrphanFile:
    """A file of an orphan. ``name`` is its path below the orphan's, empty for the orphan itself.

    ``modified`` is ISO 8601 in UTC. ``mark`` changes with each write. ``sha256`` is None where the content was not
    read, and ``problem`` says why if that was not meant.
    """

    name: str
    size_bytes: int
    modified: str
    mark: str
    sha256: str | None = None
    problem: str | None = None

    @property
    def has_content(self) -> bool:
        """Whether something is lost with it."""
        return self.size_bytes > 0 and PurePosixPath(self.name).name not in WITHOUT_CONTENT


@dataclass(frozen=True, slots=True)
class Orphan:
    """State that belongs to no VM of the host: swtpm's directory of one, or a file of UEFI variables.

    ``vm_uuid`` is the VM's whose TPM it was; empty for UEFI variables, which do not tell. ``folders`` are the
    directories in it, and which they are. ``strange`` are sentences about what is no file of state. ``in_use``: a swtpm
    has it.
    """

    kind: Literal["tpm", "nvram"]
    path: str
    vm_uuid: str
    files: tuple[OrphanFile, ...]
    folders: tuple[tuple[str, str], ...] = ()
    strange: tuple[str, ...] = ()
    in_use: bool = False

    @property
    def size_bytes(self) -> int:
        """What its files hold together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def modified(self) -> str:
        """When the newest of its files was written to; empty for none."""
        return max((file.modified for file in self.files if file.has_content), default="")

    def place_of(self, file: OrphanFile) -> str:
        """Return the path of one of its files."""
        return f"{self.path}/{file.name}" if file.name else self.path


@dataclass(frozen=True, slots=True)
class OrphanSecret:
    """A secret of libvirt's for TPMs that no definition names. ``usage`` is the name of its use."""

    uuid: str
    usage: str


def orphaned_entries(kind: str, root: str, entries: Iterable[Entry], claims: Claims) -> tuple[Entry, ...]:
    """Return what belongs to nobody of a directory of state, "tpm" or "nvram", by name."""
    listed = tuple(entries)
    at_work = names_in_work(entry.name for entry in listed)
    return tuple(
        entry
        for entry in sorted(listed, key=lambda entry: entry.name)
        if entry.name not in at_work and _could_be(kind, entry) and not _is_claimed(kind, root, entry, claims)
    )


def orphaned_secrets(secrets: Mapping[str, str], claims: Claims) -> tuple[OrphanSecret, ...]:
    """Return the secrets, usages by UUID, that nothing names; none while there are doubts."""
    if claims.doubts:
        return ()
    return tuple(OrphanSecret(uuid, usage) for uuid, usage in sorted(secrets.items()) if uuid not in claims.secrets)


def names_in_work(names: Iterable[str]) -> frozenset[str]:
    """Return the names beside which an operation of vmkeep's has something: they are its own, also when it died."""
    matches = (_IN_WORK.fullmatch(name) for name in names)
    return frozenset(match["name"] for match in matches if match is not None)


def vm_of_variables(name: str) -> str | None:
    """Return the name of the VM that a file of UEFI variables was made for, as libvirt names it; None for others."""
    match = _VARIABLES.fullmatch(name)
    return match["vm"] if match is not None else None


def state_in(orphan: Orphan, name: str) -> str | None:
    """Return the name under which a file of an orphan is kept in a point; None for one that is no state of its own.

    swtpm 0.11 and later may have the state before the last write beside it, which is as good a state.
    """
    if orphan.kind == "nvram":
        return "nvram.fd"
    file = name.removesuffix(_BACKUP)
    return file if file in _STATES else None


def is_vm_uuid(text: str) -> bool:
    """Return whether a text is a UUID as libvirt writes it."""
    return _VM.fullmatch(text) is not None


def _could_be(kind: str, entry: Entry) -> bool:
    if kind == "tpm":
        return entry.is_directory and is_vm_uuid(entry.name)
    return not entry.is_directory and not entry.name.startswith(".")


def _is_claimed(kind: str, root: str, entry: Entry, claims: Claims) -> bool:
    if claims.doubts or entry.identity in claims.identities or (kind == "tpm" and entry.name in claims.vms):
        return True
    place = PurePosixPath(root, entry.name)
    # A definition may name a directory below swtpm's, or the one that holds all.
    return any(place == path or place in path.parents for path in map(PurePosixPath, claims.paths))


# -- what is known of it -----------------------------------------------------------------------------------------


class Keeping(StrEnum):
    """How the content of a file stands to the versions that are kept."""

    NEWEST = "newest"
    """It is the newest version."""
    OLDER = "older"
    """It is an older version."""
    CONFLICT = "conflict"
    """It is a version that never counted as the current one."""
    NOT_KEPT = "not-kept"
    """It is no version: it is lost with the file."""
    EMPTY = "empty"
    """There is nothing in it."""


@dataclass(frozen=True, slots=True)
class KeptContent:
    """A version that is known, whichever VM's. ``newest``: the newest accepted one of its VM and kind."""

    version_id: str
    vm_uuid: str
    kind: str
    generation: int
    sha256: str
    newest: bool
    conflict: bool = False


@dataclass(frozen=True, slots=True)
class JudgedFile:
    """A file of an orphan, and the version that it is; None where it is none."""

    file: OrphanFile
    keeping: Keeping
    version: KeptContent | None = None


def judge_orphan(orphan: Orphan, versions: Iterable[KeptContent], owners: Iterable[str] = ()) -> tuple[JudgedFile, ...]:
    """Say of each file of an orphan whether its content is kept.

    ``versions`` are those that count for it. Of several with one content, those of ``owners`` (UUIDs of the VMs that it
    may have belonged to) are meant first, and the newest before others.
    """
    own = frozenset(owners)
    mine = sorted(
        (version for version in versions if version.kind == orphan.kind),
        key=lambda version: (version.vm_uuid not in own, version.conflict, not version.newest, -version.generation),
    )
    return tuple(_judged(file, mine) for file in orphan.files)


def _judged(file: OrphanFile, versions: Iterable[KeptContent]) -> JudgedFile:
    if not file.has_content:
        return JudgedFile(file, Keeping.EMPTY)
    equal = next((version for version in versions if version.sha256 == file.sha256), None)
    if equal is None:
        return JudgedFile(file, Keeping.NOT_KEPT)
    if equal.conflict:
        return JudgedFile(file, Keeping.CONFLICT, equal)
    return JudgedFile(file, Keeping.NEWEST if equal.newest else Keeping.OLDER, equal)
