"""`vmkeep tpm removal`: proofs of what was deleted when a TPM was removed, reset or given a new key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Facts, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.catalog import CatalogDeletion, Trust
    from vmkeep.flows.show_removals import Proved, RemovalShown
    from vmkeep.repository import DeletedFile, DeletedSecret, KeptVersion

app = typer.Typer(
    short_help="Proofs of what was deleted with TPMs.",
    help="Signed proofs of what was deleted when a TPM was removed, reset or given a new key, kept in the repository.",
    epilog="Example: vmkeep tpm removal show win11",
    rich_markup_mode=None,
    no_args_is_help=True,
)
_ID_DIGITS = 8
_VERBS = {None: "remove", "reset": "reset", "rekey": "rekey"}
_TITLES = {
    None: "Removal of a TPM",
    "reset": "Reset of a TPM: what became of the one before",
    "rekey": "New key for a TPM: what became of the state with the one before",
}


@app.command("list", epilog="Example: vmkeep tpm removal list")
def list_removed(
    context: typer.Context,
    vm: Annotated[str | None, typer.Argument(metavar="VM", help="Name that the VM had, or UUID.")] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List the TPMs that were removed, reset or given a new key, and whether all of what they were is gone."""
    from vmkeep.flows.show_removals import list_removals

    with session(context, json=json, connect=connect, debug=debug) as running:
        found = list_removals(running.premises.catalog, vm)
        if running.console.json:
            running.console.document({"removals": [_listed(removal, facts) for removal, facts in found]})
            return
        rows = [
            (
                removal.id[:_ID_DIGITS],
                str(removal.document["vm_name"]),
                str(removal.document["host"]),
                time_text(removal.created),
                _VERBS[removal.document.get("renewal")],
                _outcome(removal, facts),
                _signer(removal.trust) if removal.stored else "not yet",
            )
            for removal, facts in found
        ]
        columns = ("id", "VM", "host", "time", "by", "state", "signed by")
        shown: Table | str = Table(columns=columns, rows=rows) if rows else "no TPM is known to have been removed"
        running.console.show(shown)


