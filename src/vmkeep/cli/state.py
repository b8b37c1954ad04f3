"""`vmkeep state`: TPM state and UEFI variables of VMs, as they are on the host and as they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli import state_bundle, state_show
from vmkeep.cli.completion import complete_point, complete_vm
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state_show import Kind, VersionOption, standing_text
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkeep.catalog import CatalogState
    from vmkeep.cli.session import Session
    from vmkeep.flows.capture_states import Captured
    from vmkeep.flows.vm_states import StandingState, VersionKept

YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
PointOption = Annotated[
    str | None,
    typer.Option(
        "--point",
        metavar="POINT",
        help="That of a point of the VM, in place of the newest.",
        show_default=False,
        autocompletion=complete_point,
    ),
]
app = typer.Typer(
    short_help="TPM state and UEFI variables: on the host, and kept.",
    help="TPM state and UEFI variables of VMs: how those on the host stand to the versions that are kept.",
    epilog="Example: vmkeep state list",
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: vmkeep state list win11")
def list_states(
    context: typer.Context,
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="VM", help="Names or UUIDs; all without.", autocompletion=complete_vm),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show how the state files on the host stand to the newest version that is kept."""
    from vmkeep.flows.vm_states import look_at_standings, remedy

    with session(context, json=json, connect=connect, debug=debug) as running:
        catalog = running.premises.catalog
        with running.host() as host:
            found = look_at_standings(catalog, host, tuple(vms or ()))
        remedies = [remedy(state) for state in found.states]
        if running.console.json:
            states = [_state_document(state, command) for state, command in zip(found.states, remedies, strict=True)]
            running.console.document({"states": states, "problems": list(found.problems)})
            return
        if not found.states and not found.problems:
            running.console.show("no state files")
            return
        columns = ("VM", "kind", "standing", "version", "newest", "kept", "file")
        rows = [
            (
                state.vm,
                state.found.kind,
                standing_text(state),
                _number(state.judged.generation),
                _number(state.newest.generation if state.newest is not None else None),
                time_text(state.newest.created) if state.newest is not None else "",
                state.found.path,
            )
            for state in found.states
        ]
        told = [
            f"{state.vm}: put the newest {state.found.kind} state back with `{command}`"
            for state, command in zip(found.states, remedies, strict=True)
            if command is not None
        ]
        table = Table(columns=columns, rows=rows, right=("version", "newest"), drop=("kept", "newest"))
        running.console.show(table, *told, *found.problems)


@app.command("versions", epilog="Example: vmkeep state versions win11 --kind tpm")
def list_versions(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="Only those of the TPM, or of the UEFI variables.")
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the versions of a VM's state files that are known, the newest first, and what keeps each."""
    from vmkeep.flows.vm_states import versions_kept

    with session(context, json=json, connect=connect, debug=debug) as running:
        kept = versions_kept(running.premises.catalog, vm, kind)
        if running.console.json:
            running.console.document({"versions": [_version_document(each) for each in kept]})
            return
        if not kept:
            running.console.show("no versions")
            return
        columns = ["kind", "version", "kept", "size", "SHA-256", "standing", "held by"]
        # Of a TPM that was never encrypted there is nothing to say.
        with_secrets = any(each.secret for each in kept)
        rows = [
            (
                each.version.kind,
                str(each.version.generation),
                time_text(each.version.created),
                size_text(each.version.size_bytes),
                each.version.sha256[:16],
                _standing_word(each),
                _holders(each),
                *([_key_text(each)] if with_secrets else []),
            )
            for each in kept
        ]
        columns += ["key"] if with_secrets else []
        running.console.show(Table(columns=columns, rows=rows, right=("version", "size"), drop=("SHA-256", "size")))


state_show.register(app)
state_bundle.register(app)


