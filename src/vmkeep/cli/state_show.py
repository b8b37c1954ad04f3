"""`vmkeep state show`, `state diff` and `state conflicts`: what is kept of state, in words."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state_words import difference_document, difference_parts, signatures_document, signatures_text
from vmkeep.cli.tables import Facts

if TYPE_CHECKING:
    from vmkeep.catalog import CatalogState
    from vmkeep.flows.secret_holders import SecretHolder
    from vmkeep.flows.show_state import KindShown, StateShown
    from vmkeep.flows.state_conflicts import ConflictSide, StateConflict
    from vmkeep.flows.vm_states import StandingState, VersionKept


class Kind(StrEnum):
    """Kinds of state files."""

    TPM = "tpm"
    NVRAM = "nvram"


KindOption = Annotated[
    Kind | None, typer.Option("--kind", help="Only that of the TPM, or the UEFI variables.", show_default=False)
]

VersionOption = Annotated[
    str | None,
    typer.Option(
        "--version",
        metavar="N",
        help="Another than the newest, by number or 8 digits of its SHA-256; with --kind.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("show", epilog="Example: vmkeep state show win11")(show)
    app.command("diff", epilog="Example: vmkeep state diff win11 1 2 --kind nvram")(diff)
    app.command("conflicts", epilog="Example: vmkeep state conflicts win11")(conflicts)


def show(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show all that is known of one VM's state: files, versions, Secure Boot and its certificates, encryption."""
    from vmkeep.flows.show_state import show_state

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            shown = show_state(running.premises.catalog, lambda: running.premises.repository, host, vm)
        if running.console.json:
            running.console.document({"state": _shown_document(shown)})
            return
        parts: list[str | Facts] = [Facts([("VM", f"{shown.vm} ({shown.vm_uuid}), {where(shown)}")])]
        for kind in shown.kinds:
            parts += ["", Facts(list(kind_facts(kind)))]
        if not shown.kinds:
            parts.append("no state files, and no versions of any")
        commands = [
            f"put the newest {kind.kind} state back with `{kind.remedy}`" for kind in shown.kinds if kind.remedy
        ]
        running.console.show(*parts, *([""] if commands or shown.problems else []), *commands, *shown.problems)


