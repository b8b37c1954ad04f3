"""`vmkeep snapshot`: the snapshots that libvirt keeps of a VM."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="The snapshots of a VM that libvirt keeps.",
    epilog="Example: vmkeep snapshot health win11",
    rich_markup_mode=None,
)
