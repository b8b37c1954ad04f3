"""`export` and `import`: all checkpoints, or all snapshots, of a VM as one file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmkeep.cli.moment_options import (
    FileArgument,
    ForceOption,
    OutputArgument,
    ReplaceOption,
    SecurityOption,
    TrustOption,
    ValidateOption,
    VmArgument,
)
from vmkeep.cli.moments import change_or_ask
from vmkeep.errors import MomentInvalid

if TYPE_CHECKING:
    from vmkeep.cli.session import Session
    from vmkeep.moments import MomentKind


def export_moments(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    file: OutputArgument = "-",
    security_info: SecurityOption = False,
    force: ForceOption = False,
) -> None:
    """``vmkeep KIND export``."""
    from vmkeep.cli.terminal import escaped_json
    from vmkeep.cli.textfiles import STANDARD, write_text
    from vmkeep.flows.signed_exports import export_signer
    from vmkeep.host.tasks.moments import ReadDefinitions, ReadMoments, moment_errors
    from vmkeep.moments import BundledMoment, MomentBundle, format_bundle, parse_moment

    with running.host() as host:
        found = host.ask(ReadMoments(kind=kind, vm=vm))
        definitions = host.ask(ReadDefinitions(kind=kind, vm=vm, secure=security_info))
    order = [moment.name or "" for moment in found.tree().descendants() if moment.name in definitions]
    with moment_errors(kind, found.vm):
        moments = tuple(BundledMoment(parse_moment(kind, definitions[name]), definitions[name]) for name in order)
    bundle = MomentBundle(
        kind=kind,
        vm_name=found.vm,
        vm_uuid=found.uuid,
        moments=moments,
        current=found.current if found.current in order else None,
        secure=security_info,
    )
    text = format_bundle(bundle, export_signer(running.settings))
    if file == STANDARD:
        running.console.text(escaped_json(text))
        return
    write_text(file, text, force=force)
    if running.console.json:
        running.console.document({"exported": {"vm": found.vm, "path": file, f"{kind}s": order}})
    else:
        passwords = ", with passwords" if security_info else ""
        running.console.show(f"{len(order)} {kind}s of {found.vm} written to {file}{passwords}")


def import_moments(
    running: Session,
    kind: MomentKind,
    vm: VmArgument,
    file: FileArgument,
    replace: ReplaceOption = False,
    validate: ValidateOption = False,
    trust_definition: TrustOption = False,
) -> None:
    """``vmkeep KIND import``."""
    from vmkeep.cli.textfiles import read_text
    from vmkeep.flows.signed_exports import is_trusted_export
    from vmkeep.host.tasks.moments import ImportMoments
    from vmkeep.moments import BundleError, parse_bundle
    from vmkeep.moments.bundle import MAX_CHARACTERS

    try:
        bundle = parse_bundle(read_text(file, limit_bytes=MAX_CHARACTERS))
    except BundleError as error:
        raise MomentInvalid(f"{file}: {error}", vm=vm, path=file) from error
    trusted = trust_definition or is_trusted_export(
        running.settings, lambda: running.premises.catalog, bundle.signature
    )
    order = ImportMoments(kind=kind, vm=vm, bundle=bundle, replace=replace, validate=validate, trusted=trusted)
    done = change_or_ask(running, order)
    if running.console.json:
        value: dict[str, Any] = {"vm": done.vm, "redefined": list(done.names), "equal": list(done.kept)}
        running.console.document({"imported": value})
        return
    for name in done.names:
        running.console.show(f"{kind} {name} of {done.vm} redefined")
    for name in done.kept:
        running.console.show(f"{kind} {name} of {done.vm} is there already")
    if not bundle.moments:
        running.console.show(f"the file holds no {kind}s")
