"""What was read to be proved: wrong only when it was read twice, and never wrong because it could not be read.

A storage that fails for a while, or a cable or memory that turns a bit now and then, damages nothing: what is there
may be sound. So damage is what two reads agree on, the second one past the host's page cache. What gives an error is
counted apart, and when there is much of it the pass ends: a storage like that cannot be judged, and each of its errors
may take a disk half a minute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from vmkeep.errors import IntegrityError, PermissionRefused, StoreError, VmkeepError
from vmkeep.repository.store import ObjectStore

T = TypeVar("T")
MOST_UNREAD_OBJECTS: Final = 16
"""When so many objects could not be read, a pass ends with store-error."""
MOST_UNREAD_FRAMES: Final = 4
"""When so many blocks or nodes of a pack could not be read, the others of it are not tried."""


def is_unread(error: VmkeepError) -> bool:
    """Return whether an error says of an object that it could not be read, and nothing of what it holds."""
    return isinstance(error, StoreError | PermissionRefused)


class Readings:
    """What one pass found out by reading.

    ``unsteady``: what was wrong once, and right when it was read again. ``given_up``: packs that are read no further.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._frames: Counter[str] = Counter()
        self.given_up: dict[str, VmkeepError] = {}
        self.unsteady: dict[str, str] = {}
        self.unread: dict[tuple[str, str], set[str]] = {}

    def twice(self, name: str, read: Callable[[], T]) -> T:
        """Return what ``read`` returns of an object; raises what it raises, IntegrityError at the second time only."""
        try:
            return read()
        except IntegrityError as error:
            self._store.forget_cached(name)
            result = read()
            self.unsteady[name] = error.message
            return result

    def note_unread(self, name: str, error: VmkeepError, *harms: str) -> None:
        """Note an object that could not be read, and whose it is. Raises StoreError when there are too many."""
        self.unread.setdefault((name, error.message), set()).update(harms)
        if len({known for known, _ in self.unread}) > MOST_UNREAD_OBJECTS:
            raise self._stop(error)

    def note_unread_frame(self, pack: str, error: VmkeepError) -> None:
        """Count a frame that could not be read; ``given_up`` has its pack when there were too many."""
        self._frames[pack] += 1
        if self._frames[pack] >= MOST_UNREAD_FRAMES:
            self.given_up[pack] = error

    def _stop(self, last: VmkeepError) -> StoreError:
        return StoreError(
            f"more than {MOST_UNREAD_OBJECTS} objects of the repository at {self._store.location} could not be read, "
            f"so the check was ended: {last.message}",
            path=last.path or self._store.location,
            hint="Nothing is proved to be damaged by that, and nothing was marked. Look at the storage (`dmesg`), and "
            "run the command again when it answers.",
        )
