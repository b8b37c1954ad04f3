"""`vmkeep tpm`: the virtual TPMs of VMs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli import removals
from vmkeep.cli.completion import complete_vm
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state import PointOption, YesOption, put_back
from vmkeep.cli.state_show import (
    Kind,
    VersionOption,
    holder_text,
    kind_document,
    kind_facts,
    where,
)
from vmkeep.cli.tables import Facts
from vmkeep.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkeep.flows.clone_requests import TpmCloned
    from vmkeep.flows.requests import TpmAdded, TpmRemoved, TpmRenewed
    from vmkeep.flows.show_tpm import TpmShown

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)]


class Model(StrEnum):
    """What a TPM looks like to its guest."""

    CRB = "crb"
    TIS = "tis"


app = typer.Typer(
    short_help="The virtual TPMs of VMs.",
    help="The virtual TPMs of VMs. What is kept of them is shown by `vmkeep state`.",
    epilog="Example: vmkeep tpm show win11",
    rich_markup_mode=None,
    no_args_is_help=True,
)


app.add_typer(removals.app, name="removal")


@app.callback()
def group() -> None:
    """The virtual TPMs of VMs."""


@app.command("show", epilog="Example: vmkeep tpm show win11")
def show(
    context: typer.Context,
    vm: VmArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Show a VM's TPM: the device, what encrypts its state and whether that is kept, its file and its versions."""
    from vmkeep.flows.show_tpm import show_tpm

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            shown = show_tpm(running.premises.catalog, lambda: running.premises.repository, host, vm)
        if running.console.json:
            running.console.document({"tpm": _shown_document(shown)})
            return
        state = shown.state
        parts: list[str | Facts] = [
            Facts([("VM", f"{state.vm} ({state.vm_uuid}), {where(state)}"), *_device_facts(shown)])
        ]
        if shown.kind is not None:
            parts += ["", Facts(list(kind_facts(shown.kind)))]
        running.console.show(*parts, *state.problems)