def diff(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    before: Annotated[str, typer.Argument(metavar="N", help="A version: its number, or 8 digits of its SHA-256.")],
    after: Annotated[
        str | None,
        typer.Argument(metavar="M", help="Another one; without it, what lies on the host.", show_default=False),
    ] = None,
    kind: Annotated[Kind, typer.Option("--kind", help="The UEFI variables, or the TPM state.")] = Kind.NVRAM,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what differs between two versions, or between one and the host: variables in words, of a TPM the bytes."""
    from vmkeep.flows.compare_state import compare_kept_state

    with session(context, json=json, connect=connect, debug=debug) as running, running.host() as host:
        found = compare_kept_state(
            running.premises.catalog,
            lambda: running.premises.repository,
            lambda: host,
            vm,
            kind,
            (before, after),
        )
        if running.console.json:
            document = {
                "vm_uuid": found.vm_uuid,
                "before": _outline(found.before),
                "after": None if found.after is None else _outline(found.after),
                **difference_document(found.difference),
            }
            running.console.document({"difference": document})
            return
        after_text = "what lies on the host" if found.after is None else _version_text(found.after)
        head = f"{kind}: {_version_text(found.before)} and {after_text}"
        running.console.show(head, *difference_parts(found.difference))


def conflicts(
    context: typer.Context,
    vm: Annotated[
        str | None,
        typer.Argument(metavar="VM", help="Name or UUID; all without.", autocompletion=complete_vm, show_default=False),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List versions that are conflicts, two contents with one number: both sides, and what restores each."""
    from vmkeep.flows.state_conflicts import state_conflicts

    with session(context, json=json, connect=connect, debug=debug) as running:
        found = state_conflicts(running.premises.catalog, vm)
        if running.console.json:
            running.console.document({"conflicts": [_conflict_document(each) for each in found]})
            return
        lines = [line for conflict in found for line in _conflict_lines(conflict)]
        running.console.show(*(lines or ["no conflicts"]))


# -- one VM ------------------------------------------------------------------------------------------------------


def standing_text(state: StandingState) -> str:
    """Return how a file stands, for people."""
    return "older, by swtpm's backup" if state.judged.from_backup else str(state.judged.standing)


def where(shown: StateShown) -> str:
    if shown.on_host is None:
        return "the host could not be asked"
    if not shown.on_host:
        return "not on this host"
    return "running" if shown.running else "off"


def kind_facts(kind: KindShown) -> Iterator[tuple[str, str]]:
    found, newest = kind.found, kind.newest
    standing = "not on the host" if found is None else standing_text(found)
    if found is not None and found.judged.generation is not None:
        standing += f": version {found.judged.generation}"
    yield kind.kind, standing
    if found is not None:
        yield "file", found.found.path
    for seen in kind.seen:
        yield f"on {seen.host}", f"{seen.path}: {seen.standing}, looked at {time_text(seen.seen_at)}"
    if newest is None:
        yield "newest", "none counts" if kind.versions else "none is kept"
        return
    yield "newest", f"{_version_text(newest.version)}, {size_text(newest.version.size_bytes)}"
    yield "held by", _holders(newest)
    yield "kept", _kept_text(kind)
    if kind.unread is not None:
        yield "content", f"could not be read: {kind.unread}"
    if kind.kind == "tpm":
        yield "encrypted", _encryption_text(kind)
    if kind.variables is not None:
        variables = kind.variables
        yield "Secure Boot", _secure_boot_text(kind)
        yield "variables", str(variables.variables)
        if variables.problem is not None:
            yield "", f"not all of them could be read: {variables.problem}"
        yield from ((each.name, signatures_text(each.signatures)) for each in variables.databases)


def _secure_boot_text(kind: KindShown) -> str:
    assert kind.variables is not None
    word = kind.variables.secure_boot
    if word is None:
        return "unknown"
    return {"on": "on", "off": "off, with a platform key", "not-set-up": "off: no platform key"}[word]


def _kept_text(kind: KindShown) -> str:
    since = time_text(min(each.version.created for each in kind.versions))
    count = len(kind.versions)
    late = sum(each.version.conflict for each in kind.versions)
    text = f"1 version, since {since}" if count == 1 else f"{count} versions, since {since}"
    return f"{text}; conflicts: {late}" if late else text


def _holders(newest: VersionKept) -> str:
    ids = newest.held_by
    if not ids:
        return "itself" if newest.kept else "no point and no snapshot"
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def _encryption_text(kind: KindShown) -> str:
    secret = kind.secret
    kept = None if secret is None else f"libvirt's secret {secret.uuid} is {holder_text(secret)}"
    if kind.encrypted is None:
        return "unknown" if kept is None else f"unknown; {kept}"
    if not kind.encrypted:
        return "no"
    return f"yes; {kept}" if kept else "yes, and the secret that opens it is not kept: keep its value safe"


def _version_text(version: CatalogState) -> str:
    return f"version {version.generation} ({time_text(version.created)}, SHA-256 {version.sha256[:16]})"


def _shown_document(shown: StateShown) -> dict[str, Any]:
    return {
        "vm": shown.vm,
        "vm_uuid": shown.vm_uuid,
        "on_host": shown.on_host,
        "running": shown.running,
        "kinds": {kind.kind: kind_document(kind) for kind in shown.kinds},
        "problems": list(shown.problems),
    }


def kind_document(kind: KindShown) -> dict[str, Any]:
    found, newest, secret, variables = kind.found, kind.newest, kind.secret, kind.variables
    document: dict[str, Any] = {
        "path": None if found is None else found.found.path,
        "standing": None if found is None else str(found.judged.standing),
        "version": None if found is None else found.judged.generation,
        "seen_at": None if found is None else found.seen_at,
        "newest": None if newest is None else {**_outline(newest.version), "held_by": list(newest.held_by)},
        "versions": len(kind.versions),
        "conflicts": sum(each.version.conflict for each in kind.versions),
        "since": min((each.version.created for each in kind.versions), default=None),
        "unread": kind.unread,
        "seen": [
            {
                "host": seen.host,
                "path": seen.path,
                "standing": str(seen.standing),
                "sha256": seen.sha256,
                "since": seen.since,
                "seen_at": seen.seen_at,
            }
            for seen in kind.seen
        ],
        "remedy": kind.remedy,
    }
    if kind.kind == "tpm":
        document["encrypted"] = kind.encrypted
        document["secret"] = holder_document(secret)
    elif variables is None:
        document["variables"] = None
    else:
        document["variables"] = {
            "secure_boot": None if variables.secure_boot is None else str(variables.secure_boot),
            "count": variables.variables,
            "problem": variables.problem,
            "databases": {each.name: signatures_document(each.signatures) for each in variables.databases},
        }
    return document


def _outline(version: CatalogState) -> dict[str, Any]:
    return {
        "version": version.generation,
        "created": version.created,
        "size_bytes": version.size_bytes,
        "sha256": version.sha256,
        "conflict": version.conflict,
    }


# -- conflicts ---------------------------------------------------------------------------------------------------


def _conflict_lines(conflict: StateConflict) -> Iterator[str]:
    yield f"{conflict.vm}: {conflict.kind} version {conflict.conflict.version.generation} was given to two contents"
    sides = (("counts", conflict.counts), ("conflict", conflict.conflict))
    for word, side in sides:
        if side is None:
            yield "  counts: none of that number"
            continue
        yield f"  {word}: SHA-256 {side.version.sha256[:16]}, {time_text(side.version.created)}"
        for holding in side.held_by:
            made = f"on {holding.host}" if holding.host is not None else "a snapshot of this host"
            if holding.trust not in (None, "own", "trusted"):
                made += f" ({holding.trust})"
            yield f"    held by {holding.id}, {made}, {time_text(holding.created)}"
        yield f"    {side.command}"
    if conflict.compare is not None:
        yield f"  what differs: {conflict.compare}"


def _conflict_document(conflict: StateConflict) -> dict[str, Any]:
    return {
        "vm": conflict.vm,
        "vm_uuid": conflict.vm_uuid,
        "kind": conflict.kind,
        "version": conflict.conflict.version.generation,
        "conflict": _side_document(conflict.conflict),
        "counts": None if conflict.counts is None else _side_document(conflict.counts),
        "compare": conflict.compare,
    }


def _side_document(side: ConflictSide) -> dict[str, Any]:
    return {
        **_outline(side.version),
        "held_by": [
            {"id": each.id, "host": each.host, "created": each.created, "trust": each.trust} for each in side.held_by
        ],
        "command": side.command,
    }


def holder_text(holder: SecretHolder) -> str:
    """Say where the value of a secret is."""
    if holder.point:
        return f"in point {holder.point}"
    return "kept with the version" if holder.versions else "kept by itself"


def holder_document(holder: SecretHolder | None) -> dict[str, Any] | None:
    """Return where the value of a secret is, as JSON."""
    if holder is None:
        return None
    return {"uuid": holder.uuid, "point": holder.point or None, "pin": holder.pin or None}
