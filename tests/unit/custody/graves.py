"""A tombstone as an example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmkeep.custody.tombstones import Protection, Tombstone, TombstoneFile, TombstoneKind

AT = "2026-03-02T10:00:00.000000+00:00"
VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
DIRECTORY = f"/var/lib/libvirt/swtpm/{VM}"


def grave(**changes: Any) -> Tombstone:
    """Return what a removal left: the state of a TPM, encrypted, on host alpha."""
    made = Tombstone(
        id="0a" * 16,
        origin="0b" * 16,
        kind=TombstoneKind.STATE,
        host_uuid="9f0e5c1a-0000-4000-8000-000000000001",
        host_name="alpha",
        vm_uuid=VM,
        vm_name="win11",
        place=DIRECTORY,
        since=AT,
        files=(TombstoneFile(f"{DIRECTORY}/tpm2/tpm2-00.permall", "cc" * 32, 6179, "0d" * 16, "read-only"),),
        protection=Protection.AWAY,
        secret="7a0a4c2e-1d0b-4b3c-9a55-2f1f6f3a7d10",  # noqa: S106  a UUID
    )
    return replace(made, **changes)
