"""`vmkeep key`: the keys that open the repository, what holds them, and the key as text and on paper for the safe."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import time_text
from vmkeep.cli.key_recipients import KeyOption, told_of_change
from vmkeep.cli.key_recipients import app as recipients_app
from vmkeep.cli.passphrases import PassphraseOption, file_refused, passphrase_from, read_whole_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Facts, Table
from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.filesystem import write_new_file

if TYPE_CHECKING:
    from vmkeep.flows.show_keys import KeyShown, KeyStatus

app = typer.Typer(
    short_help="The keys that open the repository.",
    help="The keys that open the repository: what holds them, who has one, and a copy for the safe.",
    epilog="Example: vmkeep key status",
    rich_markup_mode=None,
)
app.add_typer(recipients_app, name="recipients")


@app.command("export", epilog="Example: vmkeep key export --paper key.html")
def export_key(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A new file, not standard output.", show_default=False),
    ] = None,
    paper: Annotated[
        Path | None,
        typer.Option(
            "--paper",
            metavar="FILE",
            help="A new page for a printer: the key as lines to type and as a code to scan. HTML, or text for *.txt.",
            show_default=False,
        ),
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the key that opens the repository. Without it nothing can ever be restored: keep a copy elsewhere."""
    if output is not None and paper is not None:
        raise InvalidRequest("--output and --paper are mutually exclusive", hint="Leave one of them out.")
    with session(context, json=json, connect=connect, debug=debug) as running:
        premises = running.premises
        chosen = premises.key_to_export(key)  # a missing key is told before a passphrase is asked for
        passphrase = passphrase_from(passphrase_file, new=True)
        path = output or paper
        if paper is not None:
            from vmkeep.flows.export_key import export_on_paper

            export_on_paper(premises, chosen, passphrase, paper)
        else:
            from vmkeep.keys import export_key as as_text

            text = as_text(chosen, passphrase)
            if output is not None:
                _write_new(output, text)
        if running.console.json:
            running.console.document({"key": {"path": str(path)} if path is not None else {"text": text}})
        elif paper is not None:
            running.console.show(f"key written to {paper}, read again, and proved: it opens the repository")
            running.console.show("print it, keep it apart from its passphrase and from this host, and remove the file")
        elif output is not None:
            running.console.show(f"key written to {output}; keep it and its passphrase apart from this host")
        else:
            running.console.show(*text.splitlines())
        try:
            premises.keychain.note_export(chosen.key_id)
        except VmkeepError as error:
            running.console.notice(f"that it was exported could not be noted: {error.message}")


