"""What a store of UEFI variables says: Secure Boot, certificates, boot entries, what is marked, room. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from vmkeep.custody.bootentries import Booting, read_booting
from vmkeep.custody.certificates import Certificate, Signatures, read_signatures
from vmkeep.custody.microsoft import MicrosoftKeys, microsoft_keys
from vmkeep.custody.variables import (
    GLOBAL,
    KEY_DATABASES,
    SecureBoot,
    Variable,
    VariableStore,
    read_variables,
)
from vmkeep.values import dataclass

_SHIM: Final = "605dab50-e046-4300-abb6-3dd810dd8b23"
_BOOT_LOADER: Final = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
_FWUPD: Final = "0abba7dc-e516-4167-bbf5-4d9d1c739416"
_MEMORY: Final = "e20939be-32d4-41be-a150-897f85d49829"

# What shim and its MokManager, systemd-boot, fwupd and the firmware do at the next start (their documentation).
_MARKS: Final[Mapping[tuple[str, str], str]] = {
    (GLOBAL, "BootNext"): "the next start boots another entry, once",
    (_SHIM, "MokNew"): "keys of the owner of the machine are to be added: MokManager asks",
    (_SHIM, "MokDel"): "keys of the owner of the machine are to be deleted: MokManager asks",
    (_SHIM, "MokXNew"): "hashes are to be forbidden: MokManager asks",
    (_SHIM, "MokXDel"): "forbidden hashes are to be allowed again: MokManager asks",
    (_SHIM, "MokSB"): "shim is to check signatures or not: MokManager asks",
    (_SHIM, "MokDB"): "shim is to use db or not: MokManager asks",
    (_SHIM, "MokPW"): "MokManager gets another password: it asks",
    (_SHIM, "MokListTrustedNew"): "the kernel is to trust the owner's keys or not: MokManager asks",
    (_SHIM, "SbatPolicy"): "shim sets its revocations (SBAT) anew",
    (_SHIM, "SbatLevel"): "revocations of shim and GRUB (SBAT) that shim has set",
    (_BOOT_LOADER, "LoaderEntryOneShot"): "systemd-boot boots another entry, once",
    (_BOOT_LOADER, "LoaderConfigTimeoutOneShot"): "systemd-boot waits another time, once",
    (_MEMORY, "MemoryOverwriteRequestControl"): "the firmware clears the memory",
}
_LASTING: Final = frozenset({(_SHIM, "SbatLevel")})
_INDICATIONS: Final = (
    (0x01, "into the firmware's menu"),
    (0x04, "take capsules from the EFI system partition"),
    (0x10, "platform recovery"),
    (0x20, "recovery of the operating system"),
    (0x40, "refresh the configuration data"),
)


@dataclass(frozen=True, slots=True)
class KeyDatabase:
    """PK, KEK, db or dbx, and what lies in it."""

    name: str
    signatures: Signatures


@dataclass(frozen=True, slots=True)
class Mark:
    """A variable that tells what happens at the next start, or of shim's revocations; ``lasting`` for those."""

    name: str
    vendor_name: str
    what: str
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class NvramTold:
    """A store in words. ``problem`` says why not all of it could be read; ``microsoft`` and ``secure_boot`` are then
    unknown, which is None. The sizes are those of VariableStore.
    """

    secure_boot: SecureBoot | None
    variables: int
    databases: tuple[KeyDatabase, ...]
    microsoft: MicrosoftKeys | None
    booting: Booting
    marks: tuple[Mark, ...]
    room_bytes: int
    used_bytes: int
    blank_bytes: int
    problem: str | None

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """All that could be read in KEK and db: what signs, and what may change what signs."""
        return tuple(
            each
            for database in self.databases
            if database.name in ("KEK", "db")
            for each in database.signatures.certificates
            if each.expires is not None
        )

    @property
    def first_expiry(self) -> Certificate | None:
        """The certificate in KEK or db whose time ends first, or ended."""
        return min(self.certificates, key=lambda each: datetime.fromisoformat(each.expires or ""), default=None)


def tell_of_nvram(content: bytes) -> NvramTold:
    """Return what a store says. Any bytes have an answer."""
    store = read_variables(content)
    databases = key_databases(store)
    held = {each.name: frozenset(found.sha256 for found in each.signatures.certificates) for each in databases}
    return NvramTold(
        store.secure_boot,
        len(store.variables),
        databases,
        None if store.problem is not None else microsoft_keys(held),
        read_booting(store),
        tuple(_marks(store)),
        store.room_bytes,
        store.used_bytes,
        store.blank_bytes,
        store.problem,
    )


def key_databases(store: VariableStore) -> tuple[KeyDatabase, ...]:
    """Return PK, KEK, db and dbx, as far as they are there."""
    by_name = {each.name: each for each in store.variables if each.holds_signatures}
    return tuple(KeyDatabase(name, read_signatures(by_name[name].content)) for name in KEY_DATABASES if name in by_name)


def _marks(store: VariableStore) -> Iterator[Mark]:
    for each in store.variables:
        key = (each.vendor, each.name)
        if key in _MARKS:
            if key[0] != _MEMORY or each.content[:1] not in (b"", b"\0"):
                yield Mark(each.name, each.vendor_name, _MARKS[key], key in _LASTING)
        elif key == (GLOBAL, "OsIndications"):
            told = ", ".join(_indications(each))
            if told:
                yield Mark(each.name, each.vendor_name, f"at the next start: {told}")
        elif each.vendor == _FWUPD and each.name.startswith("fwupd-"):
            yield Mark(each.name, each.vendor_name, "fwupd is to update firmware")


def _indications(variable: Variable) -> Iterator[str]:
    bits = int.from_bytes(variable.content[:8], "little")
    yield from (word for bit, word in _INDICATIONS if bits & bit)
    if bits & ~sum(bit for bit, _ in _INDICATIONS):
        yield f"other requests ({bits:#x})"
