"""The thaw that a guest is owed after vmkeep may have frozen it, whatever the agent in the guest makes of it.

The agent belongs to the guest. One that hangs is asked again for a minute; one that says no need not be asked for as
long; and one that says each time that it has thawed something is believed. Nothing else waits for any of that: a job
that is not ended grows by what the guest writes.
"""

from __future__ import annotations

import time
from typing import Final

from vmkeep.commandline import command_line
from vmkeep.errors import AgentUnavailable, VmBusy, VmkeepError
from vmkeep.hypervisor import Domain, RunState

# libvirt waits for an agent's first word for 5 s in any case. A thaw that is answered later is carried out as well, and
# the next one finds nothing to do.
_ANSWER_SECONDS: Final = 10
_ONCE_ANSWER_SECONDS: Final = 5
_SILENT_SECONDS: Final = 60.0
_REFUSED_SECONDS: Final = 5.0
_BELIEVED_SECONDS: Final = 5.0


class Thawing:
    """One guest, for one rescue. ``owed``: it may be frozen; ``once``: it was tried for long before."""

    def __init__(self, *, owed: bool, once: bool = False) -> None:
        self._is_over = not owed
        self._once = once
        self._since: float | None = None
        self._refusal: VmkeepError | None = None

    def ask(self, domain: Domain) -> bool:
        """Have the guest thaw; return whether it is to be asked again. Nothing is raised for what its agent does.

        A freeze that was under way when vmkeep died is carried out by libvirtd, and the thaw waits behind it: libvirt
        lets one call at a time speak to an agent.
        """
        if self._is_over:
            return False
        run = domain.state().run
        if run is not RunState.RUNNING:
            paused = AgentUnavailable("the VM is paused, so its guest cannot be thawed", vm=domain.name)
            self._refusal = paused if run is RunState.PAUSED else None
            return False
        self._since = time.monotonic() if self._since is None else self._since
        thawed = 0
        limit = _BELIEVED_SECONDS
        try:
            thawed = domain.thaw(_ONCE_ANSWER_SECONDS if self._once else _ANSWER_SECONDS)
            self._refusal = None
        except (AgentUnavailable, VmBusy) as error:
            self._refusal = error
            limit = _REFUSED_SECONDS if isinstance(error, AgentUnavailable) and error.refused else _SILENT_SECONDS
        self._is_over = self._once or time.monotonic() - self._since > limit
        return not self._is_over and (thawed > 0 or self._refusal is not None)

    def forget(self) -> None:
        """The VM is gone, and with it what was frozen."""
        self._is_over, self._refusal = True, None

    def finish(self, vm: str) -> None:
        """Raise AgentUnavailable when the guest may still be frozen."""
        if self._refusal is not None:
            message = f"the guest of VM {vm!r} may still be frozen: {self._refusal.message}"
            raise AgentUnavailable(message, vm=vm, hint=_remedy(vm))


def thaw(domain: Domain) -> None:
    """Thaw a guest at the end of an instant; raises AgentUnavailable when it may still be frozen."""
    try:
        domain.thaw()
    except (AgentUnavailable, VmBusy) as error:
        raise AgentUnavailable(error.message, vm=domain.name, hint=_remedy(domain.name)) from error


def _remedy(vm: str) -> str:
    """Return what to do about a guest that may be frozen."""
    return (
        f"The guest may be frozen. `{command_line('virsh domfsthaw', vm)}` thaws it when its agent answers again, as "
        "the guardian tries for a minute and each command of vmkeep once; a restart of the guest helps in any case."
    )
