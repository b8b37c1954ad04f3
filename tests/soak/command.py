"""Commands of vmkeep as the soak runs them: forked from a process that has imported it, or real and disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.bed import Zygote
from tests.rig import Host
from tests.rig.cli import COMMAND, Vmkeep
from tests.soak.model import Violation

HANGS_SECONDS = 240.0
"""No command on disks of some MiB takes as long: one that does hangs."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended. A negative status is the signal that killed it."""

    words: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def done(self) -> bool:
        return self.status == 0

    @property
    def killed(self) -> bool:
        """Whether a signal ended it: SIGKILL, or another in its first tenths of a second, before it handles any."""
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT)

    @property
    def document(self) -> dict[str, Any]:
        return _object(self.out)

    @property
    def error(self) -> dict[str, Any]:
        found = _object(self.err).get("error")
        return found if isinstance(found, dict) else {}

    @property
    def code(self) -> str:
        """The code of the error, "done" or "killed"."""
        if self.done:
            return "done"
        return "killed" if self.killed else str(self.error.get("code", "none"))

    def told(self) -> str:
        return f"vmkeep {' '.join(self.words)}: {self.status} {self.out.strip()} {self.err.strip()}"


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


class Commands:
    """Runs vmkeep in one home. ``seen`` is called with each outcome."""

    def __init__(self, host: Host, seen: Callable[[Outcome], None]) -> None:
        self.vmkeep = Vmkeep(host)
        self._host = host
        self._seen = seen
        self._zygote = Zygote(host, self.vmkeep.home)
        self.ended = 0

    def close(self) -> None:
        self._zygote.close()

    def run(self, *words: str | Path) -> Outcome:
        """Run a command to its end, forked. Raises Violation when it hangs or has a fault."""
        texts = tuple(str(word) for word in words)
        hung = threading.Event()

        def end_it() -> None:
            hung.set()
            self._zygote.kill()

        timer = threading.Timer(HANGS_SECONDS, end_it)
        timer.start()
        try:
            printed = self._zygote.command("--json", *texts)
        finally:
            timer.cancel()
        if hung.is_set():
            raise Violation(f"vmkeep {' '.join(texts)} hangs: killed after {HANGS_SECONDS} s")
        return self._judged(Outcome(texts, printed.status, printed.out, printed.err))

    def start(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Running:
        """Start a real process of it, with more of an environment where one is given."""
        command = [COMMAND, "--json", *words]
        process = self._host.popen(command, env={**self.vmkeep.environment, **(env or {})}, start_new_session=True)
        return Running(tuple(str(word) for word in words), process, self._judged)

    def guardians(self) -> list[int]:
        """Return the guardians of this home that live, as seen from outside."""
        home = str(self.vmkeep.home).encode()
        return _processes(lambda words: b"vmkeep.host.guard.guardian" in words and any(home in word for word in words))

    def image_servers(self) -> list[int]:
        """Return the qemu-nbd processes that serve images of this host."""
        place = str(self._host.dir).encode()
        return [
            pid
            for pid in _processes(lambda words: words[0].endswith(b"qemu-nbd"))
            if any(place in word for word in _environment(pid))
        ]

    def _judged(self, outcome: Outcome) -> Outcome:
        self._seen(outcome)
        self.ended += 1
        # Python itself tells of a Ctrl-C while it begins to import vmkeep.
        if outcome.status == 1 or ("Traceback" in outcome.err and not outcome.killed):
            raise Violation(f"a fault of vmkeep: {outcome.told()}")
        if not outcome.killed and not outcome.done and not outcome.error:
            raise Violation(f"no error object: {outcome.told()}")
        return outcome


class Running:
    """A real process of a command, which may be disturbed."""

    def __init__(
        self, words: tuple[str, ...], process: subprocess.Popen[str], judged: Callable[[Outcome], Outcome]
    ) -> None:
        self.words = words
        self.process = process
        self._judged = judged

    def wait(self) -> Outcome:
        try:
            out, err = self.process.communicate(timeout=HANGS_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise Violation(f"vmkeep {' '.join(self.words)} hangs: killed after {HANGS_SECONDS} s") from None
        return self._judged(Outcome(self.words, self.process.returncode, out, err))

    def send(self, number: signal.Signals) -> None:
        """Send it to the process that was started, which may have left its work to a child."""
        if self.process.poll() is None:
            os.kill(self.process.pid, number)

    def send_to_all(self, number: signal.Signals) -> None:
        """Send it to its process group, as a terminal does; a guardian is not in it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until something has come to be, the command is over, or the time is."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline and not condition():
            time.sleep(0.002)


def _processes(wanted: Callable[[Sequence[bytes]], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if wanted(words):
                found.append(int(entry.name))
    return found


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
