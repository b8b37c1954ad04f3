"""`vmkeep restore`: a point as files, as a VM, or over its own VM."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_part
from vmkeep.cli.console import size_text, time_text
from vmkeep.cli.points import PointArgument, search_point
from vmkeep.cli.session import (
    ConnectOption,
    DebugOption,
    JsonOption,
    MaxRateOption,
    MaxRequestsOption,
    Session,
    session,
)
from vmkeep.commandline import command_line
from vmkeep.errors import DefinitionReaches, InvalidRequest
from vmkeep.flows.requests import ImageFormat, RestoreVm, TpmChoice

if TYPE_CHECKING:
    from vmkeep.flows.requests import FilesRestored, InPlaceRestored, RestoreInPlace, VmRestored

_DISKS, _STATE = "disks", "state"


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep restore win11@latest --as win11-copy --tpm same")(restore)


def restore(
    context: typer.Context,
    point: PointArgument,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write disks, NVRAM, TPM and definition as files.", show_default=False),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Make a VM of this name.", show_default=False)
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option("--in-place", help="Write it over its own VM, which must be off; a safety point is taken first."),
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            autocompletion=complete_part,
            help="disks, state, tpm, nvram, or a disk by target; not with --as; repeatable.",
            show_default=False,
        ),
    ] = None,
    image_format: Annotated[
        ImageFormat | None,
        typer.Option("--format", help="Format of the images; with --output. [default: qcow2]", show_default=False),
    ] = None,
    decrypt: Annotated[
        bool,
        typer.Option("--decrypt", help="Write plain images of disks that were encrypted; with --output."),
    ] = False,
    secrets: Annotated[
        bool,
        typer.Option(
            "--secrets", help="Write libvirt's secrets that the point holds in plain text as well; with --output."
        ),
    ] = False,
    tpm: Annotated[
        TpmChoice | None,
        typer.Option(
            help="same: the point's TPM; new: a blank one (--as only); keep: the VM's own (--in-place only).",
            show_default=False,
        ),
    ] = None,
    disks_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the VM's images go; with --as.", show_default=False),
    ] = None,
    adapt: Annotated[
        bool,
        typer.Option("--adapt", help="Change what of the definition does not fit this host, and say what; with --as."),
    ] = False,
    machine: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Give the VM this machine type; with --as.", show_default=False),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Give the VM this CPU model or mode; with --as.", show_default=False),
    ] = None,
    firmware: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Give the VM this UEFI firmware; with --as.", show_default=False),
    ] = None,
    trust_definition: Annotated[
        bool,
        typer.Option(
            "--trust-definition",
            help="Define what of another's definition reaches into this host as it is; with --as.",
        ),
    ] = False,
    strip_host_parts: Annotated[
        bool,
        typer.Option(
            "--strip-host-parts",
            help="Leave out what of another's definition reaches into this host, and say what; with --as.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there (never a VM).")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; with --in-place.")] = False,
    max_rate: MaxRateOption = None,
    max_requests: MaxRequestsOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Bring a point back: all of it or nothing. Give exactly one of --output, --as and --in-place."""
    limits = (max_rate, max_requests)
    with session(context, json=json, connect=connect, debug=debug, limits=limits) as running:
        if [output is not None, name is not None, in_place].count(True) != 1:
            raise InvalidRequest("Give exactly one of --output DIR, --as NAME and --in-place")
        running.stand_apart()
        if not in_place:
            _refuse(("--yes", yes or None), needs="--in-place")
        if name is not None:
            _refuse(("--only", only), needs="--in-place and --output")
        if name is None:
            chosen = (("--machine", machine), ("--cpu", cpu), ("--firmware", firmware))
            trusted = (
                ("--trust-definition", trust_definition or None),
                ("--strip-host-parts", strip_host_parts or None),
            )
            _refuse(("--adapt", adapt or None), *chosen, *trusted, needs="--as")
        if trust_definition and strip_host_parts:
            raise InvalidRequest("Give --trust-definition or --strip-host-parts, not both")
        if output is None:
            _refuse(("--secrets", secrets or None), needs="--output")
        if in_place:
            _refuse(("--format", image_format), ("--decrypt", decrypt or None), needs="--output")
            _refuse(("--disks-dir", disks_dir), needs="--as")
            _refuse(("--force", force or None), needs="--output and --as")
            write_in_place(running, point, tuple(dict.fromkeys(only or ())), tpm, yes=yes)
            return
        restored: FilesRestored | VmRestored
        if output is not None:
            _refuse(("--tpm", tpm), ("--disks-dir", disks_dir), needs="--as")
            restored, beside = _as_files(
                running,
                point,
                output,
                image_format,
                force=force,
                decrypt=decrypt,
                secrets=secrets,
                only=tuple(dict.fromkeys(only or ())),
            )
        else:
            _refuse(("--format", image_format), ("--decrypt", decrypt or None), needs="--output")
            if tpm is TpmChoice.KEEP:
                raise InvalidRequest("--tpm keep goes with --in-place only: a VM that is made has no TPM yet")
            directory = str(disks_dir.absolute()) if disks_dir is not None else None
            request = RestoreVm(
                point,
                name or "",
                tpm,
                directory,
                force=force,
                adapt=adapt,
                machine=machine,
                cpu=cpu,
                firmware=str(firmware.absolute()) if firmware is not None else None,
                trust_definition=trust_definition,
                strip_host_parts=strip_host_parts,
            )
            restored, beside = _as_vm(running, request)
        _tell(running, restored, beside)


