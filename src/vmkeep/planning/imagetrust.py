"""Whether a file that an image names may be followed. The only place where that is decided; no I/O.

An image's header says on which file the image stands (its backing file), and where its content is (its data file).
Whoever could write to the image could write that: a QEMU that its guest took over as well. So a name in a header gives
nobody more than he had: it is followed when libvirt says the same, when QEMU's user may open the file by itself, or
when the file lies where images of this host lie and is not another VM's (CVE-2024-32498 is what comes of less). Who
owns the image tells nothing of who wrote its header: libvirt gives images to QEMU's user when a VM starts, and back to
root when it stops.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from vmkeep.commandline import command_line, shell_word
from vmkeep.values import dataclass

FOLLOWED_FORMATS: Final = frozenset({"raw", "qcow2", "luks"})
"""What may stand below an image by the word of its header: none of these names a file without our reading it first."""

# QEMU takes a name for a local file when no colon comes before the first slash.
_PROTOCOL: Final = re.compile(r"([^:/]*):")


class Role(StrEnum):
    """What an image says of a file that it names."""

    BACKING = "backing file"
    DATA = "data file"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file that an image names, and what the host knows of it.

    ``image`` is the image that names it, ``path`` where it is. ``listed``: libvirt's definition of the VM, or its
    record of a snapshot, puts it there too. ``reachable``: the user that QEMU runs as may open it itself, for writing
    where it is a data file. ``beside``: it lies in the folder of the image or of a storage pool. ``used_by`` is another
    VM whose own disk it is; of a data file, in whose chain it is.
    """

    image: str
    role: Role
    path: str
    listed: bool
    reachable: bool
    beside: bool
    used_by: str | None = None
    user: str = "QEMU's user"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a name in a header is not followed, for people, and what to do."""

    message: str
    hint: str


def doubt_of_name(image: str, role: Role, name: str) -> Doubt | None:
    """Return why a name is none that is followed whatever is there: it is no plain file name."""
    found = _PROTOCOL.match(name)
    if found is None:
        return None
    what = "a description of QEMU's own" if found[1] == "json" else f"something of the kind {found[1]!r}"
    return Doubt(
        f"{image} names as its {role} {_short(name)}, which is {what} and no file: nothing was opened or connected to",
        _remedy(image, role, "FILE"),
    )


def doubt_of_format(
    image: str, path: str, backing_format: str | None, listed_format: str | None = None
) -> Doubt | None:
    """Return why a backing file is not followed for its format: only one that is named is, and not every one.

    ``listed_format`` is what libvirt takes the file for: as the disk of a VM, or below one.
    """
    if backing_format is None:
        return Doubt(
            f"{image} does not say which format its backing file {path} has, and vmkeep guesses none",
            "Write the format into the image while the VM is off: `qemu-img rebase -u -F FORMAT -b BACKING IMAGE`.",
        )
    if backing_format not in FOLLOWED_FORMATS and backing_format != listed_format:
        return Doubt(
            f"{image} stands on {path}, by its header an image of the format {_short(backing_format)}, which may name "
            "any other file: it was not opened",
            "Make it qcow2 while the VM is off (`qemu-img convert -O qcow2`), and let the image stand on that "
            "(`qemu-img rebase -u -F qcow2 -b BACKING IMAGE`).",
        )
    return None


def doubt_of(named: NamedFile) -> Doubt | None:
    """Return why the file is not followed; None: it may be."""
    if named.role is Role.DATA and named.used_by is not None:
        return Doubt(
            f"{named.image} names as its data file {named.path}, which belongs to VM {named.used_by}: nothing was "
            "written",
            _remedy(named.image, named.role, "FILE"),
        )
    if named.listed or named.reachable:
        return None
    if named.used_by is not None:
        return Doubt(
            f"{named.image} names as its {named.role} {named.path}, which is a disk of VM {named.used_by}: it was not "
            "opened",
            f"{_remedy(named.image, named.role, named.path)} Or say in the definition that it stands below the disk "
            "(<backingStore>).",
        )
    if named.beside:
        return None
    verb = "write" if named.role is Role.DATA else "read"
    return Doubt(
        f"{named.image} names as its {named.role} {named.path}, which {named.user} may not {verb}: the header may have "
        "been forged, and the file was not opened",
        f"{_remedy(named.image, named.role, named.path)} Or let QEMU's user {verb} it"
        + (", or say in the definition that it stands below the disk (<backingStore>)." if verb == "read" else "."),
    )


def _remedy(image: str, role: Role, path: str) -> str:
    if role is Role.DATA:
        return (
            "Nothing was read or written. If the name is right, move the file into the folder of the image (and say so "
            "in the image); if it is not, restore a point of the VM, and find out who changed the image."
        )
    rebase = command_line(f"qemu-img rebase -u -f qcow2 -F FORMAT -b {shell_word(path)}", image)
    return (
        f"Nothing was read. If the name is wrong, correct it with the VM off: `{rebase}`. If it is right, move the "
        "file into the folder of the image."
    )


def _short(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:117]}...")
