"""How checkpoints and snapshots are shown: as objects of JSON, as tables, as facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from vmkeep.cli.console import time_text
from vmkeep.cli.tables import Facts, Table
from vmkeep.host.tasks.moments import VmMoments
from vmkeep.moments import AnyMoment, Checkpoint, CheckpointType, MomentKind, MomentTree, Snapshot, SnapshotLocation

NO_HEALTH: Mapping[str, str] = {}


def moment_object(
    moment: AnyMoment, found: VmMoments, tree: MomentTree[AnyMoment], health: Mapping[str, str] = NO_HEALTH
) -> dict[str, Any]:
    """Return what the JSON of every command says of a moment; ``health`` is a short text for some of them."""
    name = moment.name or ""
    parent = tree.parent(name)
    shown: dict[str, Any] = {
        "name": name,
        "vm": found.vm,
        "vm_uuid": found.uuid,
        "description": moment.description,
        "created": _created(moment),
        "parent": None if parent is None else parent.name,
        "children": [child.name for child in tree.children(name)],
    }
    if isinstance(moment, Snapshot):
        shown |= {
            "current": found.current == name,
            "state": moment.state.value,
            "location": _location(moment),
            "memory": {"location": moment.memory.location.value, "file": moment.memory.file},
            "disks": [
                {
                    "target": disk.name,
                    "location": disk.location.value,
                    "source": disk.source,
                    "format": disk.format,
                }
                for disk in moment.disks
            ],
        }
    else:
        shown["disks"] = [{"target": disk.name, "bitmap": disk.bitmap} for disk in _recorded(moment)]
    if name in health:
        shown["health"] = health[name]
    return shown


def moment_table(
    objects: Sequence[Mapping[str, Any]], kind: MomentKind, *, parents: bool, health: bool = False
) -> Table:
    """Return a table of what ``moment_object`` returned."""
    columns = [str(kind), "created", *(("state", "location") if kind is MomentKind.SNAPSHOT else ("disks",))]
    columns += ["parent"] if parents else []
    columns += ["health"] if health else []
    rows = [
        (
            shown["name"],
            _time(shown["created"]),
            *(
                (shown["state"], shown["location"])
                if kind is MomentKind.SNAPSHOT
                else (", ".join(disk["target"] for disk in shown["disks"]) or "none",)
            ),
            *((shown["parent"] or "",) if parents else ()),
            *((shown.get("health", ""),) if health else ()),
        )
        for shown in objects
    ]
    disks = ("disks",) if "disks" in columns else ()
    return Table(
        columns=columns, rows=rows, texts=dict.fromkeys(disks, 12), drop=disks if health else (), sentences=health
    )


def moment_facts(shown: Mapping[str, Any], kind: MomentKind) -> Facts:
    """Return all that is known of one, a line each."""
    facts = [
        (str(kind), shown["name"]),
        ("VM", f"{shown['vm']} ({shown['vm_uuid']})"),
        ("description", shown["description"] or "none"),
        ("created", _time(shown["created"])),
        ("parent", shown["parent"] or "none"),
        ("children", ", ".join(shown["children"]) or "none"),
        ("descendants", str(shown["descendants"])),
    ]
    if kind is MomentKind.SNAPSHOT:
        memory = shown["memory"]
        facts += [
            ("current", "yes" if shown["current"] else "no"),
            ("state", shown["state"]),
            ("location", shown["location"]),
            ("memory", memory["file"] or _where(memory["location"], "none")),
            ("disks", _listed(_disk_text(disk) for disk in shown["disks"])),
        ]
    else:
        facts.append(("disks", _listed(disk["target"] for disk in shown["disks"])))
    if "health" in shown:
        facts.append(("health", shown["health"]))
    return Facts(facts)


def _disk_text(disk: Mapping[str, Any]) -> str:
    return f"{disk['target']} {disk['source'] or _where(disk['location'], 'left out')}"


def _where(location: str, absent: str) -> str:
    return absent if location == str(SnapshotLocation.NO) else location


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts) or "none"


def _recorded(moment: Checkpoint) -> list[Any]:
    return [disk for disk in moment.disks if disk.type is not CheckpointType.NO]


def _location(snapshot: Snapshot) -> str:
    """As virsh tells it: external when any part of it is."""
    parts = (snapshot.memory.location, *(disk.location for disk in snapshot.disks))
    return "external" if SnapshotLocation.EXTERNAL in parts else "internal"


def _created(moment: AnyMoment) -> str | None:
    """Return the time in ISO 8601; None for one that is not told, or that no calendar has."""
    if moment.creation_time == 0:
        return None
    try:
        return datetime.fromtimestamp(moment.creation_time, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):
        return None


def _time(created: str | None) -> str:
    return "-" if created is None else time_text(created)
