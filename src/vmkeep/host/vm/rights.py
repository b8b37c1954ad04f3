"""What the user that vmkeep runs as may not do with a VM's files: looked at before anything is begun or made.

libvirt does for its users what it does itself, with its own rights: definitions, checkpoints, snapshots of disks. A
point, a restore and a snapshot's state need files that libvirt's daemon, QEMU and swtpm own, and libvirt hands none of
them out. So a member of the group libvirt may do the one, and only root (or the user of a session's libvirt) the other.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from vmkeep.config import Settings
from vmkeep.definition import Definition, DefinitionError, SourceKind, parse_definition
from vmkeep.errors import PermissionRefused, StateUnsupported, VmkeepError
from vmkeep.host.records.sockets import SOCKET_DIRECTORIES
from vmkeep.host.vm.definition import with_volumes_found
from vmkeep.host.vm.states import state_sources
from vmkeep.hypervisor import Domain, Hypervisor, RunState
from vmkeep.planning.bitmaps import obstacle_to_bitmaps
from vmkeep.statefiles.location import StateRoots
from vmkeep.transfer.imagefile import describe_image, look_at
from vmkeep.values import dataclass

STATE_NAMES = {"tpm": "TPM state", "nvram": "UEFI variables"}


@dataclass(frozen=True, slots=True)
class Lacking:
    """A file or directory that this user may not use as a point needs it; ``verb`` says how: read, write or enter."""

    verb: str
    what: str
    path: str

    def __str__(self) -> str:
        return f"this user may not {self.verb} {self.what} ({self.path})"


def lacking_rights(
    definition: Definition, uri: str, *, running: bool, left_out: Collection[str], looking: bool = False
) -> tuple[Lacking, ...]:
    """Return what this user lacks for a point of a VM. ``left_out`` are disks that will not be in it.

    ``looking``: no image is opened but the top one of each disk.

    Root lacks nothing, as far as this can tell.
    """
    if os.geteuid() == 0:
        return ()
    images = _of_images(definition, running=running, left_out=left_out, looking=looking)
    return (*images, *_of_states(definition, uri), *(_of_job(uri) if running else ()))


def refuse_without_rights(domain: Domain, hypervisor: Hypervisor, settings: Settings) -> None:
    """Raise PermissionRefused when this user lacks rights that a point of the VM, or a restore over it, needs."""
    if os.geteuid() == 0:
        return
    try:
        definition = with_volumes_found(parse_definition(domain.definition_xml()), hypervisor)
    except DefinitionError:
        return  # told by what needs it
    running = domain.state().run in (RunState.RUNNING, RunState.PAUSED)
    never = settings.of_vm(domain.name, domain.uuid).exclude
    lacking = lacking_rights(definition, hypervisor.uri, running=running, left_out=never)
    if lacking:
        raise PermissionRefused(
            f"VM {domain.name!r}: {'; '.join(map(str, lacking))}",
            vm=domain.name,
            path=lacking[0].path,
            hint="Nothing was begun. Run the command as root (with sudo), whose points are in an installation of their "
            "own. docs/guide/unprivileged.md says what other users may do.",
        )


def may_be_there(path: Path) -> bool:
    """Return whether a file is there, or may be: its directory may not be looked into."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _of_images(definition: Definition, *, running: bool, left_out: Collection[str], looking: bool) -> Iterator[Lacking]:
    for disk in definition.disks:
        if disk.removable or disk.source is None or disk.target in left_out:
            continue
        if disk.source_kind not in (SourceKind.FILE, SourceKind.BLOCK):
            continue
        what = f"the image of disk {disk.target}"
        if _refused(Path(disk.source), os.R_OK):
            yield Lacking("read", what, disk.source)
            continue
        try:
            if looking:
                look_at(disk.source, disk.image_format)
            else:
                describe_image(disk.source, disk.image_format)
        except PermissionRefused as error:
            yield Lacking("read", f"an image below {what}", error.path or disk.source)
        except VmkeepError:  # whatever else is wrong with an image is told by what reads it
            continue
        if not running and obstacle_to_bitmaps(disk) is None and _refused(Path(disk.source), os.W_OK):
            yield Lacking("write", what, disk.source)


def _of_states(definition: Definition, uri: str) -> Iterator[Lacking]:
    try:
        sources = state_sources(definition, StateRoots.of(uri))
    except StateUnsupported:
        return
    for source in sources:
        if _refused(source.path, os.R_OK):
            yield Lacking("read", f"its {STATE_NAMES[source.kind]}", str(source.path))


def _of_job(uri: str) -> Iterator[Lacking]:
    """QEMU makes the socket of a job as its own user, so that nobody but that user and root may connect to it."""
    if urlsplit(uri).path.endswith("/system") and _refused(SOCKET_DIRECTORIES, os.W_OK | os.X_OK):
        yield Lacking("enter", "the directory of its backup job's socket", str(SOCKET_DIRECTORIES))


def _refused(path: Path, rights: int) -> bool:
    """Return whether rights are lacking for what is there; a path that is not there lacks none."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return not os.access(path, rights)
