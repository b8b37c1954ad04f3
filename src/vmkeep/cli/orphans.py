"""`vmkeep orphans`: TPM states, UEFI variables and secrets of TPMs on the host that belong to no VM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from vmkeep.custody.orphans import JudgedFile
    from vmkeep.flows.keep_orphan import OrphanKept
    from vmkeep.flows.orphans import KnownOrphan, OrphanEnd

app = typer.Typer(
    short_help="TPM states and UEFI variables that belong to no VM.",
    help="State on the host's disk that belongs to no VM that libvirt defines: TPM states, UEFI variables, secrets of "
    "TPMs.",
    epilog="Example: vmkeep orphans list",
    rich_markup_mode=None,
)


@app.command("list", epilog="Example: vmkeep orphans list")
def list_orphans(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Show what belongs to no VM, and whether its content is kept."""
    from vmkeep.flows.orphans import find_orphans

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            found = find_orphans(running.premises.catalog, host)
        if running.console.json:
            secrets = [{"uuid": secret.uuid, "usage": secret.usage} for secret in found.secrets]
            orphans = [_document(orphan) for orphan in found.orphans]
            running.console.document({"orphans": orphans, "secrets": secrets, "problems": list(found.problems)})
            return
        shown: list[str | Table] = []
        if found.orphans:
            rows = [
                (
                    each.vm or "-",
                    each.orphan.kind,
                    _kept_text(each),
                    size_text(each.orphan.size_bytes),
                    time_text(each.orphan.modified),
                    each.orphan.path,
                )
                for each in found.orphans
            ]
            columns = ("VM", "kind", "kept", "size", "changed", "path")
            shown.append(Table(columns=columns, rows=rows, right=("size",), drop=("changed", "size")))
        shown += [f"{each.orphan.path}: {sentence}" for each in found.orphans for sentence in _remarks(each)]
        shown += [f"secret {secret.uuid} ({secret.usage}) is named by no VM" for secret in found.secrets]
        running.console.show(*(shown or ["nothing belongs to no VM"]), *found.problems)


@app.command("keep", epilog="Example: vmkeep orphans keep 16b6c512-678b-44b6-a438-527ecc51f748")
def keep(
    context: typer.Context,
    orphan: Annotated[str, typer.Argument(metavar="UUID|PATH", help="The UUID of a TPM's VM, or a path, as listed.")],
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="VM", help="Whose UEFI variables these are, where it is not known.")
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Keep the content of what belongs to no VM as a version, which never becomes the newest by that."""
    from vmkeep.flows.keep_orphan import keep_orphan
    from vmkeep.flows.orphans import choose_orphans, find_orphans

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.premises.ensure()
        with running.host() as host:
            found = find_orphans(running.premises.catalog, host)
            chosen = choose_orphans(found, [orphan], all_kept=False)
            kept = [keep_orphan(running.premises, host, each, vm) for each in chosen]
        if running.console.json:
            running.console.document({"kept": [_kept_document(each) for each in kept]})
            return
        told = [
            f"{path}: {state.kind} version {state.generation} of {each.vm_uuid}"
            f"{', which does not count as its newest' if state.conflict else ''}"
            for each in kept
            for path, state in each.new
        ]
        told += [f"{path} is no state of a VM, and was not kept" for each in kept for path in each.left]
        running.console.show(*(told or ["all of it is kept"]))


@app.command("delete", epilog="Example: vmkeep orphans delete 16b6c512-678b-44b6-a438-527ecc51f748")
def delete_orphan(
    context: typer.Context,
    orphans: Annotated[
        list[str] | None, typer.Argument(metavar="UUID|PATH", help="The UUID of a TPM's VM, or a path, as listed.")
    ] = None,
    all_kept: Annotated[bool, typer.Option("--all-kept", help="All whose content is kept.")] = False,
    unkept: Annotated[
        bool, typer.Option("--unkept", help="Also those that are named and whose content is lost.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Delete what belongs to no VM. What is not kept as a version is refused, unless that is said."""
    from vmkeep.errors import InvalidRequest, OperationFailed
    from vmkeep.flows.orphans import choose_orphans, delete_orphans, find_orphans, refuse_loss

    if bool(orphans) == all_kept or (all_kept and unkept):
        raise InvalidRequest(
            "name what is to be deleted, or give --all-kept", hint="`vmkeep orphans list` shows what belongs to no VM."
        )
    with session(context, json=json, connect=connect, debug=debug) as running:
        console = running.console
        with running.host() as host:
            found = find_orphans(running.premises.catalog, host)
            chosen = choose_orphans(found, orphans or (), all_kept=all_kept)
            if not unkept:
                refuse_loss(chosen)
            if chosen:
                console.confirm(_question(chosen), yes=yes)
            ends = delete_orphans(
                running.premises.catalog, host, chosen, lambda end: _tell(end, running.console.notice)
            )
        if console.json:
            console.document({"deleted": [_end_document(end) for end in ends], "problems": list(found.problems)})
        else:
            removed = [f"deleted {path}" for end in ends for path in end.removed]
            console.show(*(removed or ["nothing was deleted"]), *found.problems)
        failed = [end for end in ends if not end.is_done]
        if len(ends) == 1 and ends[0].error is not None:
            raise ends[0].error
        if failed:
            raise OperationFailed(f"{len(failed)} of {len(ends)} were not deleted whole", hint="Each is listed.")


