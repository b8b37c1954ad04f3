"""Where a host keeps the state files of its VMs.

swtpm's directory is named after the VM's UUID, the NVRAM file after its name (libvirt's defaults), so both
move when a VM is restored under another identity. libvirt does not tell swtpm's directory; the paths here are
those that qemu_conf.c computes: LOCALSTATEDIR/lib/libvirt/swtpm for the system daemon, the configuration
directory of the user for a session.
"""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from urllib.parse import urlsplit

from vmkeep.values import dataclass

_SWTPM_USER = re.compile(r"""^\s*swtpm_(user|group)\s*=\s*["']([^"']+)["']""", re.MULTILINE)
# Debian builds libvirt with tss, Fedora and openSUSE with tss as well; upstream's own default is root.
_KNOWN_SWTPM_USERS = ("tss", "swtpm", "root")


@dataclass(frozen=True, slots=True)
class StateRoots:
    """Directories under which this host's libvirt keeps state files; nothing is written outside of them."""

    swtpm: Path
    nvram: Path

    @classmethod
    def of(cls, uri: str) -> StateRoots:
        """Return the directories of the daemon behind ``uri``."""
        if urlsplit(uri).path.rstrip("/").endswith("session"):
            config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "libvirt/qemu"
            return cls(swtpm=config / "swtpm", nvram=config / "nvram")
        return cls(swtpm=Path("/var/lib/libvirt/swtpm"), nvram=Path("/var/lib/libvirt/qemu/nvram"))

    def tpm_directory(self, uuid: str) -> Path:
        """Return the swtpm directory of a VM."""
        return self.swtpm / uuid

    def nvram_file(self, name: str) -> Path:
        """Return the NVRAM file that libvirt would choose for a VM of that name."""
        return self.nvram / f"{name}_VARS.fd"


def tpm_file(version: str) -> str:
    """Return the path of swtpm's permanent state below the VM's directory, for TPM "2.0" or "1.2"."""
    return "tpm1.2/tpm-00.permall" if version == "1.2" else "tpm2/tpm2-00.permall"


def swtpm_owner(recorded: str | None) -> tuple[str, str]:
    """Return user and group that swtpm runs as on this host.

    libvirt changes the owner of swtpm's directories when a VM starts but not of the state file in them, so the
    file has to be right from the beginning. The setting in qemu.conf decides, then what was recorded where the
    point was taken, then the users that distributions choose, if they exist here. Of what was recorded nobody else is
    believed but this process's own user, who has swtpm in a session: a point of another host would give its TPM, and
    a folder below libvirt's, to whomever it names.
    """
    try:
        configured = dict(_SWTPM_USER.findall(Path("/etc/libvirt/qemu.conf").read_text(encoding="utf-8")))
    except OSError:
        configured = {}
    believed = recorded if recorded in (*_KNOWN_SWTPM_USERS, _own_name()) else None
    candidates = [configured.get("user"), believed, *_KNOWN_SWTPM_USERS]
    user = next((name for name in candidates if name and _exists(name)), "root")
    return user, configured.get("group") or user


def _own_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
