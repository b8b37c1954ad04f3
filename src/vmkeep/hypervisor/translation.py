"""libvirt's errors, turned into vmkeep's in one place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vmkeep.commandline import command_line
from vmkeep.errors import (
    HypervisorError,
    HypervisorUnavailable,
    NoSpace,
    PermissionRefused,
    VmBusy,
    VmkeepError,
    VmNotFound,
)
from vmkeep.hypervisor.answers import calling_for


def _silence(_context: object, _error: object) -> None:
    """libvirt prints each error on standard error by default; ours are raised, and printed once."""


libvirt.registerErrorHandler(_silence, None)

_REFUSED = frozenset(
    (
        libvirt.VIR_ERR_ACCESS_DENIED,
        libvirt.VIR_ERR_AUTH_CANCELLED,
        libvirt.VIR_ERR_AUTH_FAILED,
        libvirt.VIR_ERR_AUTH_UNAVAILABLE,
        libvirt.VIR_ERR_OPERATION_DENIED,
    )
)

# Seen on libvirt 11.3 with QEMU 10.0: a VM that is paused from the moment on when its memory was loaded (saved while
# it was paused, or started with --paused from a managed save), or that was paused when a snapshot saved its memory, has
# inactive disks until it runs, and no job can begin. libvirt 9.0 with QEMU 7.2 makes the job. The text is QEMU's;
# libvirt passes it on as an internal error.
_INACTIVE_DISK = re.compile(r"Inactive '[^']*' can't be a backing child of active '")

_MOST_WORDS = 300

# QEMU's words for ENOSPC, in the middle of libvirt's ("failed to format image: 'Could not write refcount table: No
# space left on device'", seen on 9.0 for scratch). libvirtd runs with the C locale unless somebody changed its unit.
_FULL = "No space left on device"
_FREE_SPACE = (
    "Free space where the VM's images are, or where `scratch_dir` is, and run the command again; what was there is "
    "unharmed."
)


def shortened(words: str) -> str:
    """Return what a guest or its QEMU said, for people: it may be of any length and with any characters."""
    printable = "".join(char if char.isprintable() else " " for char in words[: 4 * _MOST_WORDS])
    return printable if len(printable) <= _MOST_WORDS else f"{printable[:_MOST_WORDS]}..."


@contextmanager
def libvirt_errors(doing: str, vm: str | None = None) -> Iterator[None]:
    """Raise vmkeep's error for libvirt's. ``doing`` completes "libvirt could not …"."""
    try:
        with calling_for(f"{doing} {vm!r}" if vm and doing.endswith("the VM") else doing):
            yield
    except libvirt.libvirtError as error:
        raise translate(error, doing, vm) from error


def translate(error: libvirt.libvirtError, doing: str, vm: str | None) -> VmkeepError:
    """Return the error of our tree that says what libvirt's says."""
    code = error.get_error_code()
    text = str(error)
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return VmNotFound(f"there is no VM {vm!r} on this host" if vm else text, vm=vm)
    if code in _REFUSED:
        return PermissionRefused(f"libvirt refused to {doing}: {text}", vm=vm)
    if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
        # Seen on 9.0 and 11.3: while another backup job or a snapshot runs, calls end after 30 s with "cannot acquire
        # state change lock" instead of a clear refusal.
        return VmBusy(f"libvirt could not {doing}, because another job holds the VM: {text}", vm=vm)
    if code in (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC) or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return HypervisorUnavailable(f"libvirt could not {doing}: {text}", vm=vm)
    if _INACTIVE_DISK.search(text):
        return HypervisorError(
            f"libvirt could not {doing}, because QEMU has not opened the disks yet: {text}",
            vm=vm,
            hint="Its memory was saved or loaded, and the VM has been paused since. Let it run for a moment "
            f"(`{command_line('virsh resume', vm or 'VM')}`; it may be suspended again), and run the command again.",
        )
    if _FULL in text:
        return NoSpace(f"libvirt could not {doing}: {text}", vm=vm, hint=_FREE_SPACE)
    return HypervisorError(f"libvirt could not {doing}: {text}", vm=vm)
