"""`vmkeep checkpoint`: the checkpoints that libvirt and the disk images keep of a VM."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="The checkpoints of a VM, which say what was written since a point.",
    epilog="Example: vmkeep checkpoint health win11",
    rich_markup_mode=None,
)
