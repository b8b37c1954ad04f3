"""`vmkeep ops`: what runs, what was interrupted, and what waits for a person; carried on, or stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_operation, complete_vm
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.log import choices, vm_name
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Facts, Table
from vmkeep.commandline import command_line
from vmkeep.errors import InvalidRequest, OperationRuns, RestorePending, VmkeepError

if TYPE_CHECKING:
    from vmkeep.catalog import Operation
    from vmkeep.flows.show_operations import ShownOperation
    from vmkeep.flows.step_records import StepRecord

_LOOK_SECONDS = 0.1
_FLOWLESS = ("snapshot.change",)

IdArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="As `ops list` shows it, or its beginning.", autocompletion=complete_operation),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

app = typer.Typer(
    short_help="Operations under way: show, carry on, stop.",
    help="Operations: backups, restores, snapshots and other changes, from their beginning to their end. What has "
    "ended is shown by `vmkeep log` as well.",
    epilog="Example: vmkeep ops list",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command("list", short_help="What runs, was interrupted, or waits for a person.", epilog="Example: vmkeep ops list")
def list_operations(
    context: typer.Context,
    every: Annotated[bool, typer.Option("--all", help="Those that have ended as well.")] = False,
    vm: Annotated[
        str | None,
        typer.Option("--vm", metavar="VM", help="Those of this VM.", autocompletion=complete_vm, show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="Of those that ended, the last N.")] = 50,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what runs and since when, what was interrupted, and what waits for a person; newest first."""
    from vmkeep.flows import show_operations

    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog, unfinished = running.premises.catalog, _unfinished(running)
        found = show_operations.list_operations(running.settings, catalog, unfinished, vm, ended=limit if every else 0)
        if running.console.json:
            running.console.document({"operations": [_document(each) for each in found]})
            return
        rows = [
            (
                each.operation.id,
                each.operation.kind,
                vm_name(catalog, each.operation.vm, each.operation.request),
                each.state,
                time_text(each.operation.started),
                _told(each),
            )
            for each in found
        ]
        table = Table(
            columns=("id", "operation", "VM", "state", "since", ""),
            rows=rows,
            drop=("since",),
            names={"VM": 12},
            sentences=True,
        )
        running.console.show(table if rows else "no operation is under way")


