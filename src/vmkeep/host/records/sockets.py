"""Where the sockets of an operation are. QEMU makes that of a backup job, so it must be where QEMU is let.

Stock AppArmor profiles let the QEMU of a VM make files in libvirt's directory of that VM
(``domain-ID-NAME``, where its monitor is) and not below /run; SELinux labels that directory for it alone. The sockets
of qemu-nbd, which vmkeep starts itself, are in a directory of vmkeep's own.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vmkeep.config import Settings
from vmkeep.hypervisor import Domain

# sun_path of sockaddr_un, less the NUL.
LONGEST_PATH_BYTES: Final = 107
SOCKET_DIRECTORIES: Final = Path("/var/lib/libvirt/qemu")
_OF_JOB: Final = re.compile(r"vmkeep-([0-9a-f]{12})\.nbd")


def socket_directory(settings: Settings, operation: str) -> Path:
    """Return the directory of an operation's own sockets; a socket's whole path must be short."""
    return settings.run_dir / operation[:12]


def job_socket(domain: Domain, uri: str, settings: Settings, operation: str) -> Path:
    """Return the socket for a job of a running VM: in libvirt's directory of it, else among the operation's own.

    A libvirt of another user keeps its VMs elsewhere and confines none; so it is with one built for other paths.
    """
    fallback = socket_directory(settings, operation) / "nbd"
    number = domain.run_number()
    if number is None or not urlsplit(uri).path.endswith("/system"):
        return fallback
    # libvirt shortens the name; the number is the VM's alone as long as it runs.
    found = [path for path in SOCKET_DIRECTORIES.glob(f"domain-{number}-*") if path.is_dir()]
    chosen = [path / f"vmkeep-{operation[:12]}.nbd" for path in found]
    if len(chosen) != 1 or len(os.fsencode(chosen[0])) > LONGEST_PATH_BYTES:
        return fallback
    return chosen[0]


def operation_of(socket: str, settings: Settings) -> str | None:
    """Return the first twelve characters of the operation whose job has this socket; None for a socket not of ours."""
    path = Path(socket)
    if path.parent.parent == settings.run_dir:
        return path.parent.name
    match = _OF_JOB.fullmatch(path.name)
    return match[1] if match is not None else None
