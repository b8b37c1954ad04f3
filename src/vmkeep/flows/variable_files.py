"""UEFI variables in a plain file of the machine of the command: read, and written for somebody else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vmkeep.catalog import Catalog
from vmkeep.custody.certificates import parse_certificates
from vmkeep.custody.enrolment import named_certificate
from vmkeep.custody.variables import QCOW2, read_layout
from vmkeep.custody.wanted import WantedCertificate
from vmkeep.errors import HostFileMissing, IntegrityError, InvalidRequest, StateUnsupported, VmNotFound
from vmkeep.filesystem import file_error, file_errors, replace_file, write_new_file
from vmkeep.flows.capture_states import capture_states
from vmkeep.flows.installation import Premises
from vmkeep.flows.vm_states import VersionKept, chosen_of, versions_asked_for
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.nvram import LookAtNvram
from vmkeep.host.tasks.survey import FindVm
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.repository.record import STATE_LIMITS
from vmkeep.values import dataclass

_MOST_CERTIFICATE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class VariablesExported:
    """The file that was written, and the version that it holds."""

    vm: str
    path: str
    size_bytes: int
    version: VersionKept


def version_on_host(premises: Premises, host: Host, vm: str) -> tuple[str | None, tuple[str, ...]]:
    """Keep what lies on the host as a version, and return what names it; with sentences about what was not kept.

    Of a VM that runs, or is not on this host, that is None: the newest that is kept. Raises as ``capture_states``.
    """
    try:
        (found,) = host.ask(LookAtNvram(host.ask(FindVm(vm))))
    except VmNotFound:
        return None, (f"VM {vm!r} is not on this host, so the newest version that is kept is written.",)
    if found.running:
        return None, (f"VM {vm!r} is not off, so the newest version that is kept is written, and not what it has now.",)
    if not found.sha256:
        raise StateUnsupported(
            f"VM {vm!r} has no UEFI variables on this host: {found.problem or 'it starts by BIOS'}",
            vm=vm,
            hint="Name a version (--version); `vmkeep state versions` lists them.",
        )
    captured = capture_states(premises, host, vm)
    return found.sha256, captured.older


def read_variable_file(path: Path) -> bytes:
    """Return the store in a file. Raises StateUnsupported for what is none, and what reading raises."""
    content = _read(path, STATE_LIMITS["nvram"])
    if content.startswith(QCOW2):
        what = "it is a qcow2 image: `qemu-img convert -O raw` makes a plain one of it"
    else:
        problem = read_layout(content).problem
        if problem is None:
            return content
        what = problem
    raise StateUnsupported(
        f"{path} is no store of UEFI variables: {what}",
        path=str(path),
        hint="`vmkeep nvram export` writes one; so does a copy of the file that the VM's definition names.",
    )


def read_certificate_file(path: Path, database: str) -> tuple[WantedCertificate, ...]:
    """Return the certificates in a file, PEM or DER, for a database. Raises InvalidRequest for one that has none."""
    found = parse_certificates(_read(path, _MOST_CERTIFICATE_BYTES))
    if isinstance(found, str):
        raise InvalidRequest(
            f"{path}: {found}", path=str(path), hint="Name a file with X.509 certificates, in PEM or DER."
        )
    return tuple(named_certificate(subject, der, database) for subject, der in found)


def export_variables(
    catalog: Catalog, repository: Callable[[], Repository], vm: str, version: str | None, path: Path, *, replace: bool
) -> VariablesExported:
    """Write the newest kept UEFI variables of a VM to a file (0600), or the version that is named, and read it back.

    ``replace``: over a file that is there. Raises VmNotFound, InvalidRequest, StateUnsupported for a version in qcow2,
    TargetExists, and what reading and writing raise.
    """
    (kept,) = versions_asked_for(catalog, vm, "nvram", version)
    _, content = read_chosen(repository(), kept.version.vm_uuid, chosen_of(kept.version))
    if content.startswith(QCOW2):
        raise StateUnsupported(
            f"version {kept.version.generation} of the UEFI variables of VM {vm!r} is a qcow2 image",
            vm=vm,
            hint="`vmkeep state export` takes it as it is.",
        )
    if not path.parent.is_dir():
        raise HostFileMissing(f"the directory {path.parent} does not exist", path=str(path), hint="Make it first.")
    with file_errors(path):
        (replace_file if replace else write_new_file)(path, content)
    with file_errors(path, "read"), path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what the disk has, not what memory has
        read_back = stream.read(len(content) + 1)
    if read_back != content:
        raise IntegrityError(f"{path} does not hold what was written to it", path=str(path))
    return VariablesExported(vm, str(path), len(content), kept)


def _read(path: Path, most_bytes: int) -> bytes:
    """Return a file's content. Raises InvalidRequest for one that is larger or none, HostFileMissing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe is not waited for
        with os.fdopen(descriptor, "rb") as stream:
            content = stream.read(most_bytes + 1)
    except FileNotFoundError as error:
        raise HostFileMissing(f"{path} is not there", path=str(path), hint="Is it the right name?") from error
    except OSError as error:
        raise file_error(error, path, "read") from error
    if len(content) > most_bytes:
        raise InvalidRequest(
            f"{path} has more than the {most_bytes} bytes that it can have", path=str(path), hint="Is it the right one?"
        )
    return content
