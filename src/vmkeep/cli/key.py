"""`vmkeep key export` and `vmkeep key import`: the key as text for the safe."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli.passphrases import PassphraseOption, file_refused, passphrase_from, read_whole_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.filesystem import write_new_file

app = typer.Typer(
    short_help="Export the repository's key, and import it.",
    help="The repository's key: as printable text, protected by a passphrase.",
    epilog="Example: vmkeep key export --output key.txt",
    rich_markup_mode=None,
)


@app.command("export", epilog="Example: vmkeep key export --output key.txt")
def export_key(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="A new file, not standard output.", show_default=False),
    ] = None,
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the key that opens the repository. Without it nothing can ever be restored: keep a copy elsewhere."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        running.premises.repository  # noqa: B018  a missing key is told before a passphrase is asked for
        text = running.premises.key_export(passphrase_from(passphrase_file, new=True))
        if output is not None:
            _write_new(output, text)
        if running.console.json:
            running.console.document({"key": {"path": str(output)} if output is not None else {"text": text}})
        elif output is not None:
            running.console.show(f"key written to {output}; keep it and its passphrase apart from this host")
        else:
            running.console.show(*text.splitlines())


@app.command("import", epilog="Example: vmkeep key import key.txt && vmkeep init --repository /srv/vmkeep --adopt")
def import_key(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The exported key; - is standard input.")],
    passphrase_file: PassphraseOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put an exported key on this host, to restore here what another host has backed up."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        text = sys.stdin.read() if file == "-" else read_whole_text(Path(file))
        imported = running.premises.key_import(text, passphrase_from(passphrase_file, new=False))
        if running.console.json:
            running.console.document({"key": asdict(imported)})
        else:
            done = "imported" if imported.new else "was here already"
            running.console.show(f"key {imported.key} {done}: {imported.path}")


def _write_new(path: Path, text: str) -> None:
    try:
        write_new_file(path, text.encode())
    except OSError as error:
        raise file_refused(error, path) from error
