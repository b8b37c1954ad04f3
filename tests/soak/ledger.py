"""What was done: a line for each step in a log, and counts for the end."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from tests.soak.command import Outcome


@dataclass(slots=True)
class Ledger:
    """Counts of steps by operation, of commands by how they ended, and of violations."""

    log: TextIO
    steps: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    violations: list[str] = field(default_factory=list)
    lives: int = 0

    def count_outcome(self, outcome: Outcome) -> None:
        verb = " ".join(word for word in outcome.words[:2] if word.isalpha() and not word.startswith("vm"))
        self.ends[f"{verb or outcome.words[0]}: {outcome.status} {outcome.code}"] += 1

    def begin_line(self, text: str) -> None:
        """Begin a line, so that a step that hangs is seen."""
        self.log.write(text)
        self.log.flush()

    def end_line(self, text: str) -> None:
        self.log.write(text + "\n")
        self.log.flush()

    def count_step(self, name: str, seconds: float) -> None:
        self.steps[name] += 1
        self.seconds[name] += seconds

    @property
    def total(self) -> int:
        return self.steps.total()

    def save(self, path: Path) -> None:
        counts = {"steps": self.steps, "ends": self.ends, "seconds": self.seconds}
        path.write_text(json.dumps({**counts, "violations": self.violations, "lives": self.lives}))

    def add(self, path: Path) -> None:
        """Add what another process has counted."""
        counted = json.loads(path.read_text())
        self.steps.update(counted["steps"])
        self.ends.update(counted["ends"])
        for name, seconds in counted["seconds"].items():
            self.seconds[name] += seconds
        self.violations += counted["violations"]
        self.lives += counted["lives"]

    def summary(self) -> list[str]:
        lines = [f"{self.total} steps in {self.lives} lives, {len(self.violations)} violations"]
        for name, number in sorted(self.steps.items()):
            lines.append(f"  {number:5} {name} ({self.seconds[name] / number:.1f} s each)")
        lines.append("how commands ended:")
        lines += [f"  {number:5} {end}" for end, number in sorted(self.ends.items())]
        return lines + [f"VIOLATION {violation}" for violation in self.violations]
