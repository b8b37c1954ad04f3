"""`vmkeep snapshot`: libvirt's snapshots, with what vmkeep keeps with them."""

from __future__ import annotations

import typer

from vmkeep.cli import snapshot_create, snapshot_revert

app = typer.Typer(
    help="Make snapshots of whole VMs, go back to them, and look after them.",
    epilog="Example: vmkeep snapshot create win11 before-update",
    no_args_is_help=True,
)
snapshot_create.register(app)
snapshot_revert.register(app)
