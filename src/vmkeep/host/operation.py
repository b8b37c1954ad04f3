"""One operation on this machine: what its tasks are given, and what lives from one of them to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from vmkeep.config import Settings
    from vmkeep.errors import VmkeepError
    from vmkeep.host.tasks.survey import Progress
    from vmkeep.hypervisor import Hypervisor
    from vmkeep.repository import Repository

T = TypeVar("T")


class Holder(Protocol):
    """Something that holds a VM between the tasks of its operation."""

    def release(self) -> None:
        """Let go of the VM's lock, because the process ends."""
        ...

    def release_guest(self) -> None:
        """Undo what is done to the guest, although the task hangs that would do so itself."""
        ...


@dataclass(slots=True)
class Operation:
    """What the tasks of one operation work with.

    ``connected`` and ``repository`` open what they return when they are first called. ``holder`` is what has the VM.
    """

    id: str
    settings: Settings
    connected: Callable[[], Hypervisor]
    repository: Callable[[], Repository]
    cancelled: VmkeepError | None = None
    progress: Progress | None = None
    holder: Holder | None = None
    _kept: dict[type[Any], Any] = field(default_factory=dict)

    def stop(self) -> None:
        """Raise the reason when the operation was cancelled."""
        if self.cancelled is not None:
            raise self.cancelled

    def watch(self, progress: Progress) -> None:
        """Take note of where the running task stands."""
        self.progress = progress

    def kept(self, kind: type[T], make: Callable[[], T] | None = None) -> T:
        """Return what an earlier task of the operation kept, or else what ``make`` makes, which is kept then."""
        if kind not in self._kept:
            assert make is not None, f"a task that needs a {kind.__name__} came before the one that makes it"
            self._kept[kind] = make()
        found: T = self._kept[kind]
        return found

    def has(self, kind: type[Any]) -> bool:
        """Return whether an earlier task kept such a thing."""
        return kind in self._kept
