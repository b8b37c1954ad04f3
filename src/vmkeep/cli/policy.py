"""`vmkeep policy`: which points are kept, of a VM, of a label, or of all VMs; and why each one stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import time_text
from vmkeep.cli.point_marks import DAY, grace_seconds
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from vmkeep.catalog import Catalog, Policy

app = typer.Typer(
    short_help="Which points are kept, by VM or by label.",
    help="Which points are kept, of a VM, of a label, or of all VMs. `vmkeep retain` lets the others go.",
    epilog="Example: vmkeep policy set win11 --keep-daily 7 --keep-weekly 4 --keep-monthly 12",
    rich_markup_mode=None,
)
SubjectArgument = Annotated[
    str,
    typer.Argument(
        metavar="VM|LABEL",
        help="A VM by name or UUID, label:NAME, label:NAME=VALUE, or all: the VMs without a policy of their own.",
        autocompletion=complete_vm,
    ),
]


def _keep(what: str) -> Any:
    return typer.Option(f"--keep-{what}", metavar="N", min=0, max=100_000, help=_HELP[what], show_default=False)


_HELP = {
    "last": "The last N points.",
    "hourly": "The newest of each of N hours.",
    "daily": "The newest of each of N days.",
    "weekly": "The newest of each of N weeks (ISO 8601).",
    "monthly": "The newest of each of N months.",
    "yearly": "The newest of each of N years.",
}


@app.command("set", epilog="Example: vmkeep policy set win11 --keep-last 3 --keep-daily 7 --keep-weekly 4")
def set_policy(
    context: typer.Context,
    subject: SubjectArgument,
    keep_last: Annotated[int, _keep("last")] = 0,
    keep_hourly: Annotated[int, _keep("hourly")] = 0,
    keep_daily: Annotated[int, _keep("daily")] = 0,
    keep_weekly: Annotated[int, _keep("weekly")] = 0,
    keep_monthly: Annotated[int, _keep("monthly")] = 0,
    keep_yearly: Annotated[int, _keep("yearly")] = 0,
    keep_within: Annotated[
        str | None,
        typer.Option(
            "--keep-within", metavar="DURATION", help="All that are not older than the newest by: 36h, 30d, 8w."
        ),
    ] = None,
    zone: Annotated[
        str | None, typer.Option("--zone", metavar="ZONE", help="The time zone of days and weeks; that of this host.")
    ] = None,
    grace: Annotated[
        str, typer.Option("--grace", metavar="DURATION", help="How long what goes can come back; 0 for not at all.")
    ] = DAY,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say which points are kept, in place of what was said before. Nothing is removed by that."""
    from vmkeep.catalog import Policy
    from vmkeep.flows.policies import checked_policy, local_zone, subject_named
    from vmkeep.planning.point_retention import parse_within
    from vmkeep.planning.retention import KeepRule

    rule = KeepRule(keep_last, keep_hourly, keep_daily, keep_weekly, keep_monthly, keep_yearly)
    within = 0 if keep_within is None else int(parse_within(keep_within).total_seconds())
    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        policy = checked_policy(
            Policy(subject_named(catalog, subject), str(rule), within, zone or local_zone(), grace_seconds(grace))
        )
        catalog.set_policy(policy)
        shown = _described(catalog, catalog.policies()[policy.subject])
        if running.console.json:
            running.console.document({"policy": shown})
        else:
            running.console.show(f"{shown['of']}: {shown['keep']} ({shown['zone']}); {_grace(shown)}")


@app.command("show", epilog="Example: vmkeep policy show")
def show(
    context: typer.Context,
    subject: Annotated[
        str | None, typer.Argument(metavar="VM|LABEL", help="One of them; all without.", show_default=False)
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show the policies."""
    from vmkeep.flows.policies import subject_named

    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        wanted = None if subject is None else subject_named(catalog, subject)
        shown = [_described(catalog, each) for name, each in catalog.policies().items() if wanted in (None, name)]
        if running.console.json:
            running.console.document({"policies": shown})
            return
        if not shown:
            running.console.show("no policy: `vmkeep retain` removes nothing")
            return
        rows = [(p["of"], p["keep"], p["zone"], _grace(p), time_text(p["changed_at"])) for p in shown]
        running.console.show(Table(columns=("of", "keep", "zone", "grace", "since"), rows=rows))


@app.command("drop", epilog="Example: vmkeep policy drop win11")
def drop(
    context: typer.Context,
    subject: SubjectArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """End a policy. What no policy is for is never removed by `vmkeep retain`."""
    from vmkeep.flows.policies import subject_named, told_subject

    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        name = subject_named(catalog, subject)
        was = catalog.drop_policy(name)
        if running.console.json:
            running.console.document({"dropped": {"subject": name, "known": was}})
        else:
            running.console.show(
                f"{told_subject(catalog, name)}: {'no policy any more' if was else 'there was no policy'}"
            )


@app.command("explain", epilog="Example: vmkeep policy explain win11")
def explain(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show for each point of a VM why it stays, or that it goes. Nothing is removed."""
    from vmkeep.cli.retain import planned, show_plan

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        plan = planned(running, [vm])
        show_plan(running, plan, every_point=True)


def _described(catalog: Catalog, policy: Policy) -> dict[str, Any]:
    from vmkeep.flows.policies import rule_of_policy, told_subject

    return {
        "subject": policy.subject,
        "of": told_subject(catalog, policy.subject),
        "keep": str(rule_of_policy(policy)),
        "zone": policy.zone,
        "grace_seconds": policy.grace_seconds,
        "changed_at": policy.changed_at,
    }


def _grace(shown: dict[str, Any]) -> str:
    from datetime import timedelta

    from vmkeep.planning.point_retention import within_text

    seconds = shown["grace_seconds"]
    return f"grace {within_text(timedelta(seconds=seconds))}" if seconds else "no grace"
