"""`vmkeep retain`: let points go that no policy keeps, and remove those that were hidden for long enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import time_text
from vmkeep.cli.points import SHORTEST_ID, watch_of
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from vmkeep.flows.plan_retention import RetentionOfVm, RetentionPlan


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep retain --dry-run")(retain)


def retain(
    context: typer.Context,
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="VM", help="Names or UUIDs; all without.", autocompletion=complete_vm),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show why each point stays or goes; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, also where much would go at once.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let points go that no policy keeps. They can come back for as long as the policy's grace."""
    from vmkeep.errors import RetentionHeld
    from vmkeep.flows.point_requests import PointsRetained, RetainPoints

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        plan = planned(running, vms or ())
        if dry_run:
            show_plan(running, plan, every_point=True)
            return
        agreed = [of_vm for of_vm in plan.vms if not of_vm.ask or yes or _is_agreed(running, of_vm)]
        held = [of_vm for of_vm in plan.vms if of_vm not in agreed]
        going = tuple(each for of_vm in agreed for each in of_vm.going)
        due = [each.point_id for of_vm in agreed for each in of_vm.due]
        due += [point_id for of_vm in held for point_id in of_vm.own_due]
        due += [each.point_id for each in plan.due]
        done = PointsRetained((), ())
        if going or due:
            with running.engine() as engine, running.console.progress() as watch:
                done = engine.retain_points(RetainPoints(going, tuple(due)), watch)
        for sentence in done.warnings:
            running.console.notice(f"warning: {sentence}")
        show_plan(running, plan, every_point=False, done=done, held=held)
        if held:
            reasons = "; ".join(f"VM {of_vm.vm!r}: {', '.join(of_vm.ask)}" for of_vm in held)
            raise RetentionHeld(f"Points that no policy keeps stay: {reasons}", vm=held[0].vm)


def planned(running: Session, vms: Sequence[str]) -> RetentionPlan:
    """Return what a run would do, after telling what a person must know."""
    from vmkeep.flows.plan_retention import plan_retention

    plan = plan_retention(running.premises, vms, watch_of(running))
    for sentence in (*plan.told, *(each for of_vm in plan.vms for each in of_vm.told)):
        running.console.notice(f"warning: {sentence}")
    return plan


def _is_agreed(running: Session, of_vm: RetentionOfVm) -> bool:
    if not running.console.can_ask:
        return False
    going = ", ".join(point[:SHORTEST_ID] for each in of_vm.going for point in each.points)
    return running.console.ask(f"VM {of_vm.vm!r}: {'; '.join(of_vm.ask)}. Let them go all the same ({going})?")


def show_plan(
    running: Session,
    plan: RetentionPlan,
    *,
    every_point: bool,
    done: Any = None,
    held: Sequence[RetentionOfVm] = (),
) -> None:
    """Show what stays and goes; of what was ``done`` only what went, unless ``every_point``."""
    if running.console.json:
        document: dict[str, Any] = {"vms": [_described(of_vm, held) for of_vm in plan.vms]}
        if done is not None:
            document.update(hidden=list(done.hidden), gone=list(done.gone), warnings=list(done.warnings))
        running.console.document({"retention": document})
        return
    rows = [
        (
            of_vm.vm,
            verdict.point.id[:SHORTEST_ID],
            time_text(verdict.point.made.isoformat()),
            "stays" if verdict.stays else "goes",
            verdict.why,
        )
        for of_vm in plan.vms
        for verdict in of_vm.verdicts
        if every_point or (done is not None and verdict.point.id in done.hidden)
    ]
    if rows:
        columns = ("VM", "point", "created", "", "why")
        running.console.show(Table(columns=columns, rows=rows, names={"VM": 12}))
    if every_point:
        due = sum(len(of_vm.due) for of_vm in plan.vms) + len(plan.due)
        lines = [f"VM {of_vm.vm!r} needs a yes: {'; '.join(of_vm.ask)}" for of_vm in plan.vms if of_vm.ask]
        lines += [f"deleted points whose grace is over: {due}"] if due else []
        running.console.show(*(lines if rows or lines else ["no points"]))
        return
    if done is not None:
        running.console.show(f"{_counted(len(done.hidden))} deleted; {_counted(len(done.gone))} removed for good")


def _counted(number: int) -> str:
    return "1 point" if number == 1 else f"{number} points"


def _described(of_vm: RetentionOfVm, held: Sequence[RetentionOfVm]) -> dict[str, Any]:
    return {
        "vm": of_vm.vm,
        "vm_uuid": of_vm.vm_uuid,
        "policy": of_vm.policy or None,
        "points": [
            {
                "point": verdict.point.id,
                "created": verdict.point.made.isoformat(timespec="microseconds"),
                "stays": verdict.stays,
                "why": verdict.why or None,
                "rule": verdict.point.rule or None,
                "sound": verdict.point.sound,
            }
            for verdict in of_vm.verdicts
        ],
        "due": [each.point_id for each in of_vm.due],
        "ask": list(of_vm.ask),
        "held": of_vm in held,
    }
