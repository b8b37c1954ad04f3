"""`vmkeep vm clone` and `vmkeep vm rename`: a second VM of one that is off, and another name for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import size_text
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.flows.clone_requests import ClonedTpm, ClonedVariables, CloneVm, RenameVm

if TYPE_CHECKING:
    from vmkeep.flows.clone_requests import VmCloned

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The name that it gets.")]


def register(app: typer.Typer) -> None:
    """Add both commands to `vmkeep vm`."""
    app.command("clone", epilog="Example: vmkeep vm clone win11 win11-test --tpm new")(clone)
    app.command("rename", epilog="Example: vmkeep vm rename win11 win11-old")(rename)


def clone(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    name: NameArgument,
    tpm: Annotated[
        ClonedTpm | None,
        typer.Option(
            "--tpm",
            help="A VM with a TPM: a copy of it, a blank one, or none. With a copy two VMs have one TPM identity.",
            show_default=False,
        ),
    ] = None,
    nvram: Annotated[
        ClonedVariables, typer.Option("--nvram", help="UEFI variables: a copy, or new ones.")
    ] = ClonedVariables.COPY,
    disks_dir: Annotated[
        Path | None,
        typer.Option("--disks-dir", metavar="DIR", help="Put its disks here. [default: beside the original's]"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask about a copy of the TPM.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make a second VM of one that is off, with a new identity; the first one is only read."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        if tpm is ClonedTpm.COPY:
            running.console.confirm(
                f"Give {name!r} a copy of the TPM of VM {source!r}? What is sealed to one opens in both, and "
                "nobody can tell the two apart by their TPM.",
                yes=yes,
            )
        directory = None if disks_dir is None else str(disks_dir.absolute())
        request = CloneVm(source, name, tpm, nvram, directory)
        running.require_rights(source)
        with running.engine(first_use=True) as engine, running.console.progress() as watch:
            cloned = engine.clone_vm(request, watch)
        if running.console.json:
            running.console.document({"cloned": _document(cloned)})
        else:
            running.console.show(*_text(cloned))
        for sentence in cloned.warnings:
            running.console.notice(f"warning: {sentence}")


def rename(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    name: NameArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Give a VM that is off another name; its disks stay where they are, and its points are its points."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.engine(first_use=True) as engine, running.console.progress() as watch:
            renamed = engine.rename_vm(RenameVm(vm, name), watch)
        if running.console.json:
            running.console.document(
                {
                    "renamed": {
                        "vm": renamed.name,
                        "vm_uuid": renamed.uuid,
                        "before": renamed.before,
                        "warnings": list(renamed.warnings),
                    }
                }
            )
        else:
            running.console.show(f"VM {renamed.before} is called {renamed.name} now")
        for sentence in renamed.warnings:
            running.console.notice(f"warning: {sentence}")


def _document(cloned: VmCloned) -> dict[str, object]:
    return {
        "vm": cloned.name,
        "vm_uuid": cloned.uuid,
        "source": cloned.source,
        "source_uuid": cloned.source_uuid,
        "tpm": cloned.tpm,
        "nvram": cloned.nvram,
        "secret": cloned.secret or None,
        "disks": [dict(disk) for disk in cloned.disks],
        "files": list(cloned.files),
        "warnings": list(cloned.warnings),
    }


def _text(cloned: VmCloned) -> Iterator[str]:
    for disk in cloned.disks:
        how = "shares its blocks" if disk["shared"] else f"{size_text(disk['bytes_written'])} written"
        yield f"{disk['path']} ({disk['target']}, {how})"
    parts = f"TPM: {cloned.tpm}, UEFI variables: {cloned.nvram}"
    yield f"VM {cloned.name} ({cloned.uuid}) is a clone of {cloned.source}; {parts}"
