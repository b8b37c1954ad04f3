"""`vmkeep nvram`: the UEFI variables of VMs."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import size_text
from vmkeep.cli.nvram_words import (
    SEALED,
    nvram_document,
    nvram_facts,
    nvram_row,
    replaced_document,
    replaced_text,
    replaced_warnings,
    row_document,
)
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state import PointOption, YesOption, put_back
from vmkeep.cli.state_show import Kind, VersionOption
from vmkeep.cli.tables import Facts, Table

if TYPE_CHECKING:
    from vmkeep.cli.session import Session
    from vmkeep.flows.requests import ReplaceNvram

_OF_2023 = "2023"
_MEASURED = (
    f"{SEALED}: have the recovery key at hand, or suspend BitLocker in the guest before. The variables do not tell "
    "whether a guest sealed anything, and one that is off cannot be asked. What lies there is kept as a version first."
)

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)]


class Database(StrEnum):
    """Where a certificate may be put."""

    DB = "db"
    KEK = "KEK"


app = typer.Typer(
    short_help="The UEFI variables of VMs.",
    help="The UEFI variables of VMs: Secure Boot, its certificates, boot entries. What is kept of them is shown by "
    "`vmkeep state`.",
    epilog="Example: vmkeep nvram list",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.callback()
def group() -> None:
    """The UEFI variables of VMs."""


@app.command("list", epilog="Example: vmkeep nvram list")
def list_nvram(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """List all VMs of the host with UEFI variables: Secure Boot, Microsoft's certificates, the first that ends."""
    from vmkeep.flows.show_nvram import nvram_of_all

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            found = nvram_of_all(host)
        if running.console.json:
            running.console.document({"vms": [row_document(each) for each in found]})
            return
        if not found:
            running.console.show("no VM of this host has UEFI variables")
            return
        columns = ("VM", "Secure Boot", "Microsoft", "ends first", "note")
        rows = [nvram_row(each) for each in found]
        running.console.show(Table(columns=columns, rows=rows, texts={"ends first": 30}, sentences=True))


