"""What a host is asked of its gate: libvirt's hook that lets no VM start with a lost or an older state."""

from __future__ import annotations

from vmkeep.custody.gate import GatedState, GatePolicy
from vmkeep.host.tasks.task import Task
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class GatedVm:
    """What the gate goes by for a VM; no states: it keeps nothing of it."""

    uuid: str
    states: tuple[GatedState, ...]


@dataclass(frozen=True, slots=True)
class SaidOfVm:
    """What the gate said last of a VM. ``verdict``: allowed, warned, refused. ``when`` is ISO 8601 in UTC."""

    uuid: str
    vm: str
    when: str
    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class GateStatus:
    """How the gate stands. ``hook`` is its file, None when there is none. ``problem``: why it does not do its work.

    ``policies`` are those of VMs (by UUID) that have another than strict, ``said`` the newest first.
    """

    hook: str | None
    problem: str | None
    refuses_unsure: bool
    gated: int
    policies: dict[str, str]
    said: tuple[SaidOfVm, ...]


@dataclass(frozen=True, slots=True)
class HookInstalled:
    """``told``: the daemon looks for hooks again; else a person must make it do so."""

    hook: str
    told: bool


@dataclass(frozen=True, slots=True)
class InstallHook(Task[HookInstalled]):
    """Make the gate, or make it anew. ``vms`` are all that it goes by; what others it had goes.

    ``refuse_unsure`` is whether it starts no VM when it cannot tell; None leaves that as it is, at first not.
    """

    vms: tuple[GatedVm, ...]
    refuse_unsure: bool | None


@dataclass(frozen=True, slots=True)
class RemoveHook(Task[bool]):
    """Take the gate away; answers whether there was one. Policies stay."""


@dataclass(frozen=True, slots=True)
class LookAtGate(Task[GateStatus]):
    """Tell how the gate stands."""


@dataclass(frozen=True, slots=True)
class HasGate(Task[bool]):
    """Tell whether there is a gate that goes by something."""


@dataclass(frozen=True, slots=True)
class RenewGate(Task[None]):
    """Let the gate go by this from now on. Raises HostFileMissing when there is no gate."""

    vm: GatedVm


@dataclass(frozen=True, slots=True)
class SetGatePolicy(Task[None]):
    """Say what the gate does about a VM. Raises HostFileMissing when there is no gate."""

    vm_uuid: str
    policy: GatePolicy


@dataclass(frozen=True, slots=True)
class LetStart(Task[None]):
    """Let a VM start once, as it is, within so many seconds. Raises HostFileMissing when there is no gate."""

    vm_uuid: str
    seconds: float
