"""The kernel and the initramfs of the test guest, made of Debian packages that are unpacked and never installed.

They lie in ``.cache/guest`` of the checkout, one directory for each release of Debian and state of this recipe. The
first build downloads some 70 MB; apt keeps to the machine's own sources and proxies.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.rig import RigError

_HERE = Path(__file__).parent
_CACHE = _HERE.parents[1] / ".cache" / "guest"
_PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "tpm2-tools", "qemu-guest-agent", "e2fsprogs")
_PROGRAMS = ("usr/bin/tpm2", "usr/sbin/qemu-ga", "sbin/mke2fs", "sbin/e2fsck", "usr/bin/chattr")
# What tpm2-tools opens by name at run time, so that no header names it.
_PLUGINS = ("libtss2-tcti-device.so.0",)
# What Debian's cloud kernel has as modules; those they depend on are found in them. TPM, ext4 and EFI are built in.
_MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "efivarfs")
_LIBRARY_DIRECTORIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER = "lib64/ld-linux-x86-64.so.2"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """What a guest is booted with."""

    kernel: Path
    initrd: Path


def guest_image() -> GuestImage:
    """Return the guest of this machine's Debian release, built when it is not there yet (about 10 s)."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    directory = _CACHE / f"{_release()}-{_recipe()}"
    with _only_one(_CACHE / "lock"):
        if not directory.exists():
            older = list(_CACHE.glob(f"{_release()}-*"))
            _build(directory)
            for path in older:
                shutil.rmtree(path)
    return GuestImage(directory / "vmlinuz", directory / "initrd")


def _release() -> str:
    values = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return "-".join(values.get(name, "unknown").strip('"') for name in ("ID", "VERSION_ID"))


def _recipe() -> str:
    content = b"".join((_HERE / name).read_bytes() for name in ("build.py", "init.sh"))
    return hashlib.sha256(content).hexdigest()[:12]


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(directory: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=_CACHE) as work:
        root, result = Path(work, "root"), Path(work, "result")
        root.mkdir()
        result.mkdir()
        packages = _download(Path(work), _CACHE / f"packages-{_release()}")
        for package in packages:
            _run("dpkg-deb", "--extract", str(package), str(root))
        shutil.copy(_only(root.glob("boot/vmlinuz-*")), result / "vmlinuz")
        # Small is fast: the firmware measures all of it into the TPM, and the processor is emulated (0.8 s less).
        (result / "initrd").write_bytes(gzip.compress(cpio(_contents(root)), mtime=0))
        (result / "packages.txt").write_text("".join(f"{package.name}\n" for package in packages))
        for path in result.iterdir():
            path.chmod(0o644)
        result.rename(directory)


# -- packages --------------------------------------------------------------------------------------------------


def _download(work: Path, archives: Path) -> list[Path]:
    """Return the packages with all that they depend on, as for a machine that has nothing."""
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    nothing_installed = work / "status"
    nothing_installed.touch()
    options = [
        f"Dir::State::status={nothing_installed}",
        f"Dir::Cache::archives={archives}",
        "Debug::NoLocking=1",
        "APT::Sandbox::User=root",  # the cache is not open to apt's own user
        "APT::Get::AllowUnauthenticated=false",
    ]
    install = ["apt-get", "install", "--quiet=2", "--no-install-recommends"]
    for option in options:
        install += ["--option", option]
    try:
        _run(*install, "--download-only", "--yes", *_PACKAGES)
    except RigError:  # lists of packages that are missing, or older than the archive
        _run("apt-get", "update", "--quiet=2")
        _run(*install, "--download-only", "--yes", *_PACKAGES)
    said = _run(*install, "--print-uris", "--option", f"Dir::Cache::archives={work / 'none'}", *_PACKAGES)
    return [archives / line.split()[1] for line in said.splitlines() if line.startswith("'")]


def _run(*command: str) -> str:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise RigError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


# -- content ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, link, directory or device of the initramfs."""

    path: str
    mode: int  # with its type
    content: bytes = b""  # of a link: where it points to
    device: tuple[int, int] = (0, 0)


