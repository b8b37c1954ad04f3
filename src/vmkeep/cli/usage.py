"""What the usages of all commands have in common: an option that is declared once, and arguments in one notation."""

from __future__ import annotations

from collections.abc import Iterable
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


def conform(command: Any, context: Any, *, option: Any) -> None:
    """Give a command, or each of a group, the common notation, and an option whose callback does all it is for.

    ``context`` is that of the command above it, whose names for --help hold here as well.
    """
    read_plainly((*command.params, command.get_help_option(context)))
    below = getattr(command, "commands", None)
    if below is not None:
        for each in below.values():
            conform(each, context, option=option)
        return
    for parameter in command.params:
        if type(parameter) is TyperArgument:
            # Typer makes its arguments itself, from the function's signature, and takes no class for them.
            parameter.__class__ = PlainArgument
    if option not in command.params:
        command.params.append(option)


def read_plainly(parameters: Iterable[Any]) -> None:
    """Let texts and flags be read without pydantic, which takes longer to load than most of a short command.

    Typer 0.29 asks it what becomes of each parameter, also of one that was not given.
    """
    for parameter in parameters:
        described = parameter.type_descriptor
        if described.annotation in (str, list[str], bool) and described.parameter_info.parser is None:
            parameter._runtime_param = _Plain(described)


class _Plain:
    """What a text or a flag on the command line becomes: itself. In place of typer's ``RuntimeParam``."""

    def __init__(self, described: Any) -> None:
        self._described = described

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        many = param.multiple or param.nargs == -1
        kind = bool if self._described.annotation is bool else str
        if value is None:
            return () if many else None
        if many and isinstance(value, list | tuple) and all(isinstance(each, kind) for each in value):
            return list(value)
        if not many and isinstance(value, kind):
            return value
        from typer._coercion import build_runtime_param  # what refuses it, in the words of all refusals

        return build_runtime_param(self._described).coerce(value, param=param, ctx=ctx)
