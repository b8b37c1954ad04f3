"""Which of several hosts may run a VM and write its state: at most one at a time. No I/O.

A lease is taken at the catalogue that the hosts share, for a time. The host counts that time by its own clock since its
boot, from the moment before it asked; the catalogue counts by its own clock from the moment after, and adds a margin.
So no two clocks are ever compared, and the host's time is over first, as long as no clock runs faster than another by
more than the margin. A host that was booted since holds nothing.

The epoch rises whenever another holding begins. What was read under an earlier epoch never becomes the newest version.
That is what a lease promises for certain. That a host whose lease is over runs nothing any more is the host's own
doing: who confirms that it is fenced without looking, or runs a VM past its gate, has two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from vmkeep.errors import InvalidRequest, VmBusy
from vmkeep.values import dataclass

LEASE_SECONDS: Final = 180.0
"""How long a host holds a lease after it asked, by its own clock: three looks of a watch."""
MARGIN_SECONDS: Final = 60.0
"""How much longer the catalogue waits before another host may take it: for clocks that do not run alike."""
_HELD_BY_OTHERS: Final = timedelta(seconds=LEASE_SECONDS + MARGIN_SECONDS)


class LeaseState(StrEnum):
    """Where a lease stands."""

    HELD = "held"
    """Its host may run the VM, until its time is over."""
    FREE = "free"
    """Its host gave it back: the VM is off there, and what it left is kept."""
    FENCED = "fenced"
    """Somebody confirmed that its host runs the VM no more."""


TRANSITIONS: Final[Mapping[LeaseState, frozenset[LeaseState]]] = MappingProxyType(
    {
        LeaseState.HELD: frozenset({LeaseState.HELD, LeaseState.FREE, LeaseState.FENCED}),
        LeaseState.FREE: frozenset({LeaseState.HELD}),
        LeaseState.FENCED: frozenset({LeaseState.HELD}),
    }
)
"""From each state, the states that may follow."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The lease of a VM. ``host_uuid`` is the host that has it, or had it last.

    ``epoch`` counts the holdings of the VM, ``serial`` all that was ever done to the lease. ``until`` (ISO 8601 in UTC)
    is when another host may take it, by the clock of the catalogue. ``who`` and ``why`` are of one that is fenced.
    """

    vm_uuid: str
    host_uuid: str
    epoch: int
    serial: int
    state: LeaseState
    until: str
    who: str = ""
    why: str = ""

    def taken(self, host_uuid: str, at: str) -> Lease:
        """Return it as it is when a host has taken it, or has renewed what it holds already.

        ``at`` is what the catalogue's clock said before. Raises VmBusy while it is another host's.
        """
        if self.state is LeaseState.HELD and self.host_uuid == host_uuid:
            return replace(self, serial=self.serial + 1, until=_free_to_others(at))
        if self.state is LeaseState.HELD and at < self.until:
            raise VmBusy(
                f"VM {self.vm_uuid} is held by host {self.host_uuid} until {self.until[:19]}Z",
                vm=self.vm_uuid,
                hint="Shut it down there. Of a host that is gone for good, and surely runs nothing any more, say that "
                "it is fenced.",
            )
        return replace(
            self,
            host_uuid=host_uuid,
            epoch=self.epoch + 1,
            serial=self.serial + 1,
            state=LeaseState.HELD,
            until=_free_to_others(at),
            who="",
            why="",
        )

    def given_back(self, host_uuid: str) -> Lease:
        """Return it as it is when its host has given it back. Raises InvalidRequest for another host."""
        if self.state is not LeaseState.HELD or self.host_uuid != host_uuid:
            raise InvalidRequest(
                f"host {host_uuid} does not hold the lease of VM {self.vm_uuid}",
                vm=self.vm_uuid,
                hint=f"It is {self.state}, of host {self.host_uuid}.",
            )
        return replace(self, serial=self.serial + 1, state=LeaseState.FREE)

    def fenced(self, who: str, why: str) -> Lease:
        """Return it as it is when somebody has confirmed that its host runs the VM no more. Raises InvalidRequest."""
        if LeaseState.FENCED not in TRANSITIONS[self.state]:
            raise InvalidRequest(
                f"nobody holds the lease of VM {self.vm_uuid}", vm=self.vm_uuid, hint="Any host may take it."
            )
        return replace(self, serial=self.serial + 1, state=LeaseState.FENCED, who=who, why=why)

    def follows(self, known: Lease | None) -> bool:
        """Return whether this may take the place of ``known``, as it was when it was read; None: of nothing."""
        if known is None:
            return (self.epoch, self.serial, self.state) == (1, 1, LeaseState.HELD)
        if self.vm_uuid != known.vm_uuid or self.serial != known.serial + 1:
            return False
        if self.state not in TRANSITIONS[known.state]:
            return False
        goes_on = self.host_uuid == known.host_uuid and known.state is LeaseState.HELD
        if goes_on or self.state is not LeaseState.HELD:
            return goes_on and self.epoch == known.epoch
        waited = known.state is not LeaseState.HELD or self.until >= _free_to_others(known.until)
        return waited and self.epoch == known.epoch + 1

    def allows(self, epoch: int | None) -> bool:
        """Return whether what was read under an epoch may count: nobody has taken the lease since."""
        return epoch == self.epoch


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a host itself knows of a lease that it holds: until when, by its clock since its boot, which has a name."""

    epoch: int
    boot: str
    until_seconds: float

    def holds(self, boot: str, now_seconds: float) -> bool:
        """Return whether the host may start the VM, or go on running it."""
        return boot == self.boot and now_seconds < self.until_seconds


def first_lease(vm_uuid: str, host_uuid: str, at: str) -> Lease:
    """Return the lease of a VM that never had one, taken by a host; ``at`` as in ``Lease.taken``."""
    return Lease(vm_uuid, host_uuid, 1, 1, LeaseState.HELD, _free_to_others(at))


def tenure_of(lease: Lease, boot: str, asked_seconds: float) -> Tenure:
    """Return what a host may go by that has taken a lease; ``asked_seconds`` is its clock before it asked at all."""
    return Tenure(lease.epoch, boot, asked_seconds + LEASE_SECONDS)


def _free_to_others(at: str) -> str:
    return (datetime.fromisoformat(at) + _HELD_BY_OTHERS).isoformat(timespec="microseconds")
