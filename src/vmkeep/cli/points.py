"""`vmkeep points`, `vmkeep point show` and `vmkeep point delete`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_point, complete_vm
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.tables import Facts, Table
from vmkeep.cli.terminal import one_line

if TYPE_CHECKING:
    from vmkeep.catalog import CatalogPoint
    from vmkeep.host.tasks.survey import Progress

SHORTEST_ID = 8
_NAMED = 4

point_app = typer.Typer(
    help="One point: show it or delete it.",
    epilog="Example: vmkeep point show win11@latest",
    rich_markup_mode=None,
)
PointArgument = Annotated[
    str,
    typer.Argument(
        metavar="POINT", help="The id, its first characters, VM@latest, or VM@TIME.", autocompletion=complete_point
    ),
]


def search_point(running: Session, text: str) -> tuple[CatalogPoint, dict[str, list[str]]]:
    """Return the point that was named, by all that the repository holds, and what a JSON document says beside it."""
    from vmkeep.flows.point_search import search_point as search

    found = search(running.premises, text, _watch_of(running))
    for sentence in found.told:
        running.console.notice(f"warning: {sentence}")
    return _beside(running, text, found.point)


def _watch_of(running: Session) -> Callable[[Progress], None]:
    def watch(report: Progress) -> None:
        if report.note is not None:
            running.console.notice(report.note)

    return watch


def find_point(running: Session, text: str) -> tuple[CatalogPoint, dict[str, list[str]]]:
    """Return the point that was named, by the catalogue alone, and what a JSON document says beside it."""
    return _beside(running, text, running.premises.catalog.find_point(text))


def _beside(running: Session, text: str, found: CatalogPoint) -> tuple[CatalogPoint, dict[str, list[str]]]:
    """Tell what one must know of a point that was not named by its id.

    VM@latest is the last point that somebody or a timer made. Where a restore in place left a later state, that is
    named: the VM may have been brought back from it on purpose, or by mistake.
    """
    catalog = running.premises.catalog
    earlier = list(catalog.against_the_clock(text, found))
    if earlier:
        running.console.notice(
            f"warning: {text} is point {found.id}: the last one made of those whose clock says that time or an earlier "
            f"one. The clocks are not in order: made before it, and with a later clock, {_counted(earlier)}"
        )
    if not text.endswith("@latest"):
        return found, {}
    newer = list(catalog.newer_safety_points(found))
    if newer:
        running.console.notice(
            f"{text} is point {found.id}, taken {time_text(found.created)}; newer is the state that was left by a "
            f"restore or revert, in safety point {', '.join(newer)}"
        )
    return found, {"newer_safety_points": newer}


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep points win11 --tree")(points)


def points(
    context: typer.Context,
    vm: Annotated[
        str | None,
        typer.Argument(metavar="VM", help="Name or UUID.", show_default=False, autocompletion=complete_vm),
    ] = None,
    tree: Annotated[bool, typer.Option("--tree", help="Draw how points descend from each other.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the points that can be restored, oldest first."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        listed, ids = running.listing(vm)
        if running.console.json:
            running.console.document({"points": list(listed)})
            return
        if not listed:
            running.console.show("no points")
            if not ids and _has_points(running.settings.repository):
                running.console.notice(
                    f"the catalogue is new and knows no point, but the repository {running.settings.repository} holds "
                    "some: `vmkeep init --adopt` makes them known"
                )
            return
        length = _id_length(ids)
        if tree:
            running.console.show(*_tree(listed, length))
        else:
            running.console.show(_list(listed, length))


def _has_points(repository: str) -> bool:
    """Return whether a repository in a directory has points; it is not opened, which loads what a list does without."""
    with suppress(OSError), os.scandir(Path(repository, "points")) as objects:
        return any("#" not in entry.name for entry in objects)
    return False


@point_app.command("show", epilog="Example: vmkeep point show win11@latest")
def show(
    context: typer.Context,
    point: PointArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show all that is known of a point."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        found, beside = find_point(running, point)
        children = [other["id"] for other in catalog.summaries(found.vm_uuid) if other["parent"] == found.id]
        sources = {disk.get("target"): disk for disk in found.document.get("disks", ())}
        shown = {**found.summary(), "children": children, **beside}
        for disk in shown["disks"]:
            known = sources.get(disk["target"], {})
            disk.update(source=known.get("source"), format=known.get("format"))
        if running.console.json:
            running.console.document({"point": shown})
        else:
            running.console.show(*_details(shown))


@point_app.command("delete", epilog="Example: vmkeep point delete 3f2a9c01 --yes")
def delete(
    context: typer.Context,
    point: PointArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete a point. The others stay complete; the space that it alone used comes back with `vmkeep prune`."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.stand_apart()
        point_id, vm, question, lost = _to_delete(running, point)
        if lost:
            running.console.notice(f"warning: {lost}")
        running.console.confirm(question, yes=yes)
        with running.engine() as engine:
            engine.delete_point(point_id)
        if running.console.json:
            running.console.document({"deleted": {"point": point_id, "vm": vm}})
        else:
            running.console.show(f"point {point_id} deleted; the space it alone used comes back with `vmkeep prune`")


def _to_delete(running: Session, text: str) -> tuple[str, str | None, str, str]:
    """Return the id and the VM's name of a point that may be a damaged one, the question before it is deleted, and what
    is lost with it.
    """
    from vmkeep.flows.delete_point import told_of_last_secrets
    from vmkeep.flows.point_search import FoundPoint, search_stored

    found = search_stored(running.premises, text, _watch_of(running))
    if not isinstance(found, FoundPoint):
        return found.point, None, f"Delete the damaged point {found.point} for ever? ({found.message})", ""
    for sentence in found.told:
        running.console.notice(f"warning: {sentence}")
    point, _ = _beside(running, text, found.point)
    question = f"Delete point {point.id} of VM {point.vm_name!r}, taken {time_text(point.created)}, for ever?"
    return (
        point.id,
        point.vm_name,
        question,
        told_of_last_secrets(running.premises.catalog, point, running.premises.keep_state_versions),
    )


def _counted(points: Sequence[str]) -> str:
    named = ", ".join(points[:_NAMED])
    return f"are {named}" + (f" and {len(points) - _NAMED} more" if len(points) > _NAMED else "")


def _id_length(ids: Sequence[str]) -> int:
    """Return how many characters tell all these sorted ids apart."""
    needed = SHORTEST_ID
    for one, other in pairwise(ids):
        while one[:needed] == other[:needed]:
            needed += 1
    return needed


def _total(point: Mapping[str, Any], field: str) -> int:
    return sum(disk[field] or 0 for disk in point["disks"])


def _labels(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in point["labels"].items())


def maker_text(point: Mapping[str, Any]) -> str:
    """Return who made a point: its host, and whether that is proved, or by which key, where it is not this one."""
    by = point["made_by"]
    if by["trust"] == "own":
        return str(point["host"])
    key = "" if by["key"] is None else f" {by['key'][:SHORTEST_ID]}"
    known = {"trusted": f"key{key}", "unknown": f"unknown key{key}"}
    return f"{point['host']} ({known.get(by['trust'], by['trust'])})"


def _differ_in_makers(listed: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether it must be told who made which point."""
    makers = {(point["host"], point["made_by"]["key"], point["made_by"]["trust"]) for point in listed}
    return len(makers) > 1 or any(trust in ("unknown", "distrusted") for _, _, trust in makers)