@app.command("remove", epilog="Example: vmkeep tpm remove win11")
def remove(
    context: typer.Context,
    vm: VmArgument,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Take the TPM out of a VM that is off, with its state and its secret; what it holds is kept as a version first."""
    from vmkeep.flows.requests import RemoveTpm

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Take the TPM out of VM {vm!r}, and delete its state on the host? What its guest sealed to it does not "
            "open without. A version of it is kept.",
            yes=yes,
        )
        with running.engine(first_use=True) as engine, running.console.progress() as watch:
            removed = engine.remove_tpm(RemoveTpm(vm), watch)
        for sentence in removed.left:
            running.console.notice(f"warning: {sentence}")
        if running.console.json:
            running.console.document({"removed": _removed_document(removed)})
        else:
            running.console.show(*_removed_text(removed))


@app.command("add", epilog="Example: vmkeep tpm add win11 --from 3")
def add(
    context: typer.Context,
    vm: VmArgument,
    model: Annotated[
        Model | None, typer.Option("--model", help="What the guest sees. [default: crb]", show_default=False)
    ] = None,
    state: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="VERSION|POINT",
            help="The state that it gets: of a version, by number or 8 digits of its SHA-256, or of a point.",
            show_default=False,
        ),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            "--secret",
            metavar="UUID",
            help="libvirt's secret that opens that state, where it is not kept.",
            show_default=False,
        ),
    ] = None,
    encrypt: Annotated[
        bool, typer.Option("--encrypt", help="A blank one whose state libvirt encrypts, with a new key that is kept.")
    ] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Give a VM that is off a TPM: a blank one, or with the state that is kept of one that it had."""
    from vmkeep.cli.points import search_point
    from vmkeep.flows.choose_tpm import choose_tpm, with_new_key

    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.engine(first_use=True) as engine:
            with running.host() as host:
                request = choose_tpm(
                    running.premises.catalog,
                    lambda: running.premises.repository,
                    host,
                    vm,
                    model=model,
                    state=state,
                    secret=secret,
                    search=lambda text: search_point(running, text)[0],
                )
                if encrypt:
                    for sentence in running.premises.prepare_to_sign():
                        running.console.notice(f"warning: {sentence}")
                    request = with_new_key(running.premises, host, request)
            with running.console.progress() as watch:
                added = engine.add_tpm(request, watch)
        if running.console.json:
            running.console.document({"added": _added_document(added)})
        else:
            device = f"TPM {added.version} ({added.model})"
            told = (
                f"a {device} with the state that was kept" if added.sha256 else f"a {device}, blank at its next start"
            )
            running.console.show(f"VM {added.name} has {told}")
            if added.secret:
                running.console.show(f"libvirt's secret {added.secret} encrypts its state; its value is kept")


@app.command("reset", epilog="Example: vmkeep tpm reset win11")
def reset(
    context: typer.Context,
    vm: VmArgument,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Give a VM that is off a new TPM with a new key in place of its own; that one is kept as a version first."""
    from vmkeep.flows.requests import ResetTpm

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.console.confirm(
            f"Give VM {vm!r} a new, blank TPM, and delete the state of its own on the host? What its guest sealed to "
            "that does not open with the new one. A version of it is kept.",
            yes=yes,
        )
        with running.engine(first_use=True) as engine, running.console.progress() as watch:
            renewed = engine.reset_tpm(ResetTpm(vm), watch)
        if running.console.json:
            running.console.document({"reset": _renewed_document(renewed)})
        else:
            running.console.show(f"VM {renewed.name} has a new TPM, blank at its next start", *_renewed_text(renewed))


@app.command("rekey", epilog="Example: vmkeep tpm rekey win11")
def rekey(
    context: typer.Context,
    vm: VmArgument,
    plain: Annotated[bool, typer.Option("--plain", help="Without a key: the state is not encrypted any more.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Encrypt the state of a VM's TPM with a new key, also one that was not encrypted. It stays the same TPM."""
    from vmkeep.flows.requests import RekeyTpm

    with session(context, json=json, connect=connect, debug=debug) as running:
        what = (
            "Leave the TPM state of VM {!r} without encryption" if plain else "Give the TPM state of VM {!r} a new key"
        )
        running.console.confirm(f"{what.format(vm)}? A version with what opens it now is kept.", yes=yes)
        with running.engine(first_use=True) as engine, running.console.progress() as watch:
            renewed = engine.rekey_tpm(RekeyTpm(vm, plain), watch)
        if running.console.json:
            running.console.document({"rekeyed": _renewed_document(renewed)})
        else:
            has = f"is encrypted with libvirt's secret {renewed.secret}" if renewed.secret else "is in plain"
            told = f"the TPM state of VM {renewed.name} {has}, as version {renewed.version}"
            running.console.show(told, *_renewed_text(renewed))


@app.command("clone", epilog="Example: vmkeep tpm clone win11 win11-test --new")
def clone(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The VM whose TPM it is: name or UUID.", autocompletion=complete_vm)
    ],
    vm: VmArgument,
    copy: Annotated[
        bool, typer.Option("--copy", help="With its state as it is now: two VMs have one TPM identity then.")
    ] = False,
    new: Annotated[bool, typer.Option("--new", help="A blank one of its kind.")] = False,
    yes: YesOption = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Give a VM that is off and has no TPM one like another VM's. Give --copy or --new."""
    from vmkeep.flows.choose_clone import choose_clone

    with session(context, json=json, connect=connect, debug=debug) as running:
        if copy is new:
            raise InvalidRequest("Give exactly one of --copy and --new")
        if copy:
            running.console.confirm(
                f"Give VM {vm!r} a copy of the TPM of VM {source!r}? What is sealed to one opens in both, and "
                "nobody can tell the two apart by their TPM.",
                yes=yes,
            )
        with running.engine(first_use=True) as engine:
            for sentence in running.premises.prepare_to_sign():
                running.console.notice(f"warning: {sentence}")
            with running.host() as host:
                request = choose_clone(running.premises, host, source, vm, copy=copy)
            with running.console.progress() as watch:
                cloned = engine.clone_tpm(request, watch)
        if running.console.json:
            running.console.document({"cloned": _cloned_document(cloned)})
        else:
            state = "with a copy of its state" if cloned.sha256 else "blank at its next start"
            device = f"TPM {cloned.version} ({cloned.model})"
            running.console.show(f"VM {cloned.name} has a {device} like that of {cloned.source}, {state}")
        for sentence in cloned.warnings:
            running.console.notice(f"warning: {sentence}")


@app.command("restore", epilog="Example: vmkeep tpm restore win11 --version 3")
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
    """Put kept TPM state back in place of what a VM has now, as `vmkeep state restore --kind tpm`."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        put_back(running, vm, Kind.TPM, version, point, yes=yes)


def _shown_document(shown: TpmShown) -> dict[str, Any]:
    device = shown.device
    return {
        "vm": shown.state.vm,
        "vm_uuid": shown.state.vm_uuid,
        "on_host": shown.state.on_host,
        "running": shown.state.running,
        "device": None
        if device is None or not device.element
        else {
            "model": device.model,
            "version": device.version or None,
            "backend": device.backend,
            "secret": device.secret or None,
            "secret_on_host": device.secret_held,
            "secret_kept_in": None if shown.secret is None else shown.secret.id,
            "directory": device.directory or None,
        },
        "state": None if shown.kind is None else kind_document(shown.kind),
        "problems": list(shown.state.problems),
    }


def _device_facts(shown: TpmShown) -> Iterator[tuple[str, str]]:
    device = shown.device
    if device is None:
        return
    if not device.element:
        yield "TPM", "none"
        return
    yield "TPM", f"{device.version} ({device.model}, {device.backend})".strip()
    if device.secret:
        held = "its value is kept nowhere" if shown.secret is None else f"its value is {holder_text(shown.secret)}"
        lacking = "" if device.secret_held else ", libvirt does not have it"
        yield "secret", f"{device.secret}, {held}{lacking}"
    if device.directory:
        yield "directory", device.directory


def _removed_document(removed: TpmRemoved) -> dict[str, Any]:
    return {
        "vm": removed.name,
        "vm_uuid": removed.uuid,
        "had_tpm": removed.had_tpm,
        "kept": None if removed.kept is None else {"version": removed.kept, "sha256": removed.sha256},
        "deleted": list(removed.deleted),
        "left": list(removed.left),
        "secret": None
        if not removed.secret
        else {
            "uuid": removed.secret,
            "undefined": bool(removed.secret_point or removed.secret_pin),
            "point": removed.secret_point or None,
            "pin": removed.secret_pin or None,
            "stays": removed.secret_stays or None,
        },
        "way_back": removed.way_back or None,
        "tombstones": list(removed.tombstones),
        "removal": removed.removal or None,
    }


def _removed_text(removed: TpmRemoved) -> Iterator[str]:
    if not removed.had_tpm:
        yield f"VM {removed.name} has no TPM" + (
            ": what was left of an earlier one was deleted" * bool(removed.deleted)
        )
    else:
        kept = "it had no state yet" if removed.kept is None else f"its state is kept as version {removed.kept}"
        yield f"VM {removed.name} has no TPM any more; {kept}"
    yield from (f"deleted: {path}" for path in removed.deleted)
    if removed.secret_point:
        yield f"libvirt's secret {removed.secret} was undefined; point {removed.secret_point} holds it"
    elif removed.secret_pin:
        yield f"libvirt's secret {removed.secret} was undefined; it is kept with the version"
    elif removed.secret:
        yield f"libvirt's secret {removed.secret} stays: {removed.secret_stays}"
    if removed.tombstones:
        yield "what could not be deleted is tried again by later commands, and by `vmkeep tombstones retry --all`"
    if removed.way_back:
        yield f"to go back: {removed.way_back}"


def _cloned_document(cloned: TpmCloned) -> dict[str, Any]:
    return {
        "vm": cloned.name,
        "vm_uuid": cloned.uuid,
        "source": cloned.source,
        "source_uuid": cloned.source_uuid,
        "model": cloned.model,
        "version": cloned.version,
        "sha256": cloned.sha256 or None,
        "secret": cloned.secret or None,
        "warnings": list(cloned.warnings),
    }


def _renewed_document(renewed: TpmRenewed) -> dict[str, Any]:
    return {
        "vm": renewed.name,
        "vm_uuid": renewed.uuid,
        "kept": None if renewed.kept is None else {"version": renewed.kept, "sha256": renewed.sha256},
        "version": renewed.version,
        "secret": renewed.secret or None,
        "old_secret": None
        if not renewed.old_secret
        else {
            "uuid": renewed.old_secret,
            "undefined": bool(renewed.secret_point or renewed.secret_pin),
            "point": renewed.secret_point or None,
            "pin": renewed.secret_pin or None,
            "stays": renewed.secret_stays or None,
        },
        "deleted": list(renewed.deleted),
        "way_back": list(renewed.way_back),
        "tombstones": list(renewed.tombstones),
        "removal": renewed.removal or None,
    }


def _renewed_text(renewed: TpmRenewed) -> Iterator[str]:
    if renewed.kept is not None:
        yield f"what it was is kept as version {renewed.kept}"
    if renewed.secret_point or renewed.secret_pin:
        yield f"libvirt's secret {renewed.old_secret} was undefined; its value is kept"
    elif renewed.old_secret:
        yield f"libvirt's secret {renewed.old_secret} stays: {renewed.secret_stays}"
    if renewed.tombstones:
        yield "it is tried again by later commands, and by `vmkeep tombstones retry --all`"
    for number, command in enumerate(renewed.way_back):
        yield f"{'to go back: ' if number == 0 else '       then: '}{command}"


def _added_document(added: TpmAdded) -> dict[str, Any]:
    return {
        "vm": added.name,
        "vm_uuid": added.uuid,
        "model": added.model,
        "version": added.version,
        "sha256": added.sha256 or None,
        "secret": added.secret or None,
    }
