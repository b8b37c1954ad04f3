"""The first process of a rig's host: it makes the host's own view of the file system and starts libvirt in it.

Run by ``unshare`` with new mount, network, UTS and PID namespaces as ``host_init.py DIRECTORY HOSTNAME``. As
process 1 of the PID namespace it takes everything with it when it ends, and it ends when its standard input is
closed, that is, when the process that holds the host dies in whatever way.

It also reaps: libvirtd waits up to 15 s for a QEMU that it killed to vanish, and the QEMUs it probes with and the
guests it starts are daemons whose parent is process 1. A shell that waits in ``read`` made every start take that long.

Standard library only, and no import of the rig: it runs isolated, without site packages.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_MS_NODEV = 0x4
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_LIBC = ctypes.CDLL(None, use_errno=True)

# What libvirt calls its own, and the private directory (under the host's) that takes its place.
PRIVATE_DIRECTORIES = {
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/cache/libvirt": "cache",
    "/var/log": "log",
    "/run": "run",
}
SWTPM_CA_CONFIG = "/etc/swtpm-localca.conf"
SWTPM_SETUP_CONFIG = "/etc/swtpm_setup.conf"
# In the host's directory, where it has one: it takes the place of the firmware that libvirt chooses.
IDLE_FIRMWARE = "idle.fd"


def mount(source: str, target: str, filesystem: str = "none", flags: int = 0) -> None:
    if _LIBC.mount(source.encode(), target.encode(), filesystem.encode(), ctypes.c_ulong(flags), None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount of {source} on {target}: {os.strerror(error)}")


def prepare_mounts(directory: Path) -> None:
    for target, private in PRIVATE_DIRECTORIES.items():
        mount(str(directory / private), target, flags=_MS_BIND)
    for config in (SWTPM_CA_CONFIG, SWTPM_SETUP_CONFIG):
        mount(str(directory / Path(config).name), config, flags=_MS_BIND)
    if (directory / IDLE_FIRMWARE).exists():
        for code in Path("/usr/share/OVMF").glob("OVMF_CODE_4M*.fd"):
            if not code.is_symlink():
                mount(str(directory / IDLE_FIRMWARE), str(code), flags=_MS_BIND)
    mount("proc", "/proc", "proc")
    try:
        mount("sysfs", "/sys", "sysfs")  # shows this network namespace's devices
    except OSError as error:
        print(f"host_init: {error}; going on with the outer one", file=sys.stderr)
    # libvirtd asks every emulator it finds what it can do, 0.4 s each, and only this one is needed.
    for emulator in Path("/usr/bin").glob("qemu-system-*"):
        # A mount on a symbolic link lands on what it points to (Debian 13: qemu-system-amd64 is one to x86_64).
        if emulator.name != "qemu-system-x86_64" and not emulator.is_symlink():
            mount("/dev/null", str(emulator), flags=_MS_BIND)
    # Guests are emulated (domain type qemu) wherever the tests run. A /dev/kvm that QEMU can open but libvirtd cannot
    # use (a nested host) makes libvirt discard what it knows of QEMU and ask again, 5 to 7 s for each definition.
    # libvirt 9.0 looks as root, whom only nodev keeps out; 11.3 looks as QEMU's user, whom the mode keeps out.
    if Path("/dev/kvm").exists():
        hidden = directory / "kvm"
        os.mknod(hidden, stat.S_IFCHR, os.makedev(10, 232))
        mount(str(hidden), "/dev/kvm", flags=_MS_BIND)
        mount("none", "/dev/kvm", flags=_MS_BIND | _MS_REMOUNT | _MS_NODEV)


def reap() -> None:
    """Let daemons be gone as soon as they end: libvirt waits 0.2 s for one that is still there, dead or not."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] != 0:
            pass


def main() -> None:
    directory, hostname = Path(sys.argv[1]), sys.argv[2]
    outer_pid = Path("/proc/self").readlink()  # still the outer /proc, so the number that the outer processes know
    prepare_mounts(directory)
    socket.sethostname(hostname)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["virtlogd", "--daemon"], check=True)
    subprocess.run(["libvirtd", "--daemon"], check=True)
    reap()
    print(f"ready {outer_pid}", flush=True)
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    main()
