"""`vmkeep point protect`, `unprotect`, `delete` and `undelete`: which points stay whatever the policies say, or go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.points import PointArgument, beside, point_app, search_point, watch_of
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Table
from vmkeep.commandline import command_line
from vmkeep.errors import InvalidRequest, PointNotFound

if TYPE_CHECKING:
    from vmkeep.catalog import PointRemoval

DAY = "7d"
HiddenArgument = Annotated[
    str, typer.Argument(metavar="POINT", help="The id, or its first characters, as `points --deleted` lists it.")
]
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="What others shall know of the reason.")]


@point_app.command("delete", epilog="Example: vmkeep point delete 3f2a9c01 --yes")
def delete(
    context: typer.Context,
    point: PointArgument,
    grace: Annotated[
        str,
        typer.Option("--grace", metavar="DURATION", help="How long it can come back: 36h, 7d, 2w; 0 for not at all."),
    ] = DAY,
    why: WhyOption = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a point: it is hidden at once, and removed after a grace. The others stay complete."""
    from vmkeep.flows.point_requests import DeletePoint

    seconds = grace_seconds(grace)
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        point_id, vm, question, lost = _to_delete(running, point, for_ever=not seconds)
        if lost:
            running.console.notice(f"warning: {lost}")
        running.console.confirm(question, yes=yes)
        with running.engine() as engine, running.console.progress() as watch:
            deleted = engine.delete_point(DeletePoint(point_id, seconds, why), watch)
        for sentence in deleted.warnings:
            running.console.notice(f"warning: {sentence}")
        if running.console.json:
            running.console.document({"deleted": {"point": point_id, "vm": vm, "until": deleted.until}})
        elif deleted.until is None:
            running.console.show(f"point {point_id} deleted; the space it alone used comes back with `vmkeep prune`")
        else:
            undelete = command_line("vmkeep point undelete", point_id)
            running.console.show(
                f"point {point_id} is deleted: no list shows it, and `vmkeep retain` removes it after "
                f"{time_text(deleted.until)}",
                f"until then it comes back with: {undelete}",
            )


