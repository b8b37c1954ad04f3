"""Reading a state file so that a torn, blank or foreign one never passes for good.

The VM is suspended while these run, so one read is of one instant (swtpm replaces its file by rename; QEMU
writes NVRAM in place, but not while the virtual processors stand still; and when it stops them it writes out what it
holds of a qcow2 image, which it does not do before). What can be checked here is size and substance; whether a TPM
state loads, swtpm says (``vmkeep.host.vm.trial``), which accepts flipped bytes of a plain one. Integrity later comes
from the hash that is kept with the content.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
import struct
from pathlib import Path
from typing import Literal

from vmkeep.errors import HostFileMissing, PermissionRefused, StateTorn, StateUnsupported
from vmkeep.filesystem import file_error, file_errors
from vmkeep.paths import ForeignLink, open_place, reopen
from vmkeep.values import dataclass

StateKind = Literal["tpm", "nvram"]

LIMIT_BYTES: dict[StateKind, int] = {"tpm": 1 << 20, "nvram": 8 << 20}
# The smallest permall that swtpm 0.7.1 was seen to write for a new TPM is about 6 KB; an empty or tiny file is
# what a full disk leaves.
_LEAST_BYTES: dict[StateKind, int] = {"tpm": 512, "nvram": 4096}

_QCOW2, _QCOW2_HEADER_BYTES = b"QFI\xfb", 104


@dataclass(frozen=True, slots=True, repr=False)
class CapturedState:
    """A state file's content as it was read, with what is needed to put it back elsewhere."""

    kind: StateKind
    file: str
    content: bytes
    owner: str
    group: str
    mode: int
    source: str

    @property
    def sha256(self) -> str:
        """Return the hash of the content in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def __repr__(self) -> str:
        # The content of a TPM is a secret, and reprs end up in logs.
        return f"CapturedState({self.kind}, {self.source}, {len(self.content)} bytes)"


def capture(kind: StateKind, path: Path, *, file: str, vm: str, qcow2: bool = False) -> CapturedState:
    """Read a state file of a VM that stands still.

    ``file`` is the name under which it is kept ("tpm2/tpm2-00.permall", "nvram.fd"). ``qcow2``: it is such an image,
    and kept as it is. Raises HostFileMissing, PermissionRefused, StateTorn for a file that is too small, blank or no
    such image, and StateUnsupported for one over the limit (1 MiB for a TPM, 8 MiB for NVRAM), that is no regular file
    or not whole by itself.
    """
    try:
        descriptor = open_state(path)
    except FileNotFoundError as error:
        raise HostFileMissing(
            f"the {kind} state of VM {vm!r} is not at {path}",
            vm=vm,
            path=str(path),
            hint="Without it a point would not be whole. Check that the VM's state files are where libvirt keeps them.",
        ) from error
    except PermissionError as error:
        raise PermissionRefused(f"the {kind} state of VM {vm!r} cannot be read", vm=vm, path=str(path)) from error
    except ForeignLink as error:
        raise StateUnsupported(
            f"the {kind} state is reached through {error.filename}, a link that a user other than root made",
            vm=vm,
            path=str(path),
            hint="Nothing was read. Put the file or folder itself in the place of the link.",
        ) from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL):  # a link or a pipe, which is not opened
            raise file_error(error, path, "read") from error
        raise StateUnsupported(f"the {kind} state cannot be opened: {error.strerror}", vm=vm, path=str(path)) from error
    with file_errors(path, "read"), os.fdopen(descriptor, "rb") as stream:
        about = os.fstat(descriptor)
        limit = LIMIT_BYTES[kind]
        if about.st_size > limit:
            raise StateUnsupported(
                f"the {kind} state has {about.st_size} bytes, more than the {limit} that it can have",
                vm=vm,
                path=str(path),
            )
        content = stream.read(limit + 1)
    if len(content) != about.st_size:
        raise StateTorn(f"the {kind} state changed its size while it was read", vm=vm, path=str(path))
    if len(content) < _LEAST_BYTES[kind] or not content.strip(content[:1]):
        raise StateTorn(f"the {kind} state is blank or cut off ({len(content)} bytes)", vm=vm, path=str(path))
    if qcow2:
        _check_qcow2(content, vm, path)
    return CapturedState(
        kind,
        file,
        content,
        _user_name(about.st_uid),
        _group_name(about.st_gid),
        stat.S_IMODE(about.st_mode),
        str(path),
    )


def open_state(path: Path) -> int:
    """Open a state file for reading, a regular file and no link, and wait for nobody.

    Its folder may belong to QEMU's or swtpm's user: a pipe in its place would keep us, and a guest that stands still
    for it, for ever. Raises ForeignLink and OSError.
    """
    place = open_place(path, last_may_be_link=False)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return reopen(place, os.O_RDONLY)
    finally:
        os.close(place)


def _check_qcow2(content: bytes, vm: str, path: Path) -> None:
    """Refuse what is no qcow2 image, and one that is not whole by itself: with a backing file or a data file."""
    if not content.startswith(_QCOW2):
        raise StateTorn("the nvram state is not the qcow2 image that the definition says", vm=vm, path=str(path))
    if needs_another_file(content):
        raise StateUnsupported(
            "the nvram state is a qcow2 image that needs another file: a backing file or a data file",
            vm=vm,
            path=str(path),
            hint="Make it one image while the VM is off (qemu-img convert).",
        )


def needs_another_file(content: bytes) -> bool:
    """Return whether a state file is a qcow2 image that names another file, which QEMU would open as well."""
    # The header: magic, version, offset of the backing file's name; from version 3 on, at 72, the features that a
    # reader must know, of which bit 2 is a data file (QEMU, docs/interop/qcow2.txt).
    if not content.startswith(_QCOW2) or len(content) < _QCOW2_HEADER_BYTES:
        return False
    _, version, backing = struct.unpack_from(">4sIQ", content)
    features = struct.unpack_from(">Q", content, 72)[0] if version >= 3 else 0
    return bool(backing or features & 4)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