def _as_files(
    running: Session,
    point: str,
    output: Path,
    image_format: ImageFormat | None,
    *,
    force: bool,
    decrypt: bool,
    secrets: bool,
    only: tuple[str, ...],
) -> tuple[FilesRestored, dict[str, list[str]]]:
    from vmkeep.flows.requests import RestoreFiles

    found, beside = search_point(running, point)
    request = RestoreFiles(
        found.id,
        str(output.absolute()),
        image_format or ImageFormat.QCOW2,
        force,
        decrypt=decrypt,
        secrets=secrets,
        only=only,
    )
    with running.engine(needs_home=False) as engine, running.console.progress() as watch:
        return engine.restore_files(request, watch), beside


def _as_vm(running: Session, request: RestoreVm) -> tuple[VmRestored, dict[str, list[str]]]:
    """``request`` names the point as the user did."""
    if not request.name.strip():
        raise InvalidRequest("The name of the VM is empty")
    found, beside = search_point(running, request.point)
    request = replace(request, point=found.id)
    with running.engine(needs_home=False) as engine:
        try:
            with running.console.progress() as watch:
                return engine.restore_vm(request, watch), beside
        except DefinitionReaches as error:
            if request.strip_host_parts or not running.console.can_ask:
                raise
            agreed = running.console.ask_about(error, "Define the VM with all of these?")
        if not agreed:
            hint = "--strip-host-parts makes the VM without them; --output DIR writes files."
            raise InvalidRequest("Not confirmed; nothing was written", hint=hint)
        # Nothing was written before, so it begins anew.
        with running.console.progress() as watch:
            return engine.restore_vm(replace(request, trust_definition=True), watch), beside


