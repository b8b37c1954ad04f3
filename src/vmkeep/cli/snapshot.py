"""`vmkeep snapshot`: the snapshots of libvirt, with the UEFI variables and the TPM that belong to them."""

from __future__ import annotations

import typer

from vmkeep.cli import snapshot_revert

app = typer.Typer(
    help="Snapshots of libvirt, with the UEFI variables and the TPM of the same instant.",
    epilog="Example: vmkeep snapshot revert win11 before-update",
    rich_markup_mode=None,
)
snapshot_revert.register(app)


@app.callback()
def snapshot() -> None:
    """Snapshots of libvirt, with the UEFI variables and the TPM of the same instant."""