@point_app.command("undelete", epilog="Example: vmkeep point undelete 3f2a9c01")
def undelete(
    context: typer.Context,
    point: HiddenArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Bring a deleted point back, as long as it was not removed."""
    from vmkeep.flows.point_requests import UndeletePoint
    from vmkeep.flows.point_search import search_hidden

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        removal = search_hidden(running.premises, point, watch_of(running))
        with running.engine() as engine, running.console.progress() as watch:
            back = engine.undelete_point(UndeletePoint(removal.point_id), watch)
        if running.console.json:
            running.console.document({"undeleted": back.point})
        else:
            taken = time_text(back.point["created"])
            running.console.show(f"point {removal.point_id} of VM {back.point['vm']!r}, taken {taken}, is back")


@point_app.command("protect", epilog="Example: vmkeep point protect win11@latest --until 2027-12-31")
def protect(
    context: typer.Context,
    point: PointArgument,
    until: Annotated[
        str | None, typer.Option("--until", metavar="TIME", help="A day or a time; without it for good.")
    ] = None,
    why: WhyOption = "",
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Keep a point from being removed, by policies and by hand."""
    _change(context, point, until=until, why=why, protected=True, json=json, connect=connect, debug=debug)


@point_app.command("unprotect", epilog="Example: vmkeep point unprotect 3f2a9c01")
def unprotect(
    context: typer.Context,
    point: PointArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """End the protection of a point. It is not removed by that."""
    _change(context, point, until=None, why="", protected=False, json=json, connect=connect, debug=debug)


def _change(
    context: typer.Context,
    text: str,
    *,
    until: str | None,
    why: str,
    protected: bool,
    json: bool,
    connect: str | None,
    debug: bool,
) -> None:
    from vmkeep.flows.point_requests import ChangeProtection

    term = None if until is None else _term(until)
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        found, _ = search_point(running, text)
        with running.engine() as engine, running.console.progress() as watch:
            changed = engine.protect_point(ChangeProtection(found.id, protected, term, why), watch)
        if running.console.json:
            shown = {"point": found.id, "vm": found.vm_name, "protected": protected, "until": term, "why": why}
            running.console.document({"protection": {**shown, "protected_before": changed.known}})
        elif protected:
            how = "for good" if term is None else f"until {time_text(term)}"
            running.console.show(f"point {found.id} of VM {found.vm_name!r} is protected {how}")
        else:
            was = "is not protected any more" if changed.known else "was not protected"
            running.console.show(f"point {found.id} of VM {found.vm_name!r} {was}")


def show_deleted(running: Session, vm: str | None) -> None:
    """Show the points that are hidden, and when each may be removed."""
    from vmkeep.flows.point_marks import goes_at

    catalog = running.premises.catalog
    uuids = None if vm is None else catalog.vms_named(vm)
    hidden = [each for each in catalog.removals() if each.hides and (uuids is None or each.vm_uuid in uuids)]
    shown = [described(each, goes_at(each)) for each in hidden]
    if running.console.json:
        running.console.document({"deleted": shown})
        return
    if not shown:
        running.console.show("no deleted points")
        return
    rows = [
        (
            each["point"],
            each["vm"] or "-",
            time_text(each["created"]) if each["created"] else "-",
            time_text(each["until"]),
            each["host"],
            each["why"],
        )
        for each in shown
    ]
    columns = ("point", "VM", "created", "can come back until", "deleted on", "why")
    running.console.show(Table(columns=columns, rows=rows, texts={"why": 10}, names={"VM": 12}))


def described(removal: PointRemoval, goes: datetime) -> dict[str, Any]:
    """Return a deleted point as JSON has it; ``goes`` is when it may be removed."""
    return {
        "point": removal.point_id,
        "vm": removal.vm_name,
        "vm_uuid": removal.vm_uuid,
        "created": removal.taken,
        "deleted_at": removal.created,
        "until": goes.isoformat(timespec="microseconds"),
        "host": removal.host,
        "why": removal.why,
    }


def _to_delete(running: Session, text: str, *, for_ever: bool) -> tuple[str, str | None, str, str]:
    """Return the id and the VM's name of a point that may be a damaged or a deleted one, the question before it is
    deleted, and what is lost with it.
    """
    from vmkeep.flows.delete_point import told_of_last_secrets
    from vmkeep.flows.point_search import FoundPoint, search_hidden, search_stored

    end = " for ever?" if for_ever else "?"
    try:
        found = search_stored(running.premises, text, watch_of(running))
    except PointNotFound:
        if not for_ever:
            raise
        removal = search_hidden(running.premises, text, watch_of(running))
        question = f"Remove the deleted point {removal.point_id} of VM {removal.vm_name!r} for ever?"
        return removal.point_id, removal.vm_name, question, ""
    if not isinstance(found, FoundPoint):
        return found.point, None, f"Delete the damaged point {found.point}{end} ({found.message})", ""
    for sentence in found.told:
        running.console.notice(f"warning: {sentence}")
    point, _ = beside(running, text, found.point)
    question = f"Delete point {point.id} of VM {point.vm_name!r}, taken {time_text(point.created)}{end}"
    rule = running.premises.keep_state_versions
    return point.id, point.vm_name, question, told_of_last_secrets(running.premises.catalog, point, rule)


def grace_seconds(text: str) -> int:
    """Return the seconds of a grace as people write it; raises InvalidRequest for another text."""
    from vmkeep.planning.point_retention import MOST_GRACE, parse_within

    if text == "0":
        return 0
    grace = parse_within(text)
    if grace > MOST_GRACE:
        raise InvalidRequest(f"a grace of {text} is too long", hint="Ten years (3650d) are the most.")
    return int(grace.total_seconds())


def _term(text: str) -> str:
    """Return the end of a time that is named, ISO 8601 in UTC; raises InvalidRequest for another text, or a past."""
    from vmkeep.catalog.times import TIME_FORMS, end_of_named_time

    found = end_of_named_time(text)
    if found is None:
        raise InvalidRequest(f"{text!r} is no time", hint=f"A time is written as {TIME_FORMS}.")
    if found <= datetime.now(UTC):
        raise InvalidRequest(f"{text} is past", hint="Name a time that is to come, or leave --until out.")
    return found.astimezone(UTC).isoformat(timespec="microseconds")
