"""What a row of the zoo is: disks, the rest of the VM, and what is promised for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lxml import etree

from tests.rig import MiB


@dataclass(frozen=True, slots=True)
class Kept:
    """It works, and what comes back is what was there."""

    def __str__(self) -> str:
        return "yes"


@dataclass(frozen=True, slots=True)
class Refused:
    """The command ends with this code before anything is changed, and its message or hint has these words."""

    code: str
    words: str

    def __str__(self) -> str:
        return f"no (`{self.code}`)"


@dataclass(frozen=True, slots=True)
class NotTried:
    """It has no meaning for this row, or cannot be had in a test; the reason stands in the row's remark."""

    def __str__(self) -> str:
        return "-"


Outcome = Kept | Refused | NotTried
KEPT, NOT_TRIED = Kept(), NotTried()


@dataclass(frozen=True, slots=True)
class Promise:
    """What each command does with a VM of this kind."""

    running: Outcome = KEPT
    meanwhile: Outcome = NOT_TRIED  # a backup while the row's condition holds
    off: Outcome = KEPT
    files: Outcome = KEPT
    as_vm: Outcome = KEPT
    in_place: Outcome = KEPT
    snapshot: Outcome = KEPT
    revert: Outcome = KEPT
    tpm: Outcome = KEPT  # taken out and put back; of a VM with one


@dataclass(frozen=True, slots=True)
class Edit:
    """A change of the definition: attributes of what ``path`` finds (made when missing), children put into it."""

    path: str
    attributes: tuple[tuple[str, str], ...] = ()
    children: tuple[str, ...] = ()
    remove: bool = False

    def __call__(self, root: etree._Element, place: Path) -> None:
        found = root.xpath(self.path)
        assert isinstance(found, list)
        assert found, f"the definition has no {self.path}"
        for element in found:
            assert isinstance(element, etree._Element)
            if self.remove:
                parent = element.getparent()
                assert parent is not None
                parent.remove(element)
                continue
            for name, value in self.attributes:
                element.set(name, value.replace("{place}", str(place)))
            for child in self.children:
                element.append(etree.fromstring(child.replace("{place}", str(place))))


@dataclass(frozen=True, slots=True)
class Image:
    """A disk of a row.

    ``layers`` are the formats of the images below, the lowest first. ``mode`` is how later points read it.
    """

    target: str = "vda"
    size_bytes: int = 8 * MiB
    format: str = "qcow2"
    bus: str = "virtio"
    options: tuple[str, ...] = ()  # qemu-img create -o
    layers: tuple[str, ...] = ()
    filled: bool = True
    full: bool = False  # every byte has data, not only some ranges
    compressed: bool = False
    block_bytes: int = 512
    place: str = "file"  # "file", "volume", "block", "nbd" or "link"
    file: str = ""  # its name, if a usual one will not do
    driver: tuple[tuple[str, str], ...] = ()  # attributes of <driver>
    elements: tuple[str, ...] = ()  # children of <disk>
    encrypted: bool = False
    mode: str = "incremental"
    device: str = "disk"
    medium: bool = True
    prepared: tuple[tuple[str, ...], ...] = ()  # qemu-img commands on the image before the VM is defined
    written: bool = True  # the guest writes to it
    in_place: bool = True  # a restore in place puts it back
    in_snapshot: bool = True  # a revert puts it back
    slice_at: int = 0  # where the disk begins in its file (<slices>)
    looks_like_qcow2: bool = False  # a raw disk on which the guest has written the header of an image
    fragile: bool = False  # QEMU 7.2 dies when the rig writes zeroes to it, or reads it by a job of its own


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration. ``what`` and ``remark`` are texts of the document."""

    name: str
    what: str
    images: tuple[Image, ...] = (Image(),)
    firmware: str = "bios"  # "uefi", or "own": UEFI by loader and variables that an edit names
    tpm: str | None = None  # the TPM's <backend>, or "external"
    tpm_encrypted: bool = False
    edits: tuple[Edit, ...] = ()
    devices: tuple[str, ...] = ()
    vm_name: str = ""
    directory: str = ""  # below the directory of disks
    paused: bool = False  # the VM is started paused and stays so
    condition: str = ""  # see conditions.py
    promise: Promise = field(default_factory=Promise)
    promise_of_libvirt_11: Promise | None = None  # where it is another than that of 9.0
    remark: str = ""
    sample: bool = False  # part of `make test`

    @property
    def uefi(self) -> bool:
        return self.firmware in ("uefi", "own")

    def promised(self, libvirt_version: int) -> Promise:
        """Return the promise for a libvirt, by its number."""
        if self.promise_of_libvirt_11 is not None and libvirt_version >= 11_000_000:
            return self.promise_of_libvirt_11
        return self.promise

    def but(self, **changes: object) -> Row:
        return replace(self, **changes)  # type: ignore[arg-type] # names and types are those of the fields
