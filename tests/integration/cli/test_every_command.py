"""What holds for every command: options, help, and that no way to fail is without its exit status."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from vmkeep.cli.main import app
from vmkeep.errors import Cancelled, Interrupted, error_classes

COMMON = {"--json", "--connect", "-c", "--debug", "--quiet", "-q"}


def below(command: Any) -> list[tuple[str, Any]]:
    """Return the commands of a group, also those that are imported on demand; none of a command."""
    if not hasattr(command, "commands"):
        return []
    with typer.Context(command) as context:
        return [(name, command.get_command(context, name)) for name in command.list_commands(context)]


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its name, groups included."""
    pending: list[tuple[str, Any]] = [("vmkeep", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        yield name, command
        pending.extend((f"{name} {sub}", child) for sub, child in below(command))


NAMES = dict(commands())


def test_all_commands_of_the_specification_are_there() -> None:
    wanted = "init, key export, key import, vm list, vm show, backup, points, point show, point delete, restore, verify"
    assert {f"vmkeep {name}" for name in wanted.split(", ")} <= set(NAMES)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_help_has_an_example(name: str) -> None:
    command = NAMES[name]
    with typer.Context(command, info_name=name) as context:
        text = command.get_help(context)
    example = " ".join(text.split()).partition("Example: ")[2]
    assert example.startswith("vmkeep ")
    words = example.split()
    assert any(f"vmkeep {' '.join(words[1 : 1 + depth])}" in NAMES for depth in (1, 2))


@pytest.mark.parametrize("name", sorted(name for name in NAMES if not hasattr(NAMES[name], "commands")))
def test_every_command_takes_the_common_options(name: str) -> None:
    assert set().union(*(parameter.opts for parameter in NAMES[name].params)) >= COMMON


@pytest.mark.parametrize("name", sorted(name for name in NAMES if not hasattr(NAMES[name], "commands")))
def test_every_option_is_explained(name: str) -> None:
    for parameter in NAMES[name].params:
        assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", sorted(name for name in NAMES if not hasattr(NAMES[name], "commands")))
def test_usage_names_arguments_as_manual_pages_do(name: str) -> None:
    command = NAMES[name]
    with typer.Context(command, info_name=name) as context:
        usage, _, rest = command.get_help(context).partition("\n")
    arguments = usage.removeprefix(f"Usage: {name} [OPTIONS]").split()
    assert all(re.fullmatch(r"([A-Z|]+|\[[A-Z|]+\])(\.\.\.)?", argument) for argument in arguments), usage
    described = rest.partition("Arguments:\n")[2].partition("\n\n")[0]
    assert "<" not in described
    assert all(argument.strip("[].") in described for argument in arguments)


def test_common_options_stand_before_the_command_too() -> None:
    assert set().union(*(parameter.opts for parameter in NAMES["vmkeep"].params)) >= {*COMMON, "--version"}


def test_exit_statuses_stand_in_the_ranges_that_are_documented() -> None:
    for kind in error_classes().values():
        status = kind.exit_status
        assert status in (1, 2, *range(3, 51), 130, 143), kind
        assert kind.default_hint, kind
        assert issubclass(kind, Interrupted | Cancelled) == (status in (130, 143)), kind


def test_each_class_of_the_tree_has_a_code_of_its_own() -> None:
    from vmkeep.errors import VmkeepError

    found: list[type[VmkeepError]] = []
    pending: list[type[VmkeepError]] = [VmkeepError]
    while pending:
        kind = pending.pop()
        found.append(kind)
        pending.extend(kind.__subclasses__())
    assert len({kind.code for kind in found}) == len(found)
