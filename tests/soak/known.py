"""What the soak leaves out, because QEMU or libvirt themselves cannot bear it. No fault of vmkeep stands here."""

from __future__ import annotations

import functools
import subprocess


@functools.cache
def qemu_version() -> tuple[int, int]:
    """Return the version of this machine's QEMU, (7, 2) for instance."""
    said = subprocess.run(["qemu-img", "--version"], check=True, capture_output=True, text=True).stdout
    major, minor, *_ = said.split()[2].split(".")
    return int(major), int(minor)


def zeroes_end_a_guest_with_io_threads() -> bool:
    """QEMU's own `write -z` from the monitor on a disk in an I/O thread ends QEMU 7.2 (its fault, seen); not 10.0."""
    return qemu_version() < (9, 0)


def holders_keep_a_guest_alive() -> bool:
    """QEMU 7.2 dies with an I/O thread when vmkeep and its guardian are killed: nothing has its connections then."""
    return qemu_version() >= (9, 0)