def _contents(root: Path) -> list[Entry]:
    entries = [
        Entry("dev", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),  # the kernel opens it for process 1
        Entry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
        *(Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "etc", "lib", "lib64", "modules", "sbin", "usr")),
        Entry("usr/bin", stat.S_IFDIR | 0o755),
        Entry("usr/sbin", stat.S_IFDIR | 0o755),
        Entry("init", stat.S_IFREG | 0o755, (_HERE / "init.sh").read_bytes()),
    ]
    busybox = _first(root, "bin/busybox", "usr/bin/busybox")
    entries.append(_file("bin/busybox", busybox))
    entries += [_link(f"bin/{name}", "busybox") for name in _run(str(busybox), "--list").split() if name != "busybox"]
    programs = [_first(root, name, f"usr/{name}") for name in _PROGRAMS]
    entries += [_file(name, program) for name, program in zip(_PROGRAMS, programs, strict=True)]
    entries += [
        _link(f"usr/bin/{link.name}", "tpm2")
        for link in root.glob("usr/bin/tpm2_*")
        if link.is_symlink() and link.readlink().name == "tpm2"
    ]
    libraries = _libraries(root, programs)
    entries += [_file(f"lib/{name}", path) for name, path in sorted(libraries.items())]
    entries.append(_file(_LOADER, _first(root, _LOADER, f"usr/{_LOADER}")))
    modules = _modules(root)
    entries += [Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, content) for name, content in modules.items()]
    load = "".join(f"/modules/{name}.ko\n" for name in modules)
    entries.append(Entry("etc/modules.load", stat.S_IFREG | 0o644, load.encode()))
    return entries


def _libraries(root: Path, programs: Sequence[Path]) -> dict[str, Path]:
    """Return what the programs and plug-ins load, by name. The guest's own loader is asked: it runs here as well."""
    directories = [root / name for name in _LIBRARY_DIRECTORIES]
    plugins = {name: _first(root, *(f"{place}/{name}" for place in _LIBRARY_DIRECTORIES)) for name in _PLUGINS}
    loader = _first(root, _LOADER, f"usr/{_LOADER}")
    library_path = ":".join(str(directory) for directory in directories)
    found = dict(plugins)
    for program in [*programs, *plugins.values()]:
        said = _run(str(loader), "--library-path", library_path, "--list", str(program))
        for name, path in re.findall(r"^\s*(\S+) => (/\S+)", said, re.MULTILINE):
            if Path(path).is_relative_to(root) and not name.startswith("/"):
                found[name] = Path(path)
        if "not found" in said:
            raise RigError(f"{program.name}: {said}")
    return found


def _modules(root: Path) -> dict[str, bytes]:
    """Return the modules in the order in which they can be loaded."""
    files: dict[str, Path] = {}
    for top in ("lib/modules", "usr/lib/modules"):
        for path in (root / top).rglob("*.ko*"):
            files[_module_name(path.name.split(".")[0])] = path
    loaded: dict[str, bytes] = {}

    def load(name: str) -> None:
        if name in loaded or name not in files:  # not there: built in
            return
        content = files[name].read_bytes()
        if files[name].suffix == ".xz":
            content = lzma.decompress(content)
        depends = re.search(rb"\0depends=([^\0]*)\0", content)
        for needed in depends.group(1).decode().split(",") if depends else []:
            load(_module_name(needed))
        loaded[name] = content

    for name in _MODULES:
        load(_module_name(name))
    return loaded


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _file(name: str, path: Path) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, path.read_bytes())


def _link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def _first(root: Path, *names: str) -> Path:
    for name in names:
        if (root / name).exists():
            return root / name
    raise RigError(f"no package of the guest has {names[0]}")


def _only(paths: Iterable[Path]) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise RigError(f"one is wanted: {found}")
    return found[0]


def cpio(entries: Iterable[Entry]) -> bytes:
    """Return the entries as an archive of the kernel's initramfs format ("newc", Documentation/driver-api)."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        major, minor = entry.device
        #         inode,  mode,     uid, gid, links, time, size,           device's and own numbers, name, checksum
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, major, minor, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        archive += bytes(-len(archive) % 4)
        archive += entry.content
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