def _list(listed: Sequence[Mapping[str, Any]], length: int) -> Table:
    columns: tuple[str, ...] = ("point", "VM", "kind", "created", "read", "stored", "labels")
    rows: list[tuple[str, ...]] = [
        (
            point["id"][:length],
            point["vm"],
            point["kind"],
            time_text(point["created"]),
            size_text(_total(point, "bytes_read")),
            size_text(_total(point, "bytes_stored")),
            _labels(point),
        )
        for point in listed
    ]
    names = {"VM": 12}
    if _differ_in_makers(listed):
        columns = (*columns[:3], "made by", *columns[3:])
        rows = [(*row[:3], maker_text(point), *row[3:]) for row, point in zip(rows, listed, strict=True)]
        names["made by"] = 16
    return Table(
        columns=columns,
        rows=rows,
        right=("read", "stored"),
        texts={"labels": 10},
        drop=("read",),
        names=names,
    )


def _tree(listed: Sequence[Mapping[str, Any]], length: int) -> list[str]:
    from vmkeep.cli.forest import draw_forest

    told = _differ_in_makers(listed)

    def describe(point: Mapping[str, Any]) -> str:
        stored = size_text(_total(point, "bytes_stored"))
        maker = maker_text(point) if told else ""
        parts = (point["id"][:length], point["kind"], time_text(point["created"]), stored, maker, _labels(point))
        return one_line("  ".join(part for part in parts if part))

    lines: list[str] = []
    for uuid in dict.fromkeys(point["vm_uuid"] for point in listed):
        mine = [point for point in listed if point["vm_uuid"] == uuid]
        lines.append(one_line(f"{mine[-1]['vm']} ({uuid})"))
        lines.extend(draw_forest(mine, describe))
    return lines


def _proof(point: Mapping[str, Any]) -> str:
    by = point["made_by"]
    if by["key"] is None:
        return "not signed"
    who = "this installation" if by["trust"] == "own" else f"installation {by['installation'] or 'unknown'}"
    return f"{who}, key {by['key']} ({by['trust']})"


def _details(point: Mapping[str, Any]) -> list[str | Table | Facts]:
    facts = [
        ("point", point["id"]),
        ("VM", f"{point['vm']} ({point['vm_uuid']})"),
        ("kind", point["kind"]),
        ("created", time_text(point["created"])),
        ("host", point["host"]),
        ("made by", _proof(point)),
        ("parent", point["parent"] or "none"),
        ("children", ", ".join(point["children"]) or "none"),
        ("checkpoint", point["checkpoint"] or "none"),
        ("pause", f"{point['pause_ms']:.0f} ms"),
        ("labels", _labels(point) or "none"),
    ]
    for kind, state in point["state"].items():
        text = f"{size_text(state['bytes'])}, sha256 {state['sha256']}" if state["present"] else "none"
        facts.append((kind, text))
    facts.extend(("secret", f"{secret['usage']} {secret['uuid']}") for secret in point["secrets"])
    facts.extend(("excluded", f"{disk['target']}: {disk['reason']}") for disk in point["excluded"])
    facts.extend(("warning", text) for text in point["warnings"])
    disks = [
        (
            disk["target"],
            disk["mode"],
            disk["reason"],
            size_text(disk["size_bytes"]),
            size_text(disk["bytes_read"]),
            size_text(disk["bytes_stored"]),
            disk["source"] or "",
        )
        for disk in point["disks"]
    ]
    columns = ("disk", "mode", "reason", "size", "read", "stored", "source")
    return [Facts(facts), "", Table(columns=columns, rows=disks, right=("size", "read", "stored"))]
