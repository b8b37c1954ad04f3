"""`vmkeep snapshot create`: a libvirt snapshot of a whole VM, with TPM state and UEFI variables of its instant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from vmkeep.cli.completion import complete_disk, complete_vm
from vmkeep.cli.console import Console
from vmkeep.cli.moments import DOCUMENT_BYTES
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, WaitOption, session
from vmkeep.cli.tables import Table
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from vmkeep.flows.requests import TakeSnapshot
    from vmkeep.moments import SnapshotDisk, SnapshotMemory

_KINDS: Mapping[str, str] = {
    "disks": "external, disks only",
    "memory": "external, with memory",
    "internal": "internal",
}


def register(app: typer.Typer) -> None:
    app.command("create", epilog="Example: vmkeep snapshot create win11 before-update --description 'as it was'")(
        create
    )


def create(
    context: typer.Context,
    vm: Annotated[
        str, typer.Argument(metavar="VM", help="Name or UUID.", show_default=False, autocompletion=complete_vm)
    ],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Its name; the time if left out.", show_default=False)
    ] = None,
    description: Annotated[str | None, typer.Option(help="A text that is kept with it.", show_default=False)] = None,
    disk_only: Annotated[
        bool, typer.Option("--disk-only", help="External and without memory, which is what happens anyway.")
    ] = False,
    memspec: Annotated[
        str | None,
        typer.Option(
            metavar="[file=]PATH[,snapshot=TYPE]",
            help="Keep the memory too, in this new file. The guest stands still meanwhile.",
            show_default=False,
        ),
    ] = None,
    internal: Annotated[
        bool, typer.Option("--internal", help="Inside the images, with the memory if the VM is on.")
    ] = False,
    diskspec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DISK[,snapshot=TYPE][,driver=TYPE][,stype=TYPE][,file=PATH]",
            autocompletion=complete_disk,
            help="How one disk takes part; may be repeated. TYPE of snapshot: external, internal, no.",
            show_default=False,
        ),
    ] = None,
    quiesce: Annotated[
        bool, typer.Option("--quiesce", help="Freeze the guest's file systems for the instant, through its agent.")
    ] = False,
    halt: Annotated[bool, typer.Option("--halt", help="Leave the VM off afterwards, as if unplugged.")] = False,
    reuse_external: Annotated[
        bool, typer.Option("--reuse-external", help="The overlays were made already: empty ones, on these images.")
    ] = False,
    with_bitmaps: Annotated[
        bool, typer.Option("--with-bitmaps", help="Make an internal one although the images have bitmaps.")
    ] = False,
    xml: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A <domainsnapshot> in place of the options above.", show_default=False),
    ] = None,
    validate: Annotated[bool, typer.Option("--validate", help="Hold FILE against libvirt's schema.")] = False,
    print_xml: Annotated[
        bool, typer.Option("--print-xml", help="Print what libvirt would be asked for, and make nothing.")
    ] = False,
    atomic: Annotated[bool, typer.Option("--atomic", help="All disks or none, which is always so.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Refused: the guest stands still for the instant.")] = False,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="Refused: nothing can be kept with it.")] = False,
    wait: WaitOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Make a snapshot of a VM: disks, UEFI variables and TPM of one instant. The VM may run, be paused or be off."""
    from vmkeep.cli.textfiles import read_text
    from vmkeep.cli.waiting import wait_seconds
    from vmkeep.flows.requests import TakeSnapshot

    del atomic
    with session(context, json=json, connect=connect, debug=debug) as running:
        _refuse_what_cannot_be_kept(live=live, no_metadata=no_metadata)
        if xml is not None:
            if name is not None or description is not None or memspec is not None or diskspec:
                raise InvalidRequest(
                    "--xml FILE holds name, description, disks and memory: give the file or the options"
                )
            text = read_text(str(xml), limit_bytes=DOCUMENT_BYTES)
        else:
            text = _document(name, description, memspec, diskspec or ())
        request = TakeSnapshot(
            vm=vm,
            xml=text,
            disk_only=disk_only,
            internal=internal,
            with_bitmaps=with_bitmaps,
            quiesce=quiesce,
            halt=halt,
            reuse_external=reuse_external,
            validate=validate,
        )
        if print_xml:
            _print_xml(running, request)
            return
        _take(running, request, wait_seconds(wait))


def _refuse_what_cannot_be_kept(*, live: bool, no_metadata: bool) -> None:
    if live:
        raise InvalidRequest(
            "--live lets the guest run while its memory is saved, and its TPM and UEFI variables change meanwhile",
            hint="Leave it out: the guest stands still as long as the snapshot is made.",
        )
    if no_metadata:
        raise InvalidRequest(
            "--no-metadata makes a snapshot that libvirt does not list, and nothing can be kept with it",
            hint="Leave it out; `virsh snapshot-create-as --no-metadata` makes an overlay and nothing else.",
        )