@app.command(
    "show", short_help="One operation with its steps, and what is left.", epilog="Example: vmkeep ops show 3ea1a79c"
)
def show(
    context: typer.Context,
    operation: IdArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show one operation: what was asked for, who carries it out, each step with its times, and what is left to do."""
    from vmkeep.flows.show_operations import with_steps

    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = _found(running, operation)
        problem = None
        try:
            shown = with_steps(running.settings, shown)
        except VmkeepError as error:
            problem = f"its steps cannot be read: {error.message}"
        if running.console.json:
            steps = None if shown.steps is None else [_step_document(step) for step in shown.steps]
            running.console.document({"operation": {**_document(shown), "steps": steps}})
        else:
            running.console.show(Facts(list(_facts(running, shown))), *_steps(shown), *_remedies(shown))
        if problem is not None:
            running.console.notice(f"warning: {problem}")


@app.command(
    "resume", short_help="Carry on what was interrupted, or waits.", epilog="Example: vmkeep ops resume 3ea1a79c"
)
def resume(
    context: typer.Context,
    operation: IdArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Carry on what was interrupted, by the rule of its kind, or what waits for a person: it is undone to its end."""
    from vmkeep.flows.show_operations import INTERRUPTED, NEEDS_OPERATOR, PENDING

    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = _found(running, operation)
        if shown.state not in (INTERRUPTED, NEEDS_OPERATOR, PENDING):
            _refuse_resuming(shown)
        with running.engine() as engine, running.console.progress() as watch:
            # What was interrupted, of any process, was settled at the engine's start.
            present = running.premises.catalog.operation(shown.operation.id)
            if str(present.state) == NEEDS_OPERATOR:
                running.console.notice(engine.resume(present, watch))
        ended = _found(running, shown.operation.id)
        if ended.state == PENDING:
            raise RestorePending.from_dict(ended.operation.error or {})
        if ended.operation.finished is None:
            raise OperationRuns(f"the operation {ended.operation.id} was not carried on", vm=ended.operation.vm)
        if running.console.json:
            running.console.document({"operation": _document(ended)})
        else:
            running.console.show(f"{_name(running, ended)}: {ended.state}{_because(ended)}")


@app.command(
    "cancel", short_help="Ask an operation to stop, as Ctrl-C does.", epilog="Example: vmkeep ops cancel 3ea1a79c --yes"
)
def cancel(
    context: typer.Context,
    operation: IdArgument,
    wait: Annotated[int, typer.Option("--wait", min=0, metavar="SECONDS", help="Wait so long for its end.")] = 60,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Ask an operation of another process to stop, as Ctrl-C there would; what it began is undone by that process.

    Of one that waits for a person the record is ended, and nothing more is undone.
    """
    from vmkeep.flows.show_operations import INTERRUPTED, NEEDS_OPERATOR

    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = _found(running, operation)
        if shown.state == NEEDS_OPERATOR:
            _dismiss(running, shown, yes=yes)
        elif shown.operation.finished is not None or shown.state == INTERRUPTED:
            _refuse_cancelling(shown)
        else:
            _stop(running, shown, wait, yes=yes)
        ended = _found(running, shown.operation.id)
        if running.console.json:
            running.console.document({"operation": _document(ended)})
        else:
            running.console.show(f"{_name(running, ended)}: {ended.state}{_because(ended)}")


def _unfinished(running: Session) -> Any:
    from vmkeep.host.tasks.unfinished import ListUnfinished

    with running.host() as host:
        return host.ask(ListUnfinished())


def _found(running: Session, text: str) -> ShownOperation:
    from vmkeep.flows.show_operations import find_operation, shown_operation

    found = find_operation(running.premises.catalog, text)
    return shown_operation(running.settings, found, _unfinished(running).restores)


def _refuse_resuming(shown: ShownOperation) -> None:
    operation = shown.operation
    if operation.finished is None:
        raise OperationRuns(f"the operation {operation.id} is under way{_by(shown)}", vm=operation.vm)
    raise InvalidRequest(
        f"the operation {operation.id} has ended ({shown.state}): there is nothing to carry on",
        vm=operation.vm,
        hint=f"`{command_line('vmkeep ops show', operation.id)}` says how it ended.",
    )


def _refuse_cancelling(shown: ShownOperation) -> None:
    operation = shown.operation
    if operation.finished is not None:
        raise InvalidRequest(
            f"the operation {operation.id} has ended ({shown.state})",
            vm=operation.vm,
            hint=f"`{command_line('vmkeep ops show', operation.id)}` says how it ended.",
        )
    rule = "finishes" if shown.afterwards == "finish" else "undoes"
    raise InvalidRequest(
        f"the process of the operation {operation.id} is dead, so there is nobody to ask",
        vm=operation.vm,
        hint=f"The next command that runs an operation {rule} it; "
        f"`{command_line('vmkeep ops resume', operation.id)}` does so now.",
    )


def _dismiss(running: Session, shown: ShownOperation, *, yes: bool) -> None:
    operation = shown.operation
    running.console.confirm(
        f"End the record of {operation.kind} {operation.id}? Nothing more of it is undone: what it left stays as it "
        "is, unless you put it right by hand.",
        yes=yes,
    )
    with running.engine() as engine:
        engine.dismiss(running.premises.catalog.operation(operation.id))


def _stop(running: Session, shown: ShownOperation, wait_seconds: int, *, yes: bool) -> None:
    """Ask for the end, and wait for it. Raises OperationRuns when it has not come by then."""
    from vmkeep.flows.show_operations import shown_operation

    operation, catalog = shown.operation, running.premises.catalog
    if operation.kind in _FLOWLESS:
        raise InvalidRequest(
            f"{operation.kind} cannot be stopped in its middle", vm=operation.vm, hint="It ends by itself, soon."
        )
    running.console.confirm(
        f"Stop {operation.kind} {operation.id} of {operation.vm or 'no VM'}{_by(shown)}? What it began is undone.",
        yes=yes,
    )
    catalog.request_cancel(operation.id)
    deadline = time.monotonic() + wait_seconds
    while (present := shown_operation(running.settings, catalog.operation(operation.id))).operation.finished is None:
        if present.state == "needs-operator":
            raise VmkeepError.from_dict(present.operation.error or {})
        if present.state == "interrupted":
            _refuse_cancelling(present)
        if time.monotonic() >= deadline:
            raise OperationRuns(
                f"the operation {operation.id} was asked to stop, and has not ended within {wait_seconds} s",
                vm=operation.vm,
                hint="It ends when its step can be left, and what it began is undone then; "
                f"`{command_line('vmkeep ops show', operation.id)}` shows whether it has.",
            )
        time.sleep(_LOOK_SECONDS)


def _name(running: Session, shown: ShownOperation) -> str:
    vm = vm_name(running.premises.catalog, shown.operation.vm, shown.operation.request)
    return f"{shown.operation.kind} {shown.operation.id}{f' of VM {vm}' if vm else ''}"


def _because(shown: ShownOperation) -> str:
    error = shown.operation.error
    return f": {error.get('message')}" if error and shown.state != "done" else ""


def _by(shown: ShownOperation) -> str:
    return f" in process {shown.process}" if shown.process is not None else ""


def _told(shown: ShownOperation) -> str:
    """Return what a person wants to know of an operation in a line."""
    operation = shown.operation
    if shown.state == "interrupted":
        return f"the next command will {shown.afterwards or 'look at'} it"
    if operation.finished is not None or shown.state == "needs-operator":
        return str((operation.error or {}).get("message") or "") if shown.state != "done" else ""
    asked = "; asked to stop" if operation.cancel else ""
    return f"{_progress(operation)}{_by(shown)}{asked}".strip()


def _progress(operation: Operation) -> str:
    if not operation.total_bytes:
        return operation.stage
    return f"{operation.stage} {size_text(operation.done_bytes)} of {size_text(operation.total_bytes)}"


def _facts(running: Session, shown: ShownOperation) -> Iterator[tuple[str, str]]:
    operation = shown.operation
    yield "operation", f"{operation.kind} {operation.id}"
    if vm := vm_name(running.premises.catalog, operation.vm, operation.request):
        yield "VM", vm
    yield "host", str(operation.request.get("host") or "this")
    asked = ", ".join(each for each in choices(operation.request) if not each.startswith("host="))
    if asked:
        yield "asked for", asked
    yield "state", f"{shown.state}{_by(shown)}{'; asked to stop' * (operation.cancel and not operation.finished)}"
    yield "began", time_text(operation.started)
    if operation.finished is not None:
        yield "ended", time_text(operation.finished)
    elif progress := _progress(operation):
        yield "at work", f"{progress}, as of {time_text(operation.updated)}"
    if operation.error is not None and shown.state != "done":
        yield "error", f"{operation.error.get('message')} [{operation.error.get('code')}]"
        yield from ((name, str(operation.error[name])) for name in ("disk", "path") if operation.error.get(name))


def _steps(shown: ShownOperation) -> Iterator[str | Table]:
    if shown.steps is None:
        yield "its steps are not known any more" if shown.operation.finished else "it has no steps"
        return
    rows = [
        (
            f"{'undo ' if step.undo else ''}{step.name}",
            "" if step.started is None else time_text(step.started),
            "" if step.seconds is None else f"{step.seconds:.1f}",
            "done" if step.error is None else "failed",
            "" if step.error is None else f"{step.error.message} [{step.error.code}]",
        )
        for step in shown.steps
    ]
    columns = ("step", "began", "seconds", "result", "why")
    yield ""
    yield Table(columns=columns, rows=rows, right=("seconds",), sentences=True) if rows else "no step has ended yet"


def _remedies(shown: ShownOperation) -> Iterator[str]:
    """Yield what a person can do."""
    operation, error = shown.operation, shown.operation.error or {}
    resumed = command_line("vmkeep ops resume", operation.id)
    if shown.state == "interrupted":
        yield ""
        yield f"its process is dead: the next command will {shown.afterwards or 'look at'} it; `{resumed}` does so now"
    elif shown.state in ("needs-operator", "restore-pending"):
        yield ""
        if left := error.get("left"):
            yield f"not undone: {', '.join(map(str, left))}"
        yield f"to do: {error.get('hint') or f'`{resumed}` tries again.'}"
        if shown.state == "needs-operator":
            by_hand = command_line("vmkeep ops cancel", operation.id)
            yield f"when you have put all of it right by hand, `{by_hand}` ends its record"
    elif operation.finished is not None and shown.state != "done" and error.get("hint"):
        yield f"hint: {error['hint']}"


def _document(shown: ShownOperation) -> dict[str, Any]:
    from vmkeep.flows.show_operations import seconds_of

    operation = shown.operation
    return {
        "id": operation.id,
        "kind": operation.kind,
        "vm": operation.vm,
        "host": str(operation.request.get("host") or "this"),
        "state": shown.state,
        "process": shown.process,
        "started": operation.started,
        "updated": operation.updated,
        "finished": operation.finished,
        "seconds": seconds_of(operation),
        "stage": operation.stage or None,
        "done_bytes": operation.done_bytes,
        "total_bytes": operation.total_bytes,
        "cancel": operation.cancel,
        "next": shown.afterwards,
        "request": dict(operation.request),
        "error": None if operation.error is None else dict(operation.error),
    }


def _step_document(step: StepRecord) -> dict[str, Any]:
    return {
        "name": step.name,
        "undo": step.undo,
        "started": step.started,
        "ended": step.ended,
        "seconds": step.seconds,
        "result": "done" if step.error is None else "failed",
        "error": None if step.error is None else step.error.as_dict(),
    }
