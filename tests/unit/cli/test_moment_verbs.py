"""The verbs that checkpoints and snapshots have in common."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from vmkeep.cli import checkpoint, snapshot
from vmkeep.cli.moment_verbs import VERBS

OF_SNAPSHOTS = {
    "list": {
        *("--metadata", "--no-metadata", "--inactive", "--active", "--disk-only", "--internal", "--external"),
        "--current",
    },
    "info": {"--current"},
    "parent": {"--current"},
    "redefine": {"--current"},
    "delete": {"--current"},
    "edit": {"--current", "--rename", "--clone"},
}
OF_CHECKPOINTS = {"dumpxml": {"--no-domain", "--size"}}


def commands(app: typer.Typer) -> dict[str, Any]:
    return dict(typer.main.get_group(app).commands)


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts if option.startswith("--")}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_the_options_of_both_kinds_but_for_what_virsh_has_of_one(verb: str) -> None:
    ours, theirs = options(commands(checkpoint.app)[verb]), options(commands(snapshot.app)[verb])
    assert ours - theirs == OF_CHECKPOINTS.get(verb, set())
    assert theirs - ours == OF_SNAPSHOTS.get(verb, set())


@pytest.mark.parametrize("verb", ["info", "parent", "edit", "delete"])
def test_a_checkpoint_must_be_named_where_a_snapshot_may_be_the_current_one(verb: str) -> None:
    named = {
        kind: next(parameter for parameter in commands(app)[verb].params if parameter.name == "name").required
        for kind, app in (("checkpoint", checkpoint.app), ("snapshot", snapshot.app))
    }
    assert named == {"checkpoint": True, "snapshot": False}


@pytest.mark.parametrize("verb", VERBS)
def test_no_text_of_the_help_is_left_to_be_filled_in_or_of_the_other_kind(verb: str) -> None:
    for kind, other, app in (
        ("checkpoint", "snapshot", checkpoint.app),
        ("snapshot", "checkpoint", snapshot.app),
    ):
        command = commands(app)[verb]
        with typer.Context(command, info_name=f"vmkeep {kind} {verb}") as context:
            text = command.get_help(context)
        assert "{k" not in text
        assert other not in text
        assert kind in text
