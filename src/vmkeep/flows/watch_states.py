"""Keep the state files of all VMs as they change: the work of `vmkeep watch`."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress

from vmkeep.custody.standing import LOOK_SECONDS
from vmkeep.errors import HypervisorUnavailable, VmBusy, VmkeepError
from vmkeep.flows.capture_states import Captured, capture_states
from vmkeep.flows.forget_vm import settle_forgotten
from vmkeep.flows.installation import Premises
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.states import AwaitStates, SeenState
from vmkeep.values import dataclass

# A point or a restore works on it: that is over soon.
_BUSY_SECONDS = 5.0
# A full repository does not become empty by being asked.
_FAILED_SECONDS = 60.0
# Terms are days.
_SETTLE_SECONDS = 6 * 3600.0


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of one look. ``failed`` are UUIDs with what is new to tell; what stays as it was is told once."""

    captured: tuple[Captured, ...]
    failed: tuple[tuple[str, VmkeepError], ...]


class StateWatch:
    """Which state files were captured as they are. At first it is none, so that what was missed is caught up with."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises
        self._seen: dict[str, frozenset[SeenState]] = {}
        self._again: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._settle_at = 0.0

    def look(self, host: Host, seconds: float = LOOK_SECONDS) -> Watched:
        """Wait until something can be captured, or so long, and capture it. Raises HypervisorUnavailable."""
        now = time.monotonic()
        wait = max(0.0, min([seconds, *(at - now for at in self._again.values())]))
        seen = tuple(state for states in self._seen.values() for state in states)
        found = _by_vm(host.ask(AwaitStates(seen, wait)))
        for gone in self._seen.keys() - found.keys():
            self._again.pop(gone, None)
            self._told.pop(gone, None)
        captured: list[Captured] = []
        failed: list[tuple[str, VmkeepError]] = []
        for uuid, states in found.items():
            due = self._again.get(uuid, float("inf")) <= time.monotonic()
            if states == self._seen.get(uuid) and not due:
                continue
            error = self._capture(host, uuid, states, captured)
            if error is not None and self._told.get(uuid) != error.message:
                self._told[uuid] = error.message
                failed.append((uuid, error))
        self._seen = found
        return Watched(tuple(captured), tuple(failed))

    def settle(self) -> None:
        """Let versions go whose term is over, from time to time. What keeps it from that is left for the next time."""
        if time.monotonic() < self._settle_at:
            return
        self._settle_at = time.monotonic() + _SETTLE_SECONDS
        with suppress(VmkeepError):
            settle_forgotten(self._premises)

    def _capture(
        self, host: Host, uuid: str, states: frozenset[SeenState], captured: list[Captured]
    ) -> VmkeepError | None:
        """Capture what a VM has now; return what is to be told of a failure."""
        self._again.pop(uuid, None)
        if not any(state.mark for state in states) and not self._premises.catalog.states_of_vm(uuid):
            return None  # it was never started
        try:
            captured.append(capture_states(self._premises, host, uuid, wait=False))
        except HypervisorUnavailable:
            raise
        except VmBusy:
            self._again[uuid] = time.monotonic() + _BUSY_SECONDS
            return None
        except VmkeepError as error:
            self._again[uuid] = time.monotonic() + _FAILED_SECONDS
            return error
        self._told.pop(uuid, None)
        return None


def _by_vm(states: Iterable[SeenState]) -> dict[str, frozenset[SeenState]]:
    found: defaultdict[str, set[SeenState]] = defaultdict(set)
    for state in states:
        found[state.vm_uuid].add(state)
    return {uuid: frozenset(mine) for uuid, mine in found.items()}
