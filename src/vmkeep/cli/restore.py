"""`vmkeep restore`: a point as files, or as a VM."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.console import size_text
from vmkeep.cli.points import PointArgument
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.errors import InvalidRequest
from vmkeep.flows.requests import ImageFormat, TpmChoice

if TYPE_CHECKING:
    from vmkeep.flows.requests import FilesRestored, VmRestored


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
    image_format: Annotated[
        ImageFormat | None,
        typer.Option("--format", help="Format of the images; with --output. [default: qcow2]", show_default=False),
    ] = None,
    tpm: Annotated[
        TpmChoice | None,
        typer.Option(help="The point's TPM, or a new one; with --as, when it must be chosen.", show_default=False),
    ] = None,
    disks_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the VM's images go; with --as.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there (never a VM).")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Bring a point back: all of it or nothing. Give exactly one of --output and --as."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        if (output is None) == (name is None):
            raise InvalidRequest("Give exactly one of --output DIR and --as NAME")
        if output is not None:
            _refuse(("--tpm", tpm), ("--disks-dir", disks_dir), needs="--as")
            restored: FilesRestored | VmRestored = _as_files(running, point, output, image_format, force=force)
        else:
            _refuse(("--format", image_format), needs="--output")
            restored = _as_vm(running, point, name or "", tpm, disks_dir, force=force)
        _tell(running, restored)


def _as_files(
    running: Session, point: str, output: Path, image_format: ImageFormat | None, *, force: bool
) -> FilesRestored:
    from vmkeep.flows.requests import RestoreFiles

    found = running.premises.catalog.find_point(point)
    request = RestoreFiles(found.id, str(output.absolute()), image_format or ImageFormat.QCOW2, force)
    with running.engine() as engine, running.console.progress() as watch:
        return engine.restore_files(request, watch)


def _as_vm(
    running: Session, point: str, name: str, tpm: TpmChoice | None, disks_dir: Path | None, *, force: bool
) -> VmRestored:
    from vmkeep.flows.requests import RestoreVm

    if not name.strip():
        raise InvalidRequest("The name of the VM is empty")
    found = running.premises.catalog.find_point(point)
    directory = str(disks_dir.absolute()) if disks_dir is not None else None
    request = RestoreVm(found.id, name, tpm, directory, force)
    with running.engine() as engine, running.console.progress() as watch:
        return engine.restore_vm(request, watch)


def _tell(running: Session, restored: FilesRestored | VmRestored) -> None:
    console = running.console
    if console.json:
        console.document({"restored": _listed(asdict(restored))})
    else:
        console.show(*restored.files, _summary(restored))
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


def _listed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: list(held) if isinstance(held, tuple) else held for key, held in value.items()}


def _refuse(*options: tuple[str, object], needs: str) -> None:
    for option, value in options:
        if value is not None:
            raise InvalidRequest(f"{option} goes with {needs} only")
