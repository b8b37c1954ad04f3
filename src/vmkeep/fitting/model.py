"""What a host can do, what of a definition does not fit there, and what can be done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from types import MappingProxyType

from vmkeep.fitting.vocabulary import Vocabulary
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A machine type of this host's QEMU. ``canonical`` is what an alias such as q35 stands for now."""

    name: str
    canonical: str | None = None
    deprecated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """A CPU model that libvirt knows. ``canonical`` is another name of the same; ``blockers`` are lacking features."""

    name: str
    usable: bool
    canonical: str | None = None
    blockers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareBuild:
    """A UEFI firmware on this host: its code, the template of its variables, and their size where that is there.

    ``machines`` are patterns as in ``pc-q35-*``, empty for any. ``described``: libvirt chooses it by itself, from its
    description in /usr/share/qemu/firmware.
    """

    code: str
    template: str | None
    variables_bytes: int | None
    secure_boot: bool
    enrolled_keys: bool
    needs_smm: bool
    arch: str | None = None
    machines: tuple[str, ...] = ()
    described: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAbilities:
    """What a host can do for a VM of one architecture, virtualisation and machine type.

    ``kinds`` are the pairs (type, architecture) that it runs at all. ``enums`` are libvirt's lists of what it supports
    by ``ELEMENT.NAME`` of its domain capabilities ("tpm.model"); a list that this libvirt does not give is not there.
    ``unsupported`` are the devices that it says it does not support at all. ``files`` are those named by the definition
    that are on the host.
    """

    release: str
    kinds: frozenset[tuple[str, str]]
    machines: tuple[MachineType, ...]
    emulator: str | None = None
    enums: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    unsupported: frozenset[str] = frozenset()
    cpu_modes: frozenset[str] = frozenset()
    cpu_models: tuple[CpuModel, ...] = ()
    firmware: tuple[FirmwareBuild, ...] = ()
    files: frozenset[str] = frozenset()
    vocabulary: Vocabulary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a person chose. ``adapt``: make the changes that need no choice. ``firmware`` is a file on this host."""

    adapt: bool = False
    machine: str | None = None
    cpu: str | None = None
    firmware: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVariables:
    """The UEFI variables that a point holds: what the firmware of the VM must be made for. ``path``: where they go."""

    size_bytes: int
    format: str = "raw"
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """One thing of a definition that does not fit the host.

    ``part`` is where it stands, ``what`` what is wrong, ``remedy`` what a person can do. ``change`` is what was done
    about it in the definition that fits, empty when only a person can; ``guest`` is what the guest notices of that,
    empty when nothing. ``chosen``: the change was asked for by name. ``choices`` are this host's candidates for
    ``option``, the best first.
    """

    part: str
    what: str
    remedy: str
    change: str = ""
    guest: str = ""
    chosen: bool = False
    option: str = ""
    choices: tuple[str, ...] = ()

    def is_open(self, wish: Wish) -> bool:
        """Return whether it is left to be decided by a person."""
        return not (self.change and (wish.adapt or self.chosen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """``definition`` has all the changes of ``misfits``; it is to be used only when none of them is left open."""

    definition: str
    misfits: tuple[Misfit, ...]

    def left_open(self, wish: Wish) -> tuple[Misfit, ...]:
        """Return the misfits that forbid the definition."""
        return tuple(misfit for misfit in self.misfits if misfit.is_open(wish))
