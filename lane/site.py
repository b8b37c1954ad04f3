"""What a site has set up on its machines that a bare Debian needs too: package mirrors, proxies, certificates.

A machine may reach Debian and PyPI by ways of its own. Copied are the settings that say which, and nothing else of the
machine: apt hooks, pins and further repositories stay out, or the tree would not be bare.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

DEFAULT_MIRROR = "http://deb.debian.org/debian"

_SOURCES = ("etc/apt/sources.list", "etc/apt/sources.list.d")
# A mirror of Debian itself: a security or a foreign archive has another path.
_MIRROR = re.compile(r"^(?:URIs:\s*|deb\s+(?:\[[^\]]*\]\s+)?)(\S+/debian)/?(?:\s|$)", re.MULTILINE)
_APT_SETTINGS = re.compile(r"^Acquire::(?:http|https|ftp|Check-|Retries|ForceIPv|Proxy|By-Hash)[^ ]* \"[^\"]+\";$")
_COPIED = ("etc/pip.conf", "root/.config/pip/pip.conf", "root/.pip/pip.conf", "etc/apt/auth.conf")
_COPIED_DIRECTORIES = ("etc/apt/auth.conf.d", "usr/local/share/ca-certificates")
_CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_VARIABLES = re.compile(
    r"^(?:(?:https?|ftp|no|all)_proxy|PIP_\w+|SSL_CERT_DIR|TERM|CI|VMKEEP_(?!HOME)\w+)$", re.IGNORECASE
)
_LOCAL_PATH = re.compile(r"(?:^|[\s=])(?:file://)?(/[^\s,]+)")


def mirror(root: Path = Path("/")) -> str:
    """Return the Debian mirror that this machine uses, or Debian's own address."""
    for name in _SOURCES:
        path = root / name
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.suffix in (".list", ".sources") and file.is_file():
                found = _MIRROR.search(file.read_text(errors="replace"))
                if found is not None:
                    return found[1]
    return DEFAULT_MIRROR


def apt_settings() -> str:
    """Return how this machine's apt reaches its mirrors, as lines of apt.conf."""
    dump = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout
    return "".join(f"{line}\n" for line in dump.splitlines() if _APT_SETTINGS.match(line))


def copy_settings(tree: Path, hostname: str, root: Path = Path("/")) -> None:
    """Copy settings of pip and apt, certificates and name resolution into a tree, as far as the machine has them.

    The tree's own name is a known one, as on each host that Debian's installer made.
    """
    for path in _files_to_copy(root):
        target = tree / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    for name in ("etc/resolv.conf", "etc/hosts"):
        (tree / name).write_bytes((root / name).read_bytes() if (root / name).exists() else b"")
    with (tree / "etc/hosts").open("a") as hosts:
        hosts.write(f"\n127.0.1.1 {hostname}\n")


def _files_to_copy(root: Path) -> Iterator[Path]:
    for name in _COPIED:
        if (root / name).is_file():
            yield root / name
    for name in _COPIED_DIRECTORIES:
        if (root / name).is_dir():
            yield from (path for path in (root / name).rglob("*") if path.is_file())


def environment(outside: Mapping[str, str], tree: Path) -> dict[str, str]:
    """Return the environment of what runs in the tree: a login's, and what reaches mirrors.

    A variable that names a file of certificates goes along only when the tree has that file.
    """
    inside = {name: value for name, value in outside.items() if _VARIABLES.match(name) and name != "PIP_CERT"}
    for name in _CERTIFICATE_VARIABLES:
        if name in outside and (tree / outside[name].lstrip("/")).exists():
            inside[name] = outside[name]
    inside.update(HOME="/root", USER="root", LOGNAME="root", SHELL="/bin/bash", LANG="C.UTF-8")
    inside["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return inside


def package_directories(outside: Mapping[str, str], root: Path = Path("/")) -> list[Path]:
    """Return the directories of this machine in which pip is told to look for packages, by settings or environment.

    Of an index (PEP 503, always called ``simple``) it is the directory above, where its files usually are.
    """
    texts = [value for name, value in outside.items() if name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL")]
    for name in _COPIED[:3]:
        if (root / name).is_file():
            lines = (root / name).read_text().splitlines()
            texts += [line for line in lines if not line.lstrip().startswith(("cert", "#", "cache-dir", "log"))]
    found = {Path(os.path.normpath(match)) for text in texts for match in _LOCAL_PATH.findall(text)}
    found = {path.parent if path.name == "simple" else path for path in found}
    return sorted(path for path in found if path != Path("/") and path.is_dir())