def _tell(end: OrphanEnd, notice: Any) -> None:
    for sentence in end.left:
        notice(f"error: {sentence}: it was left")
    if end.error is not None:
        notice(f"error: {end.error}")


def _question(chosen: tuple[KnownOrphan, ...]) -> str:
    lost = [each for each in chosen if not each.is_kept]
    what = "\n".join(f"  {each.orphan.path} ({_kept_text(each)})" for each in chosen)
    loss = " What is not kept is lost for good." if lost else ""
    return f"Delete what belongs to no VM?{loss}\n{what}\n"


def _kept_text(each: KnownOrphan) -> str:
    """Say whether the content is kept: of which version, where there is one file."""
    if not each.is_kept:
        return "no"
    versions = [judged for judged in each.files if judged.version is not None]
    if not versions:
        return "empty"
    first = versions[0]
    assert first.version is not None
    return f"version {first.version.generation} ({first.keeping})"


def _remarks(each: KnownOrphan) -> list[str]:
    told = [*each.orphan.strange]
    told += [f"{judged.file.name or 'it'}: {judged.file.problem}" for judged in each.files if judged.file.problem]
    if each.orphan.in_use:
        told.append("a swtpm works in it")
    return told


def _document(each: KnownOrphan) -> dict[str, Any]:
    orphan = each.orphan
    return {
        "kind": orphan.kind,
        "path": orphan.path,
        "vm": each.vm or None,
        "vm_uuid": each.vm_uuid or None,
        "size_bytes": orphan.size_bytes,
        "modified": orphan.modified or None,
        "kept": each.is_kept,
        "in_use": orphan.in_use,
        "strange": list(orphan.strange),
        "files": [_file_document(each, judged) for judged in each.files],
    }


def _file_document(each: KnownOrphan, judged: JudgedFile) -> dict[str, Any]:
    file, version = judged.file, judged.version
    return {
        "path": each.orphan.place_of(file),
        "size_bytes": file.size_bytes,
        "modified": file.modified,
        "sha256": file.sha256,
        "kept": str(judged.keeping),
        "version": None if version is None else version.generation,
        "vm_uuid": None if version is None else version.vm_uuid,
        "problem": file.problem,
    }


def _kept_document(kept: OrphanKept) -> dict[str, Any]:
    return {
        "path": kept.path,
        "vm_uuid": kept.vm_uuid,
        "new": [
            {
                "path": path,
                "kind": state.kind,
                "version": state.generation,
                "sha256": state.sha256,
                "conflict": state.conflict,
            }
            for path, state in kept.new
        ],
        "left": list(kept.left),
    }


def _end_document(end: OrphanEnd) -> dict[str, Any]:
    return {
        "path": end.orphan.orphan.path,
        "kind": end.orphan.orphan.kind,
        "vm_uuid": end.orphan.vm_uuid or None,
        "removed": list(end.removed),
        "left": list(end.left),
        "error": None if end.error is None else end.error.as_dict(),
    }
