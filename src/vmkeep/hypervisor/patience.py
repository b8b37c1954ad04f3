"""How long a call to libvirt is waited for: what is said meanwhile, and when it is given up.

A daemon that hangs gives no error. It is found by a second question, asked while the first is waited for: a libvirtd
that answers that one lives, and the first call is slow for a reason of its own (a disk, the VM's QEMU, an agent).
ADR 0020 has why.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from vmkeep.errors import GivenUp, HypervisorHangs, VmkeepError
from vmkeep.values import dataclass

_TELL_SECONDS = 10.0
# How long it takes until libvirtd counts as deaf (``vmkeep.hypervisor.answers``).
_UNTIL_DEAF_SECONDS = 2.5
# After Ctrl-C: of a daemon that answers nothing, there is nothing to wait for. The moment is for a process that was
# stopped, and whose questions were not answered for that alone.
_DEAF_SECONDS = 0.2
_GIVE_UP_SECONDS = 5.0
_LONGEST_LOOK_SECONDS = 0.25
_LEFT_HINT = (
    "What libvirt was asked for last may still be carried out when it answers again. Then whatever was begun is put "
    "right by the guardian and the next command; a guest that stood still goes on."
)


@dataclass(frozen=True, slots=True)
class Silence:
    """A call to libvirt that has not come back: which one, what it is to do ("suspend the VM"), and since when.

    ``deaf``: libvirtd answers no other question either. ``lasting``: such a call may take as long as it needs.
    """

    number: int
    doing: str
    seconds: float
    deaf: bool
    lasting: bool = False

    def message(self, seconds: float | None = None) -> str:
        """Return a sentence for people. ``seconds``: how long it was waited for, which may be less."""
        seconds = self.seconds if seconds is None else seconds
        if self.deaf:
            return f"libvirt has answered nothing for {seconds:.0f} s, asked to {self.doing}"
        return f"libvirt has been at it for {seconds:.0f} s, asked to {self.doing}; it answers other questions"


def left_behind(reason: VmkeepError, message: str) -> GivenUp:
    """Return how a command ends that was asked to while a call does not come back; ``message`` is of the call."""
    reason.hint = _LEFT_HINT
    if message not in getattr(reason, "__notes__", ()):
        reason.add_note(message)
    return GivenUp(reason)


class LibvirtPatience:
    """Watches one wait for libvirt after the other; ``tell`` is given a sentence for each that takes long."""

    def __init__(self, limit_seconds: float = math.inf, *, tell: Callable[[str], None] = lambda _: None) -> None:
        self._limit = limit_seconds
        self._tell = tell
        self._cancelled: VmkeepError | None = None
        self._number = 0
        self._told = False
        self._seen = self._seen_cancelled = self._seen_deaf = 0.0
        self._looked = time.monotonic()

    def cancel(self, reason: VmkeepError) -> None:
        """The operation was asked to end."""
        if self._cancelled is None:
            self._cancelled = reason

    def look(self, silence: Silence | None) -> None:
        """Raise GivenUp when there is no more to be waited for. To be called many times a second."""
        self._count(silence)
        if silence is None or (silence.lasting and not silence.deaf):
            return
        # A call that had taken long before libvirtd fell silent did not wait for that.
        waited = min(self._seen, self._seen_deaf + _UNTIL_DEAF_SECONDS) if silence.deaf else self._seen
        message = silence.message(waited)
        is_deaf = silence.deaf and self._seen_deaf >= _DEAF_SECONDS
        if self._cancelled is not None and (is_deaf or self._seen_cancelled >= _GIVE_UP_SECONDS):
            raise left_behind(self._cancelled, message)
        if waited >= min(self._limit, _TELL_SECONDS) and not self._told:
            self._told = True
            self._tell(f"{message}; waiting")
        if waited >= self._limit:
            raise GivenUp(HypervisorHangs(message))

    def _count(self, silence: Silence | None) -> None:
        now = time.monotonic()
        # A process that was stopped (Ctrl-Z) did not wait for anything meanwhile.
        since, self._looked = min(now - self._looked, _LONGEST_LOOK_SECONDS), now
        if silence is None or silence.number != self._number:
            self._number = 0 if silence is None else silence.number
            self._seen = self._seen_cancelled = self._seen_deaf = 0.0
            self._told = False
            return
        self._seen += since
        self._seen_cancelled += since if self._cancelled is not None else 0.0
        self._seen_deaf = self._seen_deaf + since if silence.deaf else 0.0
