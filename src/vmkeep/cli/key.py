"""`vmkeep key export` and `vmkeep key import`: the key as text for the safe."""

from __future__ import annotations

import getpass
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.errors import HostFileMissing, InvalidRequest, TargetExists, VmkeepError
from vmkeep.filesystem import file_error, write_new_file

app = typer.Typer(
    short_help="Export the repository's key, and import it.",
    help="The repository's key: as printable text, protected by a passphrase.",
    epilog="Example: vmkeep key export --output key.txt",
    rich_markup_mode=None,
)

PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Read the passphrase from the first line of a file instead of asking for it.",
        show_default=False,
    ),
]


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
        text = running.premises.key_export(_passphrase(passphrase_file, new=True))
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
        text = sys.stdin.read() if file == "-" else _read(Path(file))
        imported = running.premises.key_import(text, _passphrase(passphrase_file, new=False))
        if running.console.json:
            running.console.document({"key": asdict(imported)})
        else:
            done = "imported" if imported.new else "was here already"
            running.console.show(f"key {imported.key} {done}: {imported.path}")


def _passphrase(file: Path | None, *, new: bool) -> str:
    if file is not None:
        first = _read(file).splitlines()[:1]
        if not first or not first[0]:
            raise InvalidRequest(f"The passphrase file {file} is empty", path=str(file))
        return first[0]
    if not sys.stdin.isatty():
        raise InvalidRequest(
            "A passphrase is needed and there is no terminal to ask for it", hint="Give --passphrase-file FILE."
        )
    passphrase = getpass.getpass("Passphrase: ")
    if new and getpass.getpass("The same again: ") != passphrase:
        raise InvalidRequest("The two passphrases are not the same", hint="Run the command again.")
    return passphrase


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not a text", path=str(path)) from error
    except OSError as error:
        raise _translated(error, path, "read") from error


def _write_new(path: Path, text: str) -> None:
    try:
        write_new_file(path, text.encode())
    except OSError as error:
        raise _translated(error, path) from error


def _translated(error: OSError, path: Path, doing: str = "written") -> VmkeepError:
    where = str(path)
    if isinstance(error, FileExistsError):
        return TargetExists(f"{path} is there already", path=where, hint="Choose another file.")
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return HostFileMissing(f"{path}: {error.strerror}", path=where)
    return file_error(error, path, doing)
