"""What the shell offers: VMs, points, snapshots, checkpoints and disks.

It asks the catalogue and, read only, libvirt. Whatever cannot be read is not offered, and nothing is said about it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import typer

from vmkeep.errors import VmkeepError

if TYPE_CHECKING:
    from vmkeep.config import Settings

Offer = list[tuple[str, str]]
"""Words, each with what it is."""

PATIENCE_SECONDS: Final = 10.0  # for a busy host; a Tab that waits for a libvirt which hangs is ended by Ctrl-C too
_SHORT_ID: Final = 8


def complete_vm(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the names of VMs of the host, and of those that have points, which begin so."""
    vms = dict.fromkeys((summary["vm"] for summary in _summaries()), "has points")
    return _beginning(incomplete, {**vms, **_asked(ctx, _vm_states)}, without=_given(ctx, "vms"))


def complete_point(ctx: typer.Context, incomplete: str) -> Offer:
    """Return VM@latest, and beginnings of points' ids that tell them apart, newest first, with VM and time."""
    from vmkeep.cli.console import time_text

    del ctx
    known = list(reversed(_summaries()))
    offered = {f"{name}@latest": "its newest point" for name in sorted({summary["vm"] for summary in known})}
    length = max(_SHORT_ID, len(incomplete))
    while length < 32 and len({summary["id"][:length] for summary in known}) < len(known):
        length += 1
    for summary in known:
        told = f"{summary['vm']}, {time_text(summary['created'])}, {summary['kind']}"
        offered[summary["id"][:length]] = told
    return _beginning(incomplete, offered)