@app.command("import", epilog="Example: vmkeep key import key.txt && vmkeep init --repository /srv/vmkeep --adopt")
def import_key(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The exported key; - is standard input.")],
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put an exported key on this host, to restore here what another host has backed up.

    The text of `vmkeep key export`, scanned from paper or not; or the lines of a page, typed.
    """
    from vmkeep.flows.show_keys import recipients_besides

    with session(context, json=json, connect=connect, debug=debug) as running:
        text = sys.stdin.read() if file == "-" else read_whole_text(Path(file))
        imported = running.premises.key_import(text, passphrase_from(passphrase_file, new=False))
        if running.console.json:
            running.console.document({"key": asdict(imported)})
        else:
            done = "imported" if imported.new else "was here already"
            running.console.show(f"key {imported.key} {done}: {imported.path}")
            needed = recipients_besides(running.premises, imported.key)
            if needed:
                running.console.notice(
                    f"warning: the repository {running.settings.repository} is not opened by this key any more; it is "
                    f"opened by {', '.join(needed)}"
                )


@app.command("providers", epilog="Example: vmkeep key providers")
def providers(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List what holds keys here, key files and what the settings name, and whether each does what it should."""
    from vmkeep.flows.show_keys import keys_at_hand

    with session(context, json=json, connect=connect, debug=debug) as running:
        shown = keys_at_hand(running.premises)
        if running.console.json:
            running.console.document({"providers": [key_document(each) for each in shown]})
            return
        if not shown:
            running.console.show("no key is at hand; the first point makes one, and `vmkeep key import` brings one")
            return
        rows = [
            (each.name or "-", each.kind, each.key, each.state, "yes" if each.recipient else "no", each.where)
            for each in shown
        ]
        columns = ("name", "kind", "key", "state", "recipient", "where")
        table = Table(columns=columns, rows=rows, drop=("where",), names={"where": 20})
        told = [f"{each.name or each.key}: {each.problem}. {each.hint}" for each in shown if each.problem]
        running.console.show(table, *told)


@app.command("status", epilog="Example: vmkeep key status")
def status(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Tell who opens the repository, since when, and what would be lost without the keys."""
    from vmkeep.flows.show_keys import key_status

    with session(context, json=json, connect=connect, debug=debug) as running:
        found = key_status(running.premises)
        if running.console.json:
            document = {**asdict(found), "recipients": [key_document(each) for each in found.recipients]}
            running.console.document({"key_status": {**document, "warnings": list(found.warnings)}})
            return
        facts = [
            ("repository", f"{found.repository} at {found.location}"),
            ("keyring", f"generation {found.generation}, {found.data_keys} data key{'s'[: found.data_keys != 1]}"),
            *(fact for each in found.recipients for fact in _facts(each)),
            ("lost without", _lost(found)),
        ]
        told = [
            f"what opens {each.versions} of the TPM states of {each.vm}, the newest is version {each.newest}, is in no "
            "envelope: keep the value of libvirt's secret yourself"
            for each in found.secrets_not_kept
        ]
        running.console.show(Facts(facts), *told, *found.unread, *found.warnings)


@app.command("rewrap", epilog="Example: vmkeep key rewrap --to vault --yes")
def rewrap_keys(
    context: typer.Context,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="NAME", help="A key that is at hand, as listed; without it a new key file is made."
        ),
    ] = None,
    instead_of: Annotated[
        str | None,
        typer.Option("--instead-of", metavar="KEY", help="Whose place it takes; without it, that of the one in use."),
    ] = None,
    new_data_key: Annotated[
        bool, typer.Option("--new-data-key", help="Also seal what is written from now on with a new data key.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put another key in the place of the one that opens the repository. No point is read or written for it."""
    from vmkeep.flows.change_recipients import recipient_named, rewrap

    with session(context, json=json, connect=connect, debug=debug) as running:
        premises = running.premises
        former = premises.key.key_id if instead_of is None else recipient_named(premises, instead_of)
        running.console.confirm(
            f"Put another key in the place of {former}? Copies of it, on paper and on other hosts, open the repository "
            "no longer: export the new one.",
            yes=yes,
        )
        done = rewrap(premises, to, instead_of=instead_of, new_data_key=new_data_key)
        told_of_change(running, done)


@app.command("passphrase", epilog="Example: vmkeep key passphrase")
def set_passphrase(
    context: typer.Context,
    remove: Annotated[bool, typer.Option("--remove", help="Write the key file without a passphrase again.")] = False,
    key: KeyOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Seal a key file with the passphrase in the file that the setting key_passphrase_file names."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.keys import KeyFile

        keychain = running.premises.keychain
        held = running.premises.key if key is None else keychain.named(key)
        if not isinstance(held, KeyFile):
            raise InvalidRequest(f"{held.where} is no key file; its provider protects it", hint="Nothing was changed.")
        held.protect(None if remove else keychain.passphrase())
        keychain.file(held.key_id)  # read again: it opens as the next command will open it
        if running.console.json:
            running.console.document({"key": {"key": held.key_id, "path": str(held.path), "passphrase": not remove}})
        else:
            has = "has no passphrase now" if remove else "has the passphrase of key_passphrase_file now"
            running.console.show(f"the key file {held.path} {has}")


def key_document(shown: KeyShown) -> dict[str, Any]:
    """Return a key as ``--json`` has it."""
    return {**asdict(shown), "at_hand": shown.at_hand}


def _facts(shown: KeyShown) -> list[tuple[str, str]]:
    since = f", since {time_text(shown.since)}" if shown.since else ""
    what = f"{shown.kind}{f' {shown.name!r}' if shown.name else ''}{since}{', in use' if shown.in_use else ''}"
    name = f"key {shown.key[:8]}"
    if not shown.at_hand:
        return [(name, f"{what}; not at hand")]
    told = [what, shown.where + (", with a passphrase" if shown.passphrase else "")]
    if shown.is_file:
        told.append(f"exported here last {time_text(shown.exported)}" if shown.exported else "never exported here")
    return [(name if number == 0 else "", sentence) for number, sentence in enumerate(told)]


def _lost(found: KeyStatus) -> str:
    vms = "1 VM" if found.vms == 1 else f"{found.vms} VMs"
    return f"{found.points} points of {vms}, {found.state_versions} versions of TPM state and UEFI variables"


def _write_new(path: Path, text: str) -> None:
    try:
        write_new_file(path, text.encode())
    except OSError as error:
        raise file_refused(error, path) from error
