"""What the demo prints: steps with the time they took, the commands it runs, and the proofs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 160


class Narration:
    """Plain lines, with colours on a terminal; remembers how long each step took and which proofs failed."""

    def __init__(self) -> None:
        terminal = Console()
        self._console = terminal if terminal.is_terminal else Console(width=_PLAIN_WIDTH)
        self._times: list[tuple[str, float]] = []
        self._commands: list[tuple[str, float]] = []
        self._number = 0
        self.proofs = 0
        self.failures: list[str] = []

    def say(self, sentence: str) -> None:
        self._console.print(Text(sentence))

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Head a step and note how long it took, when it went well."""
        self._number += 1
        self._console.print()
        self._console.print(Text(f"{self._number}. {title}", style="bold"))
        begun = time.monotonic()
        yield
        took = time.monotonic() - begun
        self._times.append((title, took))
        self._console.print(Text(f"   ({took:.1f} s)", style="dim"))

    @contextmanager
    def command(self, line: str) -> Iterator[None]:
        """Show a command, and then how long it took by itself."""
        self._console.print(Text(f"   $ {line}", style="cyan"), end="")
        begun = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - begun
            self._commands.append((line, took))
            self._console.print(Text(f"   ({took:.1f} s)", style="dim"))

    def output(self, text: str) -> None:
        for line in text.rstrip("\n").splitlines():
            # Lines are not wrapped: what a command prints is shown as it is.
            self._console.print(Text(f"     {line.rstrip()}"), soft_wrap=True)

    def proof(self, what: str, *, holds: bool, detail: str = "") -> None:
        """Say whether something that must be so is so."""
        self.proofs += 1
        if holds:
            self._console.print(Text.assemble("   ", ("proved", "green"), f"  {what}"), soft_wrap=True)
        else:
            self.failures.append(what)
            tail = f": {detail}" if detail else ""
            self._console.print(Text.assemble("   ", ("FAILED", "bold red"), f"  {what}{tail}"), soft_wrap=True)

    def summary(self) -> None:
        """Print how long each step took and what the proofs say."""
        everything = ("all together", sum(took for _, took in self._times))
        for heading, rows in (("step", [*self._times, everything]), ("command", self._commands)):
            table = Table(box=None, pad_edge=False, header_style="bold")
            table.add_column(heading)
            table.add_column("seconds", justify="right")
            for what, took in rows:
                table.add_row(Text(what), f"{took:.1f}")
            self._console.print()
            self._console.print(table)
        self._console.print()
        if self.failures:
            count = f"{len(self.failures)} of {self.proofs} proofs FAILED"
            self._console.print(Text(f"{count}: {'; '.join(self.failures)}", style="bold red"), soft_wrap=True)
        else:
            self._console.print(Text(f"All {self.proofs} proofs hold.", style="bold green"))