def write_in_place(
    running: Session,
    point: str,
    only: tuple[str, ...],
    tpm: TpmChoice | None,
    *,
    yes: bool,
) -> None:
    """Write parts of a point over its own VM, after a safety point, and after a question unless ``yes``."""
    from vmkeep.flows.requests import RestoreInPlace

    if tpm is TpmChoice.NEW:
        raise InvalidRequest(
            "--tpm new goes with --as only", hint="In place the TPM is the point's (same), or stays (keep)."
        )
    found, beside = search_point(running, point)
    by_uuid = point.lower().startswith(f"{found.vm_uuid}@")
    request = RestoreInPlace(
        found.id,
        found.vm_name,
        only,
        tpm or TpmChoice.SAME,
        vm_uuid=found.vm_uuid,
        vm_called=found.vm_name if yes and not by_uuid else "",
    )
    running.require_rights(found.vm_name)
    running.expect_job()
    with running.engine() as engine:
        if not yes:
            # What cannot be done is said before anybody is asked whether it shall be.
            with running.console.progress() as watch:
                name = engine.check_in_place(request, watch).vm_name
            then = "" if name == found.vm_name else f", which the point calls {found.vm_name!r},"
            running.console.confirm(
                f"Write {_parts(request)} of point {found.id}, taken {time_text(found.created)}, over VM {name!r}"
                f"{then} as it is now? A safety point of it is taken first.",
                yes=False,
            )
        with running.console.progress() as watch:
            request, taken = engine.take_safety_point(request, watch)
        safety = str(request.safety)
        # Told at once: whatever happens from here on, this is the way back.
        running.console.notice(f"safety point {safety} holds the VM as it was; {_way_back(safety)} goes back to it")
        for warning in taken.warnings:
            running.console.notice(f"warning: {warning}")
        with running.console.progress() as watch:
            restored = engine.restore_in_place(request, watch)
    if running.console.json:
        running.console.document({"restored": {**_listed(asdict(restored)), "way_back": _way_back(safety), **beside}})
    else:
        parts = ", ".join((*restored.disks, *restored.states))
        told = f"VM {restored.name} is at point {restored.point} again: {parts}; {_changed(restored)}"
        running.console.show(told, f"to go back: {_way_back(safety)}")
    for warning in restored.warnings:
        running.console.notice(f"warning: {warning}")


def _changed(restored: InPlaceRestored) -> str:
    """Say how much of the disks was changed; an image that was made anew is told of by itself."""
    done = []
    if restored.bytes_written or not restored.bytes_zeroed:
        done.append(f"{size_text(restored.bytes_written)} written")
    if restored.bytes_zeroed:
        done.append(f"{size_text(restored.bytes_zeroed)} made zero")
    return ", ".join(done)


def _parts(request: RestoreInPlace) -> str:
    """Say what is written over, in words."""
    state = "UEFI variables" if request.tpm is TpmChoice.KEEP else "UEFI variables and TPM"
    if not request.only:
        return f"the disks, {state}"
    names = {_DISKS: "the disks", _STATE: state, "tpm": "the TPM", "nvram": "the UEFI variables"}
    return " and ".join(names.get(part, f"disk {part}") for part in request.only)


def _way_back(safety: str) -> str:
    return command_line("vmkeep restore", safety, options="--in-place")


def _tell(running: Session, restored: FilesRestored | VmRestored, beside: dict[str, list[str]]) -> None:
    console = running.console
    if console.json:
        console.document({"restored": {**_listed(asdict(restored)), **beside}})
    else:
        console.show(*restored.files, *_changes(restored), _summary(restored))
    for warning in restored.warnings:
        console.notice(f"warning: {warning}")


def _summary(restored: FilesRestored | VmRestored) -> str:
    written = size_text(restored.bytes_written)
    output = getattr(restored, "output", None)
    if output is not None:
        return f"point {restored.point} restored to {output}: {written} written"
    shown = asdict(restored)
    identity = "as it was" if shown["identity"] == "same" else "with a new identity"
    return (
        f"VM {shown['name']} ({shown['uuid']}) made of point {restored.point}, {identity}, "
        f"TPM: {shown['tpm']}: {written} written"
    )


def _changes(restored: FilesRestored | VmRestored) -> list[str]:
    """Say what was changed in the definition for this host; what the guest notices of it stands behind it."""
    changes = getattr(restored, "changes", ())
    return [
        f"changed: {each['change']}" + (f"; the guest: {each['guest']}" if each["guest"] else "") for each in changes
    ]


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(held) if isinstance(held, tuple) else held for key, held in value.items()}


def _refuse(*options: tuple[str, object], needs: str) -> None:
    for option, value in options:
        if value is not None:
            raise InvalidRequest(f"{option} goes with {needs} only")
