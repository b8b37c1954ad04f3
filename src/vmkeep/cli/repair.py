"""`vmkeep repair`: what points have lost is found elsewhere in the repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.errors import IntegrityError

if TYPE_CHECKING:
    from vmkeep.repository.repair import RepairReport

_MOST_LINES = 50


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command(short_help="Find what points have lost in other packs.", epilog="Example: vmkeep repair --dry-run")(
        repair
    )


def repair(
    context: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be mended.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Mend points whose packs are gone or were found damaged, from other packs that hold the same blocks.

    After `vmkeep backup --full VM` those are all blocks that the VM still has.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        with running.engine(needs_home=False) as engine, running.console.progress() as watch:
            report = engine.repair(watch, dry_run=dry_run)
        if running.console.json:
            running.console.document({"repaired": _document(report)})
        else:
            running.console.show(*_lines(report))
        if report.lost or report.unreadable:
            points = {each.point for each in report.lost} | report.unreadable.keys()
            raise IntegrityError(
                f"{len(points)} points cannot be restored in full: {', '.join(sorted(points)[:5])}",
                path=running.premises.repository.location,
                hint="`vmkeep backup --full VM`, and `vmkeep repair` after that, brings back what the VM still has. "
                "`vmkeep point delete POINT` lets a point go.",
            )


def _document(report: RepairReport) -> dict[str, Any]:
    return {**asdict(report), "unreadable": [{"point": each, "why": why} for each, why in report.unreadable.items()]}


def _lines(report: RepairReport) -> Iterator[str]:
    if not report.harmed and not report.unreadable:
        yield f"nothing is lost of {report.points} points, as far as is known: `vmkeep verify --all` reads everything"
        return
    would = "would be" if report.dry_run else "were"
    yield f"{len(report.healed)} of {len(report.harmed)} harmed points {would} healed"
    yield f"{report.blocks} blocks and {report.nodes} parts of manifests {would} found in other packs"
    for number, each in enumerate(report.lost):
        if number == _MOST_LINES:
            yield f"and {len(report.lost) - number} more; `--json` has all"
            break
        yield f"lost: {each.length} bytes at {each.start} of {each.disk} in point {each.point} of VM {each.vm}"
    for point, why in report.unreadable.items():
        yield f"point {point} cannot be read: {why}"
