"""A command whose clock is not the machine's: libfaketime, told by a file how far it is off."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.rig.clock import another_clock


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of processes that are started with ``environment``; ``set`` moves it under them."""

    file: Path

    @classmethod
    def at(cls, file: Path, offset: str = "+0") -> Clock:
        """``offset`` is libfaketime's: "+1h", "-3600"."""
        clock = cls(file)
        clock.set(offset)
        return clock

    def set(self, offset: str) -> None:
        beside = self.file.with_suffix(".new")
        beside.write_text(f"{offset}\n")
        beside.replace(self.file)

    @property
    def environment(self) -> dict[str, str]:
        """Only what tells the time of day is off, and what runs by the monotonic clock is not: as after a step."""
        return {**another_clock(), "FAKETIME_TIMESTAMP_FILE": str(self.file), "FAKETIME_NO_CACHE": "1"}
