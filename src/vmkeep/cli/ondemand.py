"""Groups of commands whose modules are imported when one of them is asked for.

To read and build forty commands takes longer than `vmkeep points` needs for its own work.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final

import typer
from typer.core import TyperGroup

from vmkeep.cli.usage import conform

ON_DEMAND: Final[Mapping[str, str]] = {
    "checkpoint": "vmkeep.cli.checkpoint",
    "snapshot": "vmkeep.cli.snapshot",
    "host": "vmkeep.cli.host",
}
"""The names of such groups, each with the module whose ``app`` it is."""


class OnDemandGroup(TyperGroup):
    """The command `vmkeep` with those groups beside what it is made with. Its option --quiet is every command's."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys((*super().list_commands(ctx), *ON_DEMAND)))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in ON_DEMAND and cmd_name not in self.commands:
            group = typer.main.get_group(importlib.import_module(ON_DEMAND[cmd_name]).app)
            group.name = cmd_name
            self.commands[cmd_name] = group
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            quiet = next(option for option in self.params if "--quiet" in option.opts)
            conform(command, option=quiet)
        return command
