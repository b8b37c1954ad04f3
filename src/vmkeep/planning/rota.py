"""What a verification with a budget reads: what was longest unread, and how far that has come."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from vmkeep.errors import InvalidRequest
from vmkeep.spans import SIZE_FORMS, SPAN_FORMS, size_bytes, span_seconds
from vmkeep.values import dataclass

GOAL: Final = timedelta(days=30)
"""Within it everything should have been read once."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a verification may take: so much time, or so many bytes; one of them is None."""

    seconds: int | None = None
    size_bytes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Return what a text like "2h" or "50GB" means. Raises InvalidRequest for another one, and for nothing."""
        span = span_seconds(text)  # "2m" is a time
        size = None if span is not None else size_bytes(text)
        if not (span or size) or text.strip().isdecimal():
            raise InvalidRequest(f"a budget is a time ({SPAN_FORMS}) or a size ({SIZE_FORMS}), and not {text!r}")
        return cls(span, size)

    def is_used(self, seconds: float, size_bytes: int) -> bool:
        """Return whether nothing more may begin after so much."""
        return (self.seconds is not None and seconds >= self.seconds) or (
            self.size_bytes is not None and size_bytes >= self.size_bytes
        )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a repository's packs was read, and proved, within the goal, at the time ``at``.

    ``unread`` packs were never read by this installation, ``bad`` ones were read and are not sound. ``oldest`` is when
    the pack was read that was longest not read since; None when one was never read, or there is none.
    """

    at: datetime
    packs: int
    size_bytes: int
    proved: int
    proved_bytes: int
    unread: int
    bad: int
    oldest: datetime | None

    def is_late(self, now: datetime) -> bool:
        """Return whether something is unread for longer than the goal, as far as that is known."""
        return self.packs > 0 and (now - self.at > GOAL or (self.oldest is not None and now - self.oldest > GOAL))
