"""`vmkeep state export` and `vmkeep state import`: kept state in a file of its own, sealed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import size_text
from vmkeep.cli.passphrases import PassphraseOption, passphrase_from
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.cli.state_show import KindOption, VersionOption
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from vmkeep.catalog import CatalogState
    from vmkeep.keys import KeyMaterial
    from vmkeep.repository.statebundle import StateBundle

KeyOption = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", help="A key file of vmkeep in place of a passphrase.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", epilog="Example: vmkeep state export win11 --to win11.state")(export_state)
    app.command("import", epilog="Example: vmkeep state import win11.state")(import_state)


def export_state(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="A new file.", show_default=False)],
    kind: KindOption = None,
    version: VersionOption = None,
    passphrase_file: PassphraseOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Write the newest kept state of a VM to a file, with the libvirt secret that opens it, sealed to a passphrase."""
    from vmkeep.flows.export_states import export_states

    with session(context, json=json, connect=connect, debug=debug) as running:
        _refuse_both(passphrase_file, key)
        place = Path(os.path.abspath(to))  # noqa: PTH100  a link stays a link
        exported = export_states(
            running.premises.catalog,
            lambda: running.premises.repository,
            vm,
            kind,
            version,
            place,
            lambda: _key(passphrase_file, key, new=True),
        )
        for sentence in exported.warnings:
            running.console.notice(f"warning: {sentence}")
        if running.console.json:
            document = {
                "vm": exported.vm,
                "vm_uuid": exported.vm_uuid,
                "path": exported.path,
                "size_bytes": exported.size_bytes,
                "versions": [_outline(each.version) for each in exported.versions],
                "secrets": list(exported.secrets),
                "warnings": list(exported.warnings),
            }
            running.console.document({"exported": document})
            return
        told = ", ".join(f"{each.version.kind} version {each.version.generation}" for each in exported.versions)
        secrets = f", and libvirt's secret {', '.join(exported.secrets)}" if exported.secrets else ""
        size = size_text(exported.size_bytes)
        running.console.show(f"{exported.vm}: {told}{secrets}, written to {exported.path} ({size}) and read back")


def import_state(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `vmkeep state export` wrote.")],
    vm: Annotated[
        str | None,
        typer.Option(
            "--vm",
            metavar="VM",
            help="The VM whose versions they become, if not that which they are of.",
            show_default=False,
            autocompletion=complete_vm,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Write them to files instead.", show_default=False),
    ] = None,
    secrets: Annotated[
        bool, typer.Option("--secrets", help="With --output: libvirt's secret too, in plain text.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    key: KeyOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Keep the state of a file as versions of its VM, never above those that count; nothing is put into the VM."""
    from vmkeep.flows.import_states import import_states, lay_down
    from vmkeep.flows.state_conflicts import restoring_command

    with session(context, json=json, connect=connect, debug=debug) as running:
        _refuse_both(passphrase_file, key)
        if output is None and secrets:
            raise InvalidRequest("--secrets goes with --output")
        if output is not None and vm is not None:
            raise InvalidRequest("--vm and --output are mutually exclusive", hint="Leave one of them out.")
        bundle = _opened(running, file, passphrase_file, key)
        held = [secret.uuid for secret in bundle.secrets]
        if output is not None:
            files = lay_down(bundle, Path(os.path.abspath(output)), secrets=secrets)  # noqa: PTH100  as above
            told = {"vm": bundle.vm_name, "vm_uuid": bundle.vm_uuid, "files": list(files), "secrets": held}
            if running.console.json:
                running.console.document({"imported": told})
            else:
                running.console.show(*files)
            return
        running.premises.ensure()
        with running.host() as host:
            found = import_states(running.premises, host, bundle, vm)
        if held:
            running.console.notice(
                f"warning: the TPM state is encrypted with libvirt's secret {', '.join(held)}, which is in the file "
                "and not kept here: `vmkeep state import FILE --output DIR --secrets` writes it for virsh"
            )
        if running.console.json:
            document = {
                "vm": found.vm,
                "vm_uuid": found.vm_uuid,
                "new": [_outline(each) for each in found.new],
                "late": [{**_outline(each), "command": restoring_command(each)} for each in found.late],
                "known": [_outline(each) for each in found.known],
                "secrets": held,
            }
            running.console.document({"imported": document})
            return
        name = f"{found.vm} ({found.vm_uuid})"
        lines = [f"{name}: kept as {each.kind} version {each.generation}" for each in found.new]
        lines += [f"{name}: is {each.kind} version {each.generation} already" for each in found.known]
        for each in found.late:
            lines.append(f"{name}: kept beside its {each.kind} versions, and does not count; to put it back:")
            lines.append(f"  {restoring_command(each)}")
        running.console.show(*lines)


def _opened(running: Session, file: Path, passphrase_file: Path | None, key: Path | None) -> StateBundle:
    """Return what is in the file, opened with what it is sealed to; a key of this installation is found by itself."""
    from vmkeep.flows.import_states import read_bundle_file
    from vmkeep.repository.statebundle import bundle_key, open_bundle

    data = read_bundle_file(file)
    wanted = bundle_key(data, str(file))
    if wanted is None and key is not None:
        raise InvalidRequest(f"{file} is sealed to a passphrase, not to a key", path=str(file), hint="Leave out --key.")
    if wanted is not None and passphrase_file is not None:
        raise InvalidRequest(
            f"{file} is sealed to the key {wanted}, not to a passphrase", path=str(file), hint="Give --key FILE."
        )
    if wanted is not None and key is None:
        return open_bundle(data, running.premises.keychain.file(wanted), str(file))
    return open_bundle(data, _key(passphrase_file, key, new=False), str(file))


def _key(passphrase_file: Path | None, key: Path | None, *, new: bool) -> KeyMaterial:
    from vmkeep.keys import KeyFile, Passphrase

    return KeyFile.load(key) if key is not None else Passphrase(passphrase_from(passphrase_file, new=new))


def _refuse_both(passphrase_file: Path | None, key: Path | None) -> None:
    if passphrase_file is not None and key is not None:
        raise InvalidRequest("--passphrase-file and --key are mutually exclusive", hint="Leave one of them out.")


def _outline(version: CatalogState) -> dict[str, Any]:
    return {
        "kind": version.kind,
        "version": version.generation,
        "sha256": version.sha256,
        "size_bytes": version.size_bytes,
    }
