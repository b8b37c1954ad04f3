"""The commands that `vmkeep checkpoint` and `vmkeep snapshot` have in common, registered once for each kind.

A verb is one function with the options of both kinds. Typer is shown those of one: virsh has fewer options for
checkpoints, and libvirt calls none of them the current one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from inspect import Parameter, Signature
from typing import Annotated, Any, Final, NamedTuple, get_args

import typer

from vmkeep.cli import moment_files, moment_listing, moments
from vmkeep.cli.moment_options import Only
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session

Verb = Callable[..., None]
VERBS: Final[Mapping[str, Verb]] = {
    "list": moment_listing.list_moments,
    "tree": moment_listing.draw_moments,
    "info": moments.show_moment,
    "parent": moments.tell_parent,
    "dumpxml": moments.dump_moment,
    "edit": moments.edit_moment,
    "redefine": moments.redefine_moment,
    "delete": moments.delete_moments,
    "export": moment_files.export_moments,
    "import": moment_files.import_moments,
}


class Told(NamedTuple):
    """What the help of a command says: its line, and an example without the words before the verb."""

    line: str
    example: str


class Wording(NamedTuple):
    """What the commands of a kind say of themselves.

    ``kept`` is what stays when only libvirt's record of one is deleted; ``told`` has an entry for each verb.
    """

    kind: str
    kept: str
    told: Mapping[str, Told]

    def register(self, app: typer.Typer, *verbs: str) -> None:
        """Add these verbs to the commands of the kind, in this order."""
        for verb in verbs:
            line, example = self.told[verb]
            epilog = f"Example: vmkeep {self.kind} {verb} {example}"
            app.command(verb, help=line, epilog=epilog)(self._command(VERBS[verb]))

    def _command(self, verb: Verb) -> Verb:
        def command(context: typer.Context, *, json: bool, connect: str | None, debug: bool, **given: Any) -> None:
            from vmkeep.moments import MomentKind  # no other command needs it

            with session(context, json=json, connect=connect, debug=debug) as running:
                verb(running, MomentKind(self.kind), **given)

        # Typer reads what a command takes from its signature, as `inspect` finds it.
        command.__signature__ = Signature(list(self._parameters(verb)))  # type: ignore[attr-defined]
        return command

    def _parameters(self, verb: Verb) -> Iterator[Parameter]:
        """Yield what a command of the kind takes: a context, what the verb takes of this kind, the common options."""
        yield _named("context", typer.Context)
        # The first two are given by us, and need no import to be read.
        taken = inspect.signature(verb, eval_str=True, locals={"Session": Any, "MomentKind": Any})
        for parameter in list(taken.parameters.values())[2:]:
            kind, declared, *marks = get_args(parameter.annotation)
            mark = next((mark for mark in marks if isinstance(mark, Only)), None)
            default = parameter.default
            if mark is not None and mark.needed and mark.kind == self.kind:
                kind, default = str, Parameter.empty
            elif mark is not None and not mark.needed and mark.kind != self.kind:
                continue
            worded = copy(declared)
            worded.help = declared.help.format(kind=self.kind, kept=self.kept)
            yield _named(parameter.name, Annotated[kind, worded], default)
        yield _named("json", JsonOption, default=False)
        yield _named("connect", ConnectOption, default=None)
        yield _named("debug", DebugOption, default=False)


def _named(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
