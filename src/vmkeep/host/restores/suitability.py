"""Whether the definition of a VM fits this host, asked before anything of it is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from lxml import etree

from vmkeep.definition import Definition
from vmkeep.definition.reading import read_domain
from vmkeep.errors import HostFileMissing, HostUnfit, HypervisorError, HypervisorUnavailable, InvalidRequest
from vmkeep.fitting import (
    DomainCapabilities,
    Fit,
    HostAbilities,
    HostOwn,
    Misfit,
    StoredVariables,
    Vocabulary,
    Wish,
    candidates,
    firmware_files,
    fit,
    known_machine,
    read_domain_capabilities,
    read_guests,
    template_of,
    usable_machine,
)
from vmkeep.fitting.vocabulary import Unknown
from vmkeep.host.vm.firmware import firmware_builds, firmware_descriptions
from vmkeep.hypervisor import Hypervisor
from vmkeep.xmltext import XmlRefused

SCHEMAS: Final = Path("/usr/share/libvirt/schemas")


def fit_definition(
    hypervisor: Hypervisor, xml: str, wish: Wish, variables: StoredVariables | None, *, vm: str, source: str
) -> Fit:
    """Return the definition with the changes that it needs here; ``source`` is the point, for the message.

    Raises HostUnfit with everything that does not fit and is left to a person, and InvalidRequest or HostFileMissing
    for what was chosen and is not on this host.
    """
    abilities = abilities_for(hypervisor, read_domain(xml), wish)
    _refuse_choices(abilities, read_domain(xml), wish, vm)
    fitted = fit(xml, abilities, wish, variables=variables, trial=hypervisor.refusal)
    left = fitted.left_open(wish)
    if left:
        raise _unfit(fitted.misfits, wish, vm, source)
    return fitted


def told_of_firmware(hypervisor: Hypervisor, taken_on: str, original: Definition, wish: Wish) -> tuple[str, ...]:
    """Say what the firmware of another host means to what is sealed; a point does not tell which build it was.

    Seen between Debian 12 and 13, both ways, with equal UEFI variables, disks and TPM: PCR 7 is the same, and what is
    bound to it opens; PCR 0, 1 and 4 are others (docs/guide/other-host.md).
    """
    if wish.firmware is not None or not original.firmware.has_variables or taken_on == hypervisor.identity()[1]:
        return ()
    sentence = (
        f"The point was taken on host {taken_on!r}. If its UEFI firmware was another build than that of this host, "
        "what the guest sealed to PCR 0 or 4 (BitLocker without Secure Boot) stays shut: keep the recovery key at "
        "hand. What it sealed to PCR 7 opens."
    )
    return (sentence,)


def _unfit(misfits: Sequence[Misfit], wish: Wish, vm: str, source: str) -> HostUnfit:
    left = [misfit for misfit in misfits if misfit.is_open(wish)]
    options = [] if wish.adapt else ["--adapt"] * any(misfit.change for misfit in left)
    options += [f"{misfit.option} {misfit.choices[0]}" for misfit in left if misfit.option and misfit.choices]
    person = [misfit for misfit in left if not misfit.change and not (misfit.option and misfit.choices)]
    if person:
        hint = (
            "Nothing was written. What no option changes is yours to decide: restore to files (--output DIR), change "
            "domain.xml and define it, or restore on another host."
        )
    else:
        hint = f"Nothing was written. Run the command again with {' '.join(options)}, once you agree with each change."
    count = "one thing" if len(left) == 1 else f"{len(left)} things"
    return HostUnfit(
        f"{source} does not fit this host in {count}",
        vm=vm,
        hint=hint,
        misfits=[as_json(misfit, wish) for misfit in misfits if misfit.is_open(wish)],
    )


def as_json(misfit: Misfit, wish: Wish) -> dict[str, object]:
    """Return a misfit as the JSON object of an error; ``change`` is what --adapt would do."""
    value = asdict(misfit)
    remedy = misfit.remedy
    if misfit.change and not wish.adapt:
        notices = f"the guest: {misfit.guest}" if misfit.guest else "the guest does not notice"
        remedy = f"{remedy} With --adapt: {misfit.change} ({notices})."
    del value["chosen"]
    return {**value, "remedy": remedy, "choices": list(misfit.choices)}


def _refuse_choices(abilities: HostAbilities, root: etree._Element, wish: Wish, vm: str) -> None:
    if wish.machine is not None and known_machine(abilities.machines, wish.machine) is None:
        system = root.find("os/type")
        wanted = (None if system is None else system.get("machine")) or wish.machine
        offered = candidates(abilities.machines, wanted) or candidates(abilities.machines, wish.machine)
        raise InvalidRequest(
            f"this host's QEMU has no machine type {wish.machine!r}",
            vm=vm,
            hint=f"Of the VM's family it has {', '.join(offered)}." if offered else "See `virsh capabilities`.",
        )
    if wish.firmware is not None and not Path(wish.firmware).is_file():
        raise HostFileMissing(
            f"the firmware {wish.firmware} is not on this host",
            vm=vm,
            path=wish.firmware,
            hint="Copy the file that the VM had to where QEMU's user may read it, and name that.",
        )
    models = {model.name for model in abilities.cpu_models}
    if wish.cpu is not None and wish.cpu not in abilities.cpu_modes | models:
        raise InvalidRequest(
            f"this host gives no CPU {wish.cpu!r}",
            vm=vm,
            hint=f"It gives {', '.join(sorted((abilities.cpu_modes | models) - {'custom'}))}.",
        )


# -- what this host can do -------------------------------------------------------------------------------------


def abilities_for(hypervisor: Hypervisor, root: etree._Element, wish: Wish) -> HostAbilities:
    """Return what this host can do for a VM like the one of the definition."""
    guests = read_guests(hypervisor.capabilities())
    system = root.find("os/type")
    kind = root.get("type", "")
    arch = (None if system is None else system.get("arch")) or ""
    machines = guests.machines.get((kind, arch), ())
    wanted = wish.machine or (None if system is None else system.get("machine"))
    domain = _domain_capabilities(hypervisor, kind, arch, usable_machine(machines, wanted))
    libvirt, _ = hypervisor.versions()
    return HostAbilities(
        release=_dotted(libvirt),
        kinds=guests.kinds,
        machines=machines,
        emulator=domain.emulator,
        enums=domain.enums,
        unsupported=domain.unsupported,
        cpu_modes=domain.cpu_modes,
        cpu_models=domain.cpu_models,
        firmware=firmware_builds([*domain.loaders, *filter(None, [(root.findtext("os/loader") or "").strip()])]),
        files=frozenset(path for path in _named_files(root) if Path(path).exists()),
        vocabulary=_vocabulary(),
    )


def programs_for(hypervisor: Hypervisor, root: etree._Element, wish: Wish) -> HostOwn:
    """Return the programs and firmware that this host itself names for a VM like the one of the definition.

    Also what the definition names and the host does not have: that is replaced or refused when it is made to fit.
    """
    guests = read_guests(hypervisor.capabilities())
    system = root.find("os/type")
    kind, arch = root.get("type", ""), (None if system is None else system.get("arch")) or ""
    wanted = wish.machine or (None if system is None else system.get("machine"))
    machine = usable_machine(guests.machines.get((kind, arch), ()), wanted)
    domain = _domain_capabilities(hypervisor, kind, arch, machine)
    described = {path for text in firmware_descriptions() for path in firmware_files(text)}
    loaders = {*domain.loaders, *described}
    return HostOwn(
        emulators=guests.emulators | frozenset(filter(None, [domain.emulator])),
        loaders=frozenset(loaders),
        templates=frozenset({*loaders, *map(template_of, loaders)}),
        absent=frozenset(path for path in _named_files(root) if not os.path.lexists(path)),
        replaced_loader=(root.findtext("os/loader") or "").strip() if wish.firmware is not None else None,
        session=urlsplit(hypervisor.uri).path.rstrip("/").endswith("session"),
    )


def unknown_here(root: etree._Element) -> list[Unknown]:
    """Return what of a definition this host's libvirt does not know, which is never defined: it is taken out to fit."""
    vocabulary = _vocabulary()
    return [] if vocabulary is None else [each for each in vocabulary.unknown(root) if each.value is None]


_NOTHING_KNOWN: Final = DomainCapabilities(
    emulator=None, enums={}, unsupported=frozenset(), cpu_modes=frozenset(), cpu_models=(), loaders=()
)


def _domain_capabilities(hypervisor: Hypervisor, kind: str, arch: str, machine: str | None) -> DomainCapabilities:
    try:
        return read_domain_capabilities(hypervisor.domain_capabilities(kind, arch, machine))
    except HypervisorUnavailable:
        raise
    except (HypervisorError, XmlRefused):
        return _NOTHING_KNOWN  # of a kind that it does not run at all; that is told


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}"


def _named_files(root: etree._Element) -> list[str]:
    texts = [root.findtext(path) or "" for path in ("devices/emulator", "os/loader")]
    nvram = root.find("os/nvram")
    return [text.strip() for text in (*texts, "" if nvram is None else nvram.get("template", "")) if text.strip()]


@cache
def _vocabulary() -> Vocabulary | None:
    """Return the words of this host's libvirt; None where its schema is not installed."""
    try:
        return Vocabulary.of({path.name: path.read_text(encoding="utf-8") for path in SCHEMAS.glob("*.rng")})
    except (OSError, KeyError, UnicodeDecodeError, XmlRefused):
        return None
