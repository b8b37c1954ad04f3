"""What the usages of all commands have in common: an option that is declared once, and arguments in one notation."""

from __future__ import annotations

from typing import Any

from typer.core import TyperArgument


class PlainArgument(TyperArgument):
    """An argument as manual pages show it: ``VM``, ``[VM]``, ``[VM]...``.

    Typer 0.29 writes ``{VM}`` for one that is needed, and its Python type behind it.
    """

    def get_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002
        name = self.display_name_raw if self.required else f"[{self.display_name_raw}]"
        return [name if self.nargs == 1 else f"{name}..."]

    def display_type_rich(self, ctx: Any) -> str | None:  # noqa: ARG002
        return None


def conform(command: Any, *, option: Any) -> None:
    """Give a command, or each of a group, the common notation, and an option whose callback does all it is for."""
    below = getattr(command, "commands", None)
    if below is not None:
        for each in below.values():
            conform(each, option=option)
        return
    for parameter in command.params:
        if type(parameter) is TyperArgument:
            # Typer makes its arguments itself, from the function's signature, and takes no class for them.
            parameter.__class__ = PlainArgument
    if option not in command.params:
        command.params.append(option)
