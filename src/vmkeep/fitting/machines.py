"""Machine types: which of a host's stands nearest to one that it does not have.

QEMU keeps a machine type unchanged for its guests over releases, and the next release has a newer one. What a guest
sees of two neighbours differs in details that Windows counts as changed hardware.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from vmkeep.fitting.draft import Draft
from vmkeep.fitting.model import MachineType, Misfit

_VERSIONED: Final = re.compile(r"(?P<family>.+?)-(?:rhel|v)?(?P<version>[0-9]+(?:\.[0-9]+){1,2})(?P<flavour>.*)")
_OFFERED: Final = 5


def known_machine(machines: Sequence[MachineType], name: str) -> MachineType | None:
    """Return the machine type of that name or alias."""
    return next((machine for machine in machines if machine.name == name), None)


def candidates(machines: Sequence[MachineType], wanted: str) -> tuple[str, ...]:
    """Return the host's machine types of the same family, the best first: the newest that is not newer, and so on.

    Newer ones follow, the oldest first. What is called only by an alias, or has another flavour, is no candidate.
    """
    parts = _VERSIONED.fullmatch(wanted)
    if parts is None:
        return ()
    wanted_version = _version(parts["version"])
    older: list[tuple[tuple[int, ...], str]] = []
    newer: list[tuple[tuple[int, ...], str]] = []
    for machine in machines:
        found = _VERSIONED.fullmatch(machine.name)
        if found is None or found["family"] != parts["family"] or found["flavour"]:
            continue
        version = _version(found["version"])
        (older if version <= wanted_version else newer).append((version, machine.name))
    ordered = [*sorted(older, reverse=True), *sorted(newer)]
    return tuple(dict.fromkeys(name for _, name in ordered))


def usable_machine(machines: Sequence[MachineType], wanted: str | None) -> str | None:
    """Return a machine type of the host to ask its capabilities for; None for its default."""
    if wanted is None or known_machine(machines, wanted) is not None:
        return wanted
    return next(iter(candidates(machines, wanted)), None)


def fit_machine(draft: Draft) -> None:
    """Put in the machine type that was chosen, or say that this host does not have the one there is."""
    element = draft.root.find("os/type")
    machine = None if element is None else element.get("machine")
    if element is None or machine is None:
        return
    chosen = draft.wish.machine
    if chosen is not None and chosen != machine and known_machine(draft.host.machines, chosen) is not None:
        element.set("machine", chosen)
        draft.found(
            Misfit(
                part="os/type@machine",
                what=f"the machine type {machine} was to be replaced",
                remedy="Leave out --machine to keep it.",
                change=f"machine type {machine} became {chosen}",
                guest="its chipset is of another release; Windows may ask to be activated again",
                chosen=True,
            )
        )
    elif known_machine(draft.host.machines, machine) is None:
        offered = candidates(draft.host.machines, machine)[:_OFFERED]
        named = f": --machine {offered[0]}" if offered else ""
        others = f" (or {', '.join(offered[1:])})" if len(offered) > 1 else ""
        draft.found(
            Misfit(
                part="os/type@machine",
                what=f"this host's QEMU has no machine type {machine}",
                remedy=f"Choose one of this host{named}{others}. The guest sees another release of its chipset; "
                "Windows may ask to be activated again.",
                option="--machine",
                choices=offered,
            )
        )
        if offered:
            element.set("machine", offered[0])
        else:
            element.attrib.pop("machine")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))
