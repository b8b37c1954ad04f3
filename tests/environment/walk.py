"""At which calls of a command the system fails: at all of them, or at a sample that has each kind of call in it."""

from __future__ import annotations

import errno
import json
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.crash.bed import Printed
from tests.environment.injector import FOREVER, Call, Fault, Injector

EVERY: Final = os.environ.get("VMKEEP_FAULT_ALL") == "1"
"""Fail at the first and last call of every kind and place, with every error, in place of a small sample."""
MOST: Final = int(os.environ.get("VMKEEP_FAULT_MOST", "0"))
"""So many cases of each test, in place of the small sample that `make test` plays."""
_FAILURES: Final = 8
SEED: Final = int(os.environ.get("VMKEEP_FAULT_SEED", "1"))
ERRORS: Final[Mapping[str, Sequence[int]]] = {
    "open": (errno.EIO, errno.EMFILE),
    "create": (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EMFILE, errno.EDQUOT),
    "read": (errno.EIO,),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT),
    "sync": (errno.EIO, errno.ENOSPC),
    "rename": (errno.ENOSPC, errno.EIO, errno.EROFS),
    "link": (errno.ENOSPC, errno.EIO),
    "unlink": (errno.EIO, errno.EROFS),
    "mkdir": (errno.ENOSPC, errno.EROFS, errno.EIO),
    "lock": (errno.ENOLCK,),
    "statvfs": (errno.EIO,),
}
_NAMES: Final = re.compile(r"[0-9a-f]{8,}|[0-9]+|home-[a-z0-9_]+")


def walked(calls: Sequence[Call], fault: Fault, most: int) -> list[Fault]:
    """Return where a run fails of which these calls were counted with ``fault``; at most so many, unless all are asked.

    What is rare comes first. Each fails for once or from then on, by chance.
    """
    chance = random.Random(SEED)
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        kinds.setdefault(f"{call.kind} {_NAMES.sub('N', call.path)}", []).append(call)
    groups = []
    for found in kinds.values():
        places = {found[0].number: found[0], found[-1].number: found[-1]}
        faults = [
            Fault(fault.prefixes, error, number, times, fault.kinds)
            for number, call in places.items()
            for error in ERRORS[call.kind]
            for times in (1, FOREVER)
        ]
        chance.shuffle(faults)
        groups.append(faults)
    if EVERY:
        return sorted((each for group in groups for each in group), key=_order)
    chance.shuffle(groups)
    taken: list[Fault] = []
    while len(taken) < most and any(groups):
        taken += [group.pop() for group in groups if group]
    return sorted(taken[:most], key=_order)


def _order(fault: Fault) -> tuple[int, int, int]:
    return fault.at, fault.error, fault.times


@dataclass(frozen=True, slots=True)
class Faulty:
    """One run with a fault in it: what it printed, and the call at which it failed, as words."""

    printed: Printed
    fault: Fault
    hit: str

    @property
    def done(self) -> bool:
        return self.printed.status == 0

    def document(self) -> dict[str, Any]:
        return self.printed.document()

    def assert_told(self) -> None:
        """Fail unless the run ended well, or told an error that a user can do something with."""
        if self.done:
            return
        told = json.loads(self.printed.err)
        error = told["error"]
        assert error["code"] != "internal-error", error
        assert error["hint"], error
        assert "Errno" not in error["message"], error
        assert "Traceback" not in self.printed.err, self.printed.err


@dataclass(slots=True)
class Walk:
    """Runs a command again and again, with another fault each time."""

    injector: Injector
    run: Callable[[Sequence[str | Path], Mapping[str, str]], Printed]
    cases: int = 0

    def over(
        self,
        prefixes: Sequence[str | Path],
        most: int,
        words: Callable[[], Sequence[str | Path]],
        check: Callable[[Faulty], None],
    ) -> None:
        """Count the calls of a run that must end well, and let later ones fail at them; check after each."""
        counting = Fault(tuple(prefixes))
        ended = self.run(words(), self.injector.environment(counting))
        calls = self.injector.calls()
        check(Faulty(ended, counting, "nothing"))
        assert ended.status == 0, ended
        assert calls, "the command does nothing there"
        failures: list[Exception] = []
        for fault in walked(calls, counting, MOST or most):
            self.cases += 1
            ended = self.run(words(), self.injector.environment(fault))
            hit = next((f"{call.kind} {call.path}" for call in self.injector.calls() if call.hit), "nothing")
            faulty = Faulty(ended, fault, hit)
            try:
                faulty.assert_told()
                check(faulty)
            except Exception as error:
                error.add_note(f"with {fault}: {hit}; it ended with {ended}")
                if not (EVERY or MOST) or len(failures) >= _FAILURES:
                    raise
                failures.append(error)
                self.run(("doctor", "--fix"), {})
        if failures:
            raise ExceptionGroup(f"{len(failures)} of {self.cases} faults", failures)