@app.command("capture", epilog="Example: vmkeep state capture --all")
def capture_state(
    context: typer.Context,
    vms: Annotated[
        list[str] | None, typer.Argument(metavar="VM", help="Names or UUIDs.", autocompletion=complete_vm)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of all VMs of the host that have state files.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Keep what is new of state files as versions, without a point; of a VM that runs only the TPM."""
    from vmkeep.errors import InvalidRequest, OperationFailed, VmkeepError
    from vmkeep.flows.capture_states import capture_states
    from vmkeep.flows.forget_vm import settle_forgotten
    from vmkeep.host.tasks.survey import LookAtStates

    if bool(vms) == everything:
        raise InvalidRequest("name VMs, or give --all", hint="`vmkeep vm list` shows the VMs of the host.")
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.premises.ensure()
        settle_forgotten(running.premises)
        captured, failed = [], []
        with running.host() as host:
            names = vms or [vm.uuid for vm in host.ask(LookAtStates()) if vm.files]
            for name in names:
                try:
                    captured.append(capture_states(running.premises, host, name))
                except VmkeepError as error:
                    failed.append(error)
        documents = [captured_document(each) for each in captured]
        if running.console.json:
            running.console.document({"captured": documents, "failed": [error.as_dict() for error in failed]})
        else:
            running.console.show(*(captured_text(each) for each in captured))
        for told in (sentence for capture in captured for sentence in capture.older):
            running.console.notice(f"warning: {told}")
        if failed and len(names) == 1:
            raise failed[0]
        for each in failed:
            running.console.notice(f"error: {each}")
        if failed:
            raise OperationFailed(
                f"the state of {len(failed)} of {len(names)} VMs was not captured", hint="Each is listed."
            )


@app.command("restore", epilog="Example: vmkeep state restore win11 --kind tpm --version 3")
def restore_state(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only that of the TPM, or the UEFI variables.")] = None,
    version: VersionOption = None,
    point: PointOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put kept state back in place of what a VM has now, which is kept first. The VM must be off."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        put_back(running, vm, kind, version, point, yes=yes)


def put_back(running: Session, vm: str, kind: str | None, version: str | None, point: str | None, *, yes: bool) -> None:
    """Put the newest version back, the one that is named, or that of a point."""
    from vmkeep.flows.restore_states import request_for, require_replaceable, way_back

    versions = _versions_to_put_back(running, vm, kind, version, point)
    running.premises.ensure()
    with running.engine() as engine:
        with running.host() as host:
            # What cannot be done is said before anybody is asked whether it shall be.
            seen = require_replaceable(host, versions)
            running.console.confirm(
                f"Put {_versions_text(versions)} back, in place of what VM {seen.name!r} has now? That is kept as a "
                "version first.",
                yes=yes,
            )
            request = request_for(running.premises, host, versions)
        back = way_back(request)
        for command in back:
            # Told at once: whatever happens from here on, this is the way back.
            running.console.notice(f"what VM {seen.name} has now is kept; `{command}` goes back to it")
        with running.console.progress() as watch:
            restored = engine.restore_states(request, watch)
    if running.console.json:
        running.console.document(
            {
                "restored": {
                    "vm": restored.name,
                    "vm_uuid": restored.uuid,
                    "versions": [
                        {"kind": each.kind, "version": each.generation, "sha256": each.sha256} for each in versions
                    ],
                    "way_back": list(back),
                    "warnings": list(restored.warnings),
                }
            }
        )
    else:
        told = f"VM {restored.name} has {_versions_text(versions)} again"
        running.console.show(told, *(f"to go back: {command}" for command in back))
    for warning in restored.warnings:
        running.console.notice(f"warning: {warning}")


def _versions_to_put_back(
    running: Session, vm: str, kind: str | None, version: str | None, point: str | None
) -> tuple[CatalogState, ...]:
    from vmkeep.cli.points import search_point
    from vmkeep.errors import InvalidRequest
    from vmkeep.flows.hosts import refuse_distrusted
    from vmkeep.flows.vm_states import require_point_of, versions_asked_for, versions_of_point

    catalog = running.premises.catalog
    if point is None:
        return tuple(each.version for each in versions_asked_for(catalog, vm, kind, version))
    if version is not None:
        raise InvalidRequest("--version and --point both name a version", vm=vm, hint="Give one of them.")
    found = search_point(running, point)[0]
    require_point_of(catalog, found, vm)
    refuse_distrusted(catalog, found.id)
    return versions_of_point(catalog, found, kind)


def _versions_text(versions: Sequence[CatalogState]) -> str:
    names = {"tpm": "TPM state", "nvram": "UEFI variables"}
    return " and ".join(
        f"version {version.generation} of its {names[version.kind]} ({time_text(version.created)})"
        for version in versions
    )


@app.command("try", epilog="Example: vmkeep state try win11 --version 3")
def try_version(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", help="Another than the newest of its TPM state.", min=1)
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let swtpm load a copy of a kept TPM 2.0 state, and say whether it does. The VM is not touched."""
    from vmkeep.errors import StateTorn
    from vmkeep.flows.try_state import try_state

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            kept, tried = try_state(running.premises.catalog, host, vm, version)
        told = f"version {kept.generation} of the TPM state of {vm}"
        if running.console.json:
            running.console.document({"version": kept.generation, "loads": tried.loads, "why": tried.why or None})
        elif tried.loads is None:
            running.console.show(f"{told} was not tried: {tried.why}")
        elif tried.loads:
            running.console.show(f"{told} loads")
        if tried.loads is False:
            raise StateTorn(
                f"{told} does not load: {tried.why}",
                vm=vm,
                hint="Is libvirt's secret for it another one now? Else try an older version: `vmkeep state versions` "
                "lists them.",
            )


@app.command("accept", epilog="Example: vmkeep state accept win11 --kind nvram")
def accept_state(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    kind: Annotated[Kind | None, typer.Option("--kind", help="Only that of the TPM, or the UEFI variables.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Let an older or missing state that lies there count as meant: the gate lets it start, and points keep it."""
    from vmkeep.flows.gate import accept_states

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Let the state files of VM {vm!r} count as they are now? What its guest sealed to another TPM state does "
            "not open with an older one, and never with a blank one.",
            yes=yes,
        )
        with running.host() as host:
            accepted = accept_states(running.premises.catalog, host, vm, kind)
        if running.console.json:
            running.console.document({"accepted": [_state_document(state, None) for state in accepted]})
            return
        told = [f"{state.vm}: its {state.found.kind} state counts ({standing_text(state)})" for state in accepted]
        running.console.show(*(told or [f"{vm}: nothing needs it"]))


def captured_text(captured: Captured) -> str:
    """Say what a capture kept."""
    kept = ", ".join(f"{state.kind} version {state.generation}" for state in captured.new)
    return f"{captured.vm}: {kept or 'nothing new'}"


def captured_document(captured: Captured) -> dict[str, Any]:
    """Return what a capture kept as JSON."""
    return {
        "vm": captured.vm,
        "vm_uuid": captured.vm_uuid,
        "read": list(captured.kinds),
        "new": [{"kind": state.kind, "version": state.generation, "sha256": state.sha256} for state in captured.new],
        "older": list(captured.older),
        "recovered": captured.recovered,
    }


def _number(generation: int | None) -> str:
    return "" if generation is None else str(generation)


def _standing_word(kept: VersionKept) -> str:
    if kept.current:
        return "current"
    if kept.version.conflict:
        return "conflict"
    return "repeats" if kept.repeats else "" if kept.vouched else "not trusted"


def _holders(kept: VersionKept) -> str:
    ids = kept.held_by
    if not ids:
        return "itself" if kept.kept else "nothing"
    return ids[0] if len(ids) == 1 else f"{ids[0]} and {len(ids) - 1} more"


def _key_text(kept: VersionKept) -> str:
    if kept.version.kind != "tpm":
        return "-"
    return "kept" if kept.secret else "no"


def _state_document(state: StandingState, command: str | None) -> dict[str, Any]:
    newest = state.newest
    return {
        "vm": state.vm,
        "vm_uuid": state.vm_uuid,
        "running": state.running,
        "kind": state.found.kind,
        "path": state.found.path,
        "standing": str(state.judged.standing),
        "from_backup": state.judged.from_backup,
        "version": state.judged.generation,
        "sha256": state.found.sha256,
        "size_bytes": state.found.size_bytes,
        "newest": None if newest is None else {"version": newest.generation, "created": newest.created},
        "seen_at": state.seen_at,
        "problem": state.found.problem,
        "remedy": command,
    }


def _version_document(kept: VersionKept) -> dict[str, Any]:
    version = kept.version
    return {
        "kind": version.kind,
        "version": version.generation,
        "created": version.created,
        "size_bytes": version.size_bytes,
        "sha256": version.sha256,
        "current": kept.current,
        "conflict": version.conflict,
        "vouched": kept.vouched,
        "repeats": kept.repeats,
        "held_by": list(kept.held_by),
        "kept": kept.kept,
        "secret": kept.secret,
    }
