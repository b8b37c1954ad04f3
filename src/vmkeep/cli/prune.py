"""`vmkeep prune`: space comes back that no point needs any more."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from vmkeep.cli.console import size_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.errors import IntegrityError, InvalidRequest
from vmkeep.spans import SIZE_FORMS, size_bytes

if TYPE_CHECKING:
    from vmkeep.repository.prune import PruneReport

_HOURS: Final = {"h": 1, "d": 24, "w": 168}


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(short_help="Give back the space that no point needs.", epilog="Example: vmkeep prune --dry-run")(prune)


def prune(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would come back.")] = False,
    waste: Annotated[
        str, typer.Option(metavar="PERCENT", help="Leave as much waste beside what is needed; less copies more.")
    ] = "20%",
    max_copy: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Copy no more than this, 50G for instance.", show_default=False),
    ] = None,
    young: Annotated[str, typer.Option(metavar="TIME", help="Leave packs alone that are younger: 2d, 12h, 0.")] = "2d",
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete what no point and no pin needs, and make packs new that are mostly waste.

    Backups, restores and other prunes may go on beside it.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.repository.prune import PruneOptions

        options = PruneOptions(
            waste=_share(waste),
            young=_time(young),
            max_copy_bytes=None if max_copy is None else _size(max_copy),
            dry_run=dry_run,
        )
        running.stand_apart()
        with running.engine(needs_home=False) as engine, running.console.progress() as watch:
            report = engine.prune(options, watch)
        if running.console.json:
            running.console.document({"pruned": _document(report)})
        else:
            running.console.show(*_lines(report))
        if report.out_of_room:
            running.console.notice(
                "warning: there is no room for copies, so not all of the waste could be given back: make some room, or "
                "delete points, and run it again"
            )
        if report.problems:
            raise IntegrityError(
                f"{len(report.problems)} objects could not be read, and what they may reach was kept: "
                f"{', '.join(sorted(report.problems)[:5])}",
                path=running.premises.repository.location,
                hint="`vmkeep verify --all` names the points that are harmed. All else was done.",
            )


def _document(report: PruneReport) -> dict[str, Any]:
    return {
        "dry_run": report.dry_run,
        "points": report.points,
        "packs": report.packs,
        "bytes": report.size_bytes,
        "needed_bytes": report.live_bytes,
        "waste_bytes": report.waste_bytes,
        "freed_bytes": report.freed_bytes,
        "unused": {"packs": report.unused_packs, "bytes": report.unused_bytes},
        "renewed": {"packs": report.thin_packs, "bytes": report.thin_bytes, "copied_bytes": report.copied_bytes},
        "young": {"packs": report.young_packs, "bytes": report.young_bytes},
        "kept": {"packs": report.kept_packs, "bytes": report.kept_bytes},
        "spared_packs": report.spared_packs,
        "state_versions": report.states,
        "envelopes": report.envelopes,
        "out_of_room": report.out_of_room,
        "problems": [{"object": name, "what": what} for name, what in sorted(report.problems.items())],
    }


def _lines(report: PruneReport) -> list[str]:
    would = "would be " if report.dry_run else ""
    freed = (
        f"{size_text(report.freed_bytes)} {would}freed: {report.unused_packs} packs that nothing needs "
        f"({size_text(report.unused_bytes)}) {would}deleted, {report.thin_packs} packs with much waste "
        f"({size_text(report.thin_bytes)}) {would}made new ({size_text(report.copied_bytes)} copied)"
    )
    needed = (
        f"{report.points} points need {size_text(report.live_bytes)}; beside that "
        f"{size_text(report.waste_bytes)} {'would be' if report.dry_run else 'are'} left as waste"
    )
    lines = [freed, needed]
    if report.young_packs:
        lines.append(f"left alone as too young: {report.young_packs} packs ({size_text(report.young_bytes)})")
    if report.kept_packs:
        lines.append(
            f"kept, as what cannot be read may need it: {report.kept_packs} packs ({size_text(report.kept_bytes)})"
        )
    if report.spared_packs:
        lines.append(f"spared, as a new point needs it or is not known yet to: {report.spared_packs} packs")
    if report.states or report.envelopes:
        lines.append(f"deleted as well: {report.states} state versions, {report.envelopes} envelopes")
    lines += [f"{name}: {what}" for name, what in sorted(report.problems.items())]
    return lines


def _share(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,4}(?:\.[0-9]+)?) ?%?", text.strip())
    if match is None:
        raise InvalidRequest(f"--waste takes a percentage, 20% for instance, and not {text!r}")
    return float(match[1]) / 100


def _size(text: str) -> int:
    size = size_bytes(text)
    if size is None:
        raise InvalidRequest(f"--max-copy takes a size, {SIZE_FORMS} for instance, and not {text!r}")
    return size


def _time(text: str) -> timedelta:
    match = re.fullmatch(r"([0-9]{1,4}) ?([hdw])|0", text.strip())
    if match is None:
        raise InvalidRequest(f"--young takes hours, days or weeks, 12h or 2d for instance, or 0, and not {text!r}")
    return timedelta(hours=int(match[1]) * _HOURS[match[2]]) if match[1] else timedelta(0)