def complete_point_or_vm(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the names of VMs that have points, and what ``complete_point`` offers."""
    vms = dict.fromkeys(sorted({summary["vm"] for summary in _summaries()}), "all its points")
    return [*_beginning(incomplete, vms), *complete_point(ctx, incomplete)]


def complete_host_key(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the fingerprints of the keys of other hosts, with their names and whether they are trusted."""
    return _beginning(incomplete, _host_keys(), without=_given(ctx, "keys", "trust"))


def complete_operation(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the ids of operations that have not ended, with kind, VM and state."""
    del ctx
    return _beginning(incomplete, _operations())


def complete_checkpoint(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the names of checkpoints of the VM that stands on the line."""
    return _moments(ctx, incomplete, "checkpoint")


def complete_snapshot(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the names of snapshots of the VM that stands on the line."""
    return _moments(ctx, incomplete, "snapshot")


def complete_moment(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the names of whichever kind the command is for."""
    return _moments(ctx, incomplete, "checkpoint" if "checkpoint" in ctx.command_path.split() else "snapshot")


def complete_disk(ctx: typer.Context, incomplete: str) -> Offer:
    """Return the targets of the disks of the VMs that stand on the line."""
    return _beginning(incomplete, _disks(ctx))


def complete_part(ctx: typer.Context, incomplete: str) -> Offer:
    """Return what --only takes: disks, state or one kind of it, or one disk."""
    parts = {"disks": "all disks", "state": "UEFI variables and TPM", "nvram": "UEFI variables", "tpm": "TPM"}
    return _beginning(incomplete, {**parts, **_disks(ctx)})


def _disks(ctx: typer.Context) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for vm in _vms_on_the_line(ctx):
        found |= _asked(ctx, partial(_disk_sources, vm))
    for point in _given(ctx, "point"):
        for summary in _summaries():
            if summary["id"].startswith(point) or f"{summary['vm']}@latest" == point:
                found |= dict.fromkeys((disk["target"] for disk in summary["disks"]), "")
    return found


def _moments(ctx: typer.Context, incomplete: str, kind: str) -> Offer:
    names: dict[str, str] = {}
    for vm in _vms_on_the_line(ctx):
        names |= _asked(ctx, partial(_moment_names, kind, vm))
    return _beginning(incomplete, names, without=_given(ctx, "name", "names"))


def _vms_on_the_line(ctx: typer.Context) -> list[str]:
    return _given(ctx, "vm", "vms")


def _given(ctx: typer.Context, *parameters: str) -> list[str]:
    words: list[str] = []
    given = _parameters(ctx)
    for parameter in parameters:
        value = given.get(parameter)
        words += [value] if isinstance(value, str) else [word for word in value or () if isinstance(word, str)]
    return words


def _parameters(ctx: typer.Context) -> Mapping[str, Any]:
    """Return what was given before the word that is completed.

    Before the value of an option the parser gives all up, arguments too, because the option has none yet: the line is
    parsed again without it.
    """
    words = list(ctx.obj.arguments)
    if not (words and words[-1].startswith("-")) or ctx.parent is None:
        return ctx.params
    for name in ctx.command_path.split()[1:]:
        words = words[words.index(name) + 1 :]
    again = ctx.command.make_context(ctx.info_name, words[:-1], parent=ctx.parent, resilient_parsing=True)
    return again.params


def _beginning(incomplete: str, offered: Mapping[str, str], *, without: Iterable[str] = ()) -> Offer:
    """Leave out what was given already, and what would steer the terminal or not be one line."""
    left_out = set(without)
    return [
        (word, told if told.isprintable() else "")
        for word, told in offered.items()
        if word.startswith(incomplete) and word.isprintable() and word not in left_out
    ]


# -- who knows it ----------------------------------------------------------------------------------------------


def _summaries() -> list[dict[str, Any]]:
    from vmkeep.catalog import SqlCatalog
    from vmkeep.config import load_settings

    try:
        path = load_settings().catalog_path
        if not path.exists():
            return []
        with SqlCatalog.open(path) as catalog:
            return list(catalog.summaries())
    except (VmkeepError, OSError):
        return []


def _host_keys() -> dict[str, str]:
    from vmkeep.catalog import SqlCatalog, Trust
    from vmkeep.config import load_settings

    try:
        path = load_settings().catalog_path
        if not path.exists():
            return {}
        with SqlCatalog.open(path) as catalog:
            others = [key for key in catalog.host_keys() if key.trust is not Trust.OWN]
    except (VmkeepError, OSError):
        return {}
    return {key.fingerprint: f"{key.host}, {key.trust}" for key in others}


def _operations() -> dict[str, str]:
    from vmkeep.catalog import SqlCatalog
    from vmkeep.config import load_settings

    try:
        path = load_settings().catalog_path
        if not path.exists():
            return {}
        with SqlCatalog.open(path) as catalog:
            known = catalog.unfinished_operations()
    except (VmkeepError, OSError):
        return {}
    return {each.id: f"{each.kind}, {each.vm or 'no VM'}, {each.state}" for each in known}


def _asked(ctx: typer.Context, ask: Callable[[Settings], Mapping[str, str]]) -> Mapping[str, str]:
    from vmkeep.config import load_settings

    try:
        return ask(load_settings(ctx.params.get("connect") or ctx.find_root().params.get("connect")))
    except (VmkeepError, OSError, ValueError):
        return {}


def _vm_states(settings: Settings) -> Mapping[str, str]:
    from vmkeep.host.offered import vm_states

    return vm_states(settings.uri)


def _moment_names(kind: str, vm: str, settings: Settings) -> Mapping[str, str]:
    from vmkeep.host.offered import moment_names
    from vmkeep.moments import MomentKind

    return dict.fromkeys(moment_names(settings.uri, vm, MomentKind(kind)), "")


def _disk_sources(vm: str, settings: Settings) -> Mapping[str, str]:
    from vmkeep.host.offered import disk_sources

    return disk_sources(settings.uri, vm)


def give_up_soon() -> None:
    """End this process quietly when libvirt or a file system does not answer: nobody waits for a list of names."""
    timer = threading.Timer(PATIENCE_SECONDS, os._exit, (0,))
    timer.daemon = True
    timer.start()