@app.command("show", epilog="Example: vmkeep nvram show win11")
def show(
    context: typer.Context,
    vm: VmArgument,
    version: VersionOption = None,
    point: PointOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show what a VM's UEFI variables say: Secure Boot, certificates, boot entries, what the next start is to do."""
    from vmkeep.cli.points import search_point
    from vmkeep.flows.show_nvram import nvram_of_point, nvram_of_version, nvram_on_host

    with session(context, json=json, connect=connect, debug=debug) as running:
        _refuse_both(vm, version, point)
        if version is not None:
            shown = nvram_of_version(running.premises.catalog, lambda: running.premises.repository, vm, version)
        elif point is not None:
            found = search_point(running, point)[0]
            shown = nvram_of_point(running.premises.catalog, lambda: running.premises.repository, vm, found)
        else:
            with running.host() as host:
                shown = nvram_on_host(host, vm)
        if running.console.json:
            running.console.document({"nvram": nvram_document(shown)})
        else:
            running.console.show(Facts(list(nvram_facts(shown))))


@app.command("reset", epilog="Example: vmkeep nvram reset win11")
def reset(
    context: typer.Context,
    vm: VmArgument,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make the UEFI variables of a VM that is off anew, of the template that libvirt would take for its firmware."""
    from vmkeep.flows.requests import NewNvram, ReplaceNvram

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Make the UEFI variables of VM {vm!r} anew? Its boot entries and all certificates that were added go. "
            f"{_MEASURED}",
            yes=yes,
        )
        _replace(running, ReplaceNvram(vm, NewNvram.RESET))


@app.command("enroll", epilog="Example: vmkeep nvram enroll win11 --certificates 2023")
def enroll(
    context: typer.Context,
    vm: VmArgument,
    certificates: Annotated[
        list[str] | None,
        typer.Option(
            "--certificates",
            metavar="2023|FILE",
            help="Microsoft's of 2023, which follow those of 2011 that the VM trusts, or a file in PEM or DER; again "
            "for more. [default: 2023]",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        Database, typer.Option("--into", help="Where those of files go; Microsoft's go where they belong.")
    ] = Database.DB,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Add certificates for Secure Boot to the UEFI variables of a VM that is off; nothing that is there goes."""
    from vmkeep.flows.requests import NewNvram, ReplaceNvram
    from vmkeep.flows.variable_files import read_certificate_file

    with session(context, json=json, connect=connect, debug=debug) as running:
        wanted = certificates or [_OF_2023]
        named = tuple(
            each
            for name in dict.fromkeys(wanted)
            if name != _OF_2023
            for each in read_certificate_file(Path(name), str(into))
        )
        running.console.confirm(f"Add certificates to the UEFI variables of VM {vm!r}? {_MEASURED}", yes=yes)
        request = ReplaceNvram(vm, NewNvram.ENROL, of_2023=_OF_2023 in wanted, certificates=named)
        _replace(running, request)


@app.command("import", epilog="Example: vmkeep nvram import win11 win11_VARS.fd")
def import_nvram(
    context: typer.Context,
    vm: VmArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A plain store of UEFI variables.")],
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put the UEFI variables of a file in place of those that a VM has, which is off."""
    import hashlib

    from vmkeep.flows.requests import NewNvram, ReplaceNvram
    from vmkeep.flows.variable_files import read_variable_file

    with session(context, json=json, connect=connect, debug=debug) as running:
        place = Path(os.path.abspath(file))  # noqa: PTH100  a link stays a link
        digest = hashlib.sha256(read_variable_file(place)).hexdigest()
        running.console.confirm(f"Put {place} in place of the UEFI variables of VM {vm!r}? {_MEASURED}", yes=yes)
        _replace(running, ReplaceNvram(vm, NewNvram.IMPORT, file=str(place), sha256=digest))


@app.command("export", epilog="Example: vmkeep nvram export win11 win11_VARS.fd")
def export(
    context: typer.Context,
    vm: VmArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where it is written.")],
    version: VersionOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write over a file that is there without a question.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a VM's UEFI variables to a plain file; what lies on the host is kept as a version first."""
    from vmkeep.errors import TargetExists
    from vmkeep.flows.variable_files import export_variables, version_on_host

    with session(context, json=json, connect=connect, debug=debug) as running:
        place = Path(os.path.abspath(file))  # noqa: PTH100  as above
        is_there = os.path.lexists(place)
        if is_there and (place.is_symlink() or not place.is_file()):
            raise TargetExists(f"{place} is no plain file", path=str(place), hint="Choose another name.")
        if is_there:
            running.console.confirm(f"Write over {place}?", yes=yes)
        premises = running.premises
        if version is None:
            premises.ensure()
            with running.host() as host:
                version, told = version_on_host(premises, host, vm)
            for sentence in told:
                running.console.notice(f"warning: {sentence}")
        exported = export_variables(premises.catalog, lambda: premises.repository, vm, version, place, replace=is_there)
        kept = exported.version.version
        if running.console.json:
            document = {
                "vm": vm,
                "vm_uuid": kept.vm_uuid,
                "path": exported.path,
                "size_bytes": exported.size_bytes,
                "version": kept.generation,
                "sha256": kept.sha256,
            }
            running.console.document({"exported": document})
            return
        size = size_text(exported.size_bytes)
        running.console.show(f"{vm}: nvram version {kept.generation} written to {place} ({size}) and read back")


@app.command("restore", epilog="Example: vmkeep nvram restore win11 --version 3")
def restore(
    context: typer.Context,
    vm: VmArgument,
    version: VersionOption = None,
    point: PointOption = None,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put kept UEFI variables back in place of what a VM has now, as `vmkeep state restore --kind nvram`."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        put_back(running, vm, Kind.NVRAM, version, point, yes=yes)


def _replace(running: Session, request: ReplaceNvram) -> None:
    with running.engine(first_use=True) as engine, running.console.progress() as watch:
        replaced = engine.replace_nvram(request, watch)
    for sentence in replaced_warnings(replaced):
        running.console.notice(f"warning: {sentence}")
    if running.console.json:
        running.console.document({"replaced": replaced_document(replaced)})
    else:
        running.console.show(*replaced_text(replaced))


def _refuse_both(vm: str, version: str | None, point: str | None) -> None:
    from vmkeep.errors import InvalidRequest

    if version is not None and point is not None:
        raise InvalidRequest("--version and --point both name a version", vm=vm, hint="Give one of them.")
