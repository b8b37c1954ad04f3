"""What the soak leaves out: faults of QEMU that are nobody's here, and of vmkeep that are being mended.

A fault of vmkeep that stands here says which branch mends it, and goes with that branch.
"""

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


def spared_kinds() -> frozenset[str]:
    """Kinds of disks that are left out."""
    return frozenset({"qcow2-v2"})  # KNOWN: a restore in place fails for ever; branch wrongdata


def grown_overlays_are_spared() -> bool:
    """KNOWN: no backup of the running VM after a snapshot and a disk grown; branch wrongdata."""
    return True


def stops_of_supervised_commands_are_spared() -> bool:
    """KNOWN: a stopped command with a child ends its child by a signal that nobody sent; branch instant."""
    return True


def new_overlays_are_spared() -> bool:
    """KNOWN: an image made anew gets the old one below it from the definition; branch wrongdata."""
    return True


def latest_may_be_a_safety_point() -> bool:
    """KNOWN: VM@latest is the bad state that a restore in place left; branch wrongdata."""
    return True