@app.command("show", epilog="Example: vmkeep tpm removal show win11 --text removal.txt")
def show(
    context: typer.Context,
    named: Annotated[str, typer.Argument(metavar="VM|ID", help="Name that the VM had, UUID, or a removal's id.")],
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="Write it to a file as well; - for standard output alone."),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what was deleted of a removed TPM, where and when, what was not, and who has signed that."""
    from vmkeep.cli.textfiles import STANDARD, write_text
    from vmkeep.flows.show_removals import show_removals

    with session(context, json=json, connect=connect, debug=debug) as running:
        console = running.console
        found = show_removals(running.premises.catalog, lambda: running.premises.repository, named)
        parts: list[str | Facts] = []
        for each in found:
            parts += [*([""] if parts else []), *proof_parts(each)]
        if text is not None and text != STANDARD:
            lines = (line for part in parts for line in ([part] if isinstance(part, str) else part.lines(None)))
            write_text(text, "".join(f"{line}\n" for line in lines), force=False)
        if console.json:
            console.document({"removals": [_document(each) for each in found]})
        else:
            console.show(*parts)


def _outcome(removal: CatalogDeletion, facts: tuple[CatalogDeletion, ...]) -> str:
    events = {each.event for each in facts}
    over = {name for fact in facts for name in fact.document.get("tombstones", ())}
    if "returned" in events:
        return "has a TPM again"
    if set(removal.document.get("tombstones", ())) - over:
        return "not all deleted"
    if "waived" in events:
        return "waived"
    return "some was left" if any(file["outcome"] == "left" for file in removal.document["files"]) else "deleted"


def _listed(removal: CatalogDeletion, facts: tuple[CatalogDeletion, ...]) -> dict[str, Any]:
    over = {name for fact in facts for name in fact.document.get("tombstones", ())}
    return {
        "id": removal.id,
        "vm": removal.document["vm_name"],
        "vm_uuid": removal.vm_uuid,
        "host": removal.document["host"],
        "created": removal.created,
        "renewal": removal.document.get("renewal"),
        "kept_until": removal.kept_until,
        "outcome": _outcome(removal, facts),
        "open": [each for each in removal.document.get("tombstones", ()) if each not in over],
        "stored": removal.stored,
        "signed_by": removal.signed_by,
        "trust": str(removal.trust),
    }


def _document(shown: RemovalShown) -> dict[str, Any]:
    from vmkeep.flows.show_removals import still_open

    return {
        **_proof_document(shown.removal),
        "open": list(still_open(shown)),
        "facts": [_proof_document(each) for each in shown.facts],
    }


def _proof_document(proved: Proved) -> dict[str, Any]:
    """Return a record as the repository has it, with what is thought of who signed it."""
    return {
        "renewal": None,
        **proved.record.as_json(),
        "stored": proved.stored,
        "signed_by": proved.signed_by,
        "trust": str(proved.trust),
        "trusted": proved.trust.is_proved,
    }


def proof_parts(shown: RemovalShown) -> Iterator[str | Facts]:
    """Yield a removal and what was learned of it since, for people and to be printed."""
    from vmkeep.flows.show_removals import still_open

    record = shown.removal.record
    yield f"{_TITLES[record.renewal]}, {record.id}"
    yield Facts(
        [
            ("VM", f"{record.vm_name} ({record.vm_uuid})"),
            ("host", f"{record.host} ({record.host_uuid})"),
            ("recorded", _instant(record.created)),
            ("signed", _told_of_signer(shown.removal)),
            *(("file", _file_text(each)) for each in record.files),
            *(() if record.secret is None else (("secret", _secret_text(record.secret)),)),
            *(("kept", _version_text(each)) for each in record.versions),
        ]
    )
    for fact in shown.facts:
        yield f"{_instant(fact.record.created)}: {_fact_text(fact)}"
        yield Facts(
            [
                ("signed", _told_of_signer(fact)),
                *(("file", _file_text(each)) for each in fact.record.files),
                *(() if fact.record.secret is None else (("secret", _secret_text(fact.record.secret)),)),
            ]
        )
    for each in still_open(shown):
        yield f"not done yet: tombstone {each} (`vmkeep tombstones list`)"


def _instant(text: str) -> str:
    """Return a time in UTC, whatever zone whoever reads it is in."""
    return f"{text[:19].replace('T', ' ')} UTC"


def _signer(trust: Trust) -> str:
    words = {"own": "this installation", "trusted": "a trusted host", "unsigned": "nobody"}
    return words.get(str(trust), f"a host that is {trust} here")


def _told_of_signer(proved: Proved) -> str:
    if not proved.stored:
        return "not yet: the repository could not be reached since, and nothing but this host's catalogue says so"
    if proved.signed_by is None:
        return "by nobody: nothing proves who wrote this"
    return f"by {_signer(proved.trust)} with key {proved.signed_by}; the signature is right"


def _file_text(file: DeletedFile) -> str:
    about = f"{file.path}\n  {file.size_bytes} bytes"
    about += f", SHA-256 {file.sha256}" if file.sha256 else ""
    about += f"\n  the content is version {file.version}" if file.version else ""
    if file.outcome in ("deleted", "gone"):
        word = "deleted" if file.outcome == "deleted" else "found gone"
        return f"{about}\n  {word} {_instant(file.at)}" if file.at else f"{about}\n  {word}"
    word = "could not be deleted" if file.outcome == "failed" else "left"
    return f"{about}\n  {word}: {file.why}" if file.why else f"{about}\n  {word}"


def _secret_text(secret: DeletedSecret) -> str:
    if secret.outcome == "undefined":
        about = f"{secret.uuid}\n  undefined" + (f" {_instant(secret.at)}" if secret.at else "")
    else:
        word = "could not be undefined" if secret.outcome == "failed" else "stays"
        about = f"{secret.uuid}\n  {word}" + (f": {secret.why}" if secret.why else "")
    for holder in secret.held_by:
        until = "as long as that is kept" if holder.until is None else f"until {_instant(holder.until)}"
        about += f"\n  its value is in {holder.kind} {holder.id}, {until}"
    return about


def _version_text(version: KeptVersion) -> str:
    if version.until is not None:
        until = f"until {_instant(version.until)}"
    else:
        until = f"with {', '.join(version.held_by)}" if version.held_by else "without a term"
    return f"version {version.generation} ({version.version_id}), SHA-256 {version.sha256}\n  {until}"


def _fact_text(fact: Proved) -> str:
    record = fact.record
    match str(record.event):
        case "settled":
            return "what was left is gone"
        case "waived":
            return f"what was left was let be by {record.who}: {record.why}"
        case "superseded":
            return "what was left is needed again"
        case _:
            return "the VM was given a TPM again; its versions have no term any more"
