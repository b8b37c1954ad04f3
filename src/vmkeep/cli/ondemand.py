"""Commands whose modules are imported when one of them is asked for.

To read and build forty commands takes longer than `vmkeep points` needs for its own work. Help and completion show a
command by its name and the line that stands here; a test holds each line against the command's own.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from vmkeep.cli.usage import conform, read_plainly


class OnDemand(NamedTuple):
    """Where a command of `vmkeep` is made, and its line in the help.

    ``maker`` is what the module has for it: an ``app``, which is a group of commands, or a function that registers one
    command at the app that it is given.
    """

    module: str
    line: str
    maker: str = "register"


ON_DEMAND: Final[Mapping[str, OnDemand]] = {
    "init": OnDemand("vmkeep.cli.init", "Make catalogue, key and repository."),
    "backup": OnDemand("vmkeep.cli.backup", "Take a point: disks, UEFI variables and TPM of one instant."),
    "status": OnDemand("vmkeep.cli.status", "How all stands, on one page."),
    "points": OnDemand("vmkeep.cli.points", "List the points that can be restored, oldest first."),
    "restore": OnDemand("vmkeep.cli.restore", "Bring a point back: all of it or nothing."),
    "verify": OnDemand("vmkeep.cli.verify", "Prove that points are sound."),
    "repair": OnDemand("vmkeep.cli.repair", "Find what points have lost in other packs."),
    "prune": OnDemand("vmkeep.cli.prune", "Give back the space that no point needs."),
    "doctor": OnDemand("vmkeep.cli.doctor", "Say what is wrong, and what mends it."),
    "log": OnDemand("vmkeep.cli.log", "Show what was done, and how it ended."),
    "ops": OnDemand("vmkeep.cli.ops", "Operations under way: show, carry on, stop.", "app"),
    "point": OnDemand("vmkeep.cli.point_marks", "One point: show, protect, delete it, or bring it back.", "point_app"),
    "policy": OnDemand("vmkeep.cli.policy", "Which points are kept, by VM or by label.", "app"),
    "retain": OnDemand("vmkeep.cli.retain", "Let points go that no policy keeps."),
    "vm": OnDemand("vmkeep.cli.vm", "The VMs of the host, and whether a point would hold all of them.", "app"),
    "state": OnDemand("vmkeep.cli.state", "TPM state and UEFI variables: on the host, and kept.", "app"),
    "tpm": OnDemand("vmkeep.cli.tpm", "The virtual TPMs of VMs.", "app"),
    "nvram": OnDemand("vmkeep.cli.nvram", "The UEFI variables of VMs.", "app"),
    "orphans": OnDemand("vmkeep.cli.orphans", "TPM states and UEFI variables that belong to no VM.", "app"),
    "tombstones": OnDemand("vmkeep.cli.tombstones", "What could not be deleted on a host, and must be.", "app"),
    "watch": OnDemand("vmkeep.cli.watch", "Keep TPM state and UEFI variables as they change."),
    "schedule": OnDemand("vmkeep.cli.schedule", "What is done by itself, and how it ended.", "app"),
    "hook": OnDemand("vmkeep.cli.hook", "The gate: no start with a lost or older TPM.", "app"),
    "key": OnDemand("vmkeep.cli.key", "The keys that open the repository.", "app"),
    "checkpoint": OnDemand("vmkeep.cli.checkpoint", "libvirt's checkpoints of a VM, and their health.", "app"),
    "snapshot": OnDemand("vmkeep.cli.snapshot", "libvirt's snapshots of a VM.", "app"),
    "host": OnDemand("vmkeep.cli.host", "The hosts that sign points, and those of a fleet.", "app"),
    "agent": OnDemand("vmkeep.cli.agent", "This host as one of a fleet.", "app"),
    "ca": OnDemand("vmkeep.cli.authority", "The authority of a fleet's hosts.", "app"),
    "serve": OnDemand("vmkeep.cli.serve", "The server of a fleet: hosts enrol there."),
}
"""The commands by name, in the order of the help."""


class OnDemandGroup(TyperGroup):
    """The command `vmkeep` with those commands. Its option --quiet is every command's."""

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        read_plainly(self.params)
        for name, wanted in ON_DEMAND.items():
            self.commands[name] = _Listed(name, short_help=wanted.line)
        self._only_listed = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if self._only_listed or command is None:
            return command
        if isinstance(command, _Listed):
            command = self.commands[cmd_name] = _made(cmd_name, ON_DEMAND[cmd_name])
        quiet = next(option for option in self.params if "--quiet" in option.opts)
        conform(command, ctx, option=quiet)
        return command

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        read_plainly([option])
        return option

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        self._only_listed = True
        try:
            super().format_commands(ctx, formatter)
        finally:
            self._only_listed = False


class _Listed(TyperCommand):
    """A command that was not made yet: its name and its line."""


def _made(name: str, wanted: OnDemand) -> Any:
    maker = getattr(importlib.import_module(wanted.module), wanted.maker)
    if isinstance(maker, typer.Typer):
        group = typer.main.get_group(maker)
        group.name = name
        return group
    alone = typer.Typer(rich_markup_mode=None)
    maker(alone)
    return typer.main.get_group(alone).commands[name]