def _print_xml(running: Session, request: TakeSnapshot) -> None:
    from vmkeep.host.tasks.snapshots import FormatSnapshot, MakeSnapshot
    from vmkeep.host.tasks.survey import FindVm

    with running.host() as host:
        task = MakeSnapshot(
            operation="",
            vm_uuid=host.ask(FindVm(request.vm)),
            xml=request.xml,
            disk_only=request.disk_only,
            internal=request.internal,
            with_bitmaps=request.with_bitmaps,
            quiesce=request.quiesce,
            halt=request.halt,
            reuse_external=request.reuse_external,
            validate=request.validate,
        )
        text = host.ask(FormatSnapshot(task))
    if running.console.json:
        running.console.document({"xml": text})
    else:
        running.console.xml(f"{text.rstrip()}\n")


def _take(running: Session, request: TakeSnapshot, seconds: int) -> None:
    from vmkeep.cli.waiting import when_free

    running.stand_apart()
    running.require_rights(request.vm)
    running.expect_job()
    with running.engine(first_use=True) as engine:
        taken = when_free(running, engine, request.vm, seconds, lambda watch: engine.take_snapshot(request, watch))
    console = running.console
    if console.json:
        console.document({"snapshot": taken.snapshot})
    else:
        _show(console, taken.snapshot)
    for warning in taken.warnings:
        console.notice(f"warning: {warning}")


def _show(console: Console, snapshot: Mapping[str, Any]) -> None:
    rows = [(str(disk["target"]), str(disk["overlay"] or "in the image")) for disk in snapshot["disks"]]
    if snapshot["memory"] is not None:
        rows.append(("memory", str(snapshot["memory"])))
    state = [kind for kind in ("tpm", "nvram") if snapshot["state"][kind]["present"]]
    console.show(
        f"snapshot {snapshot['name']} of {snapshot['vm']}: {_KINDS[snapshot['kind']]}",
        Table(columns=("disk", "written to from now on"), rows=rows),
        f"state: {', '.join(state) or 'none'}; {_stood_still(snapshot)}",
    )


def _stood_still(snapshot: Mapping[str, Any]) -> str:
    if snapshot["was"] == "running":
        return f"the guest was paused for {snapshot['pause_ms']:.0f} ms"
    return f"the VM was {snapshot['was']}"


# -- the options as a document -----------------------------------------------------------------------------------


def _document(name: str | None, description: str | None, memspec: str | None, diskspecs: Sequence[str]) -> str:
    from vmkeep.moments import Snapshot, SnapshotMemory, format_snapshot

    memory = SnapshotMemory() if memspec is None else _memory(memspec)
    disks = tuple(_disk(text) for text in diskspecs)
    return format_snapshot(Snapshot(name=name, description=description, memory=memory, disks=disks))


def _memory(text: str) -> SnapshotMemory:
    from vmkeep.moments import SnapshotLocation, SnapshotMemory

    file: str | None = None
    location: SnapshotLocation | None = None
    for number, part in enumerate(_parts(text)):
        key, equals, value = part.partition("=")
        if equals and key == "snapshot":
            location = _location(value, text)
        elif equals and key == "file":
            file = value
        elif number == 0:
            file = part
        else:
            _refuse_spec("--memspec", text, part)
    location = location or (SnapshotLocation.EXTERNAL if file else SnapshotLocation.INTERNAL)
    if (file is None) is (location is SnapshotLocation.EXTERNAL):
        raise InvalidRequest(
            f"--memspec {text!r}: memory in a file is external, and needs the path of the file; no other has one"
        )
    return SnapshotMemory(location, file if file is None else str(Path(file).absolute()))


def _disk(text: str) -> SnapshotDisk:
    from vmkeep.moments import SnapshotDisk

    disk, *parts = _parts(text)
    if not disk:
        raise InvalidRequest(f"--diskspec {text!r} names no disk")
    found = SnapshotDisk(disk)
    for part in parts:
        key, _, value = part.partition("=")
        if key == "snapshot":
            found = replace(found, location=_location(value, text))
        elif key == "driver":
            found = replace(found, format=value)
        elif key == "stype":
            found = replace(found, source_type=value)
        elif key == "file":
            found = replace(found, source=str(Path(value).absolute()))
        else:
            _refuse_spec("--diskspec", text, part)
    return found


def _location(value: str, text: str) -> Any:
    from vmkeep.moments import SnapshotLocation

    try:
        return SnapshotLocation(value)
    except ValueError as error:
        raise InvalidRequest(f"{value!r} in {text!r}: a snapshot is external, internal, or no") from error


def _parts(text: str) -> list[str]:
    """Cut at commas; two commas are one that belongs to the text, as for virsh."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def _refuse_spec(option: str, text: str, part: str) -> NoReturn:
    raise InvalidRequest(f"{option} {text!r}: {part!r} is not known", hint="See `vmkeep snapshot create --help`.")
