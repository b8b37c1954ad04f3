"""One life: new VMs, some dozens of random steps, and the proof of all at the end."""

from __future__ import annotations

import random
import time
import traceback
from dataclasses import dataclass

from tests.soak.guest import Guest
from tests.soak.invariants import check, prove_all, prove_guest
from tests.soak.ledger import Ledger
from tests.soak.model import Violation
from tests.soak.operations import OPERATIONS, Operation
from tests.soak.sabotage import SABOTAGES
from tests.soak.world import Hosts, World, new_world

_PROOF_EVERY = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be lived. ``stop_before``: the step before which a single life ends, to look at what is there.

    ``calm``: nothing is killed or stopped at a time, so each run of a seed is the same.
    """

    seed: int
    sabotage: str | None = None
    stop_before: int | None = None
    keep: bool = False
    calm: bool = False


class Life:
    """The ``number``-th life of a seed."""

    def __init__(self, plan: Plan, number: int, hosts: Hosts, ledger: Ledger) -> None:
        self._plan = plan
        self._number = number
        self._hosts = hosts
        self._ledger = ledger
        chance = self._chance("life")
        self._steps = chance.randint(40, 80)
        self._vms = chance.choice((1, 1, 2))
        self._own_store = chance.random() < 0.4
        self._sabotaged_at = chance.randint(5, 8)

    def live(self, most_steps: int) -> bool:
        """Live it, at most so many steps; return whether nothing was violated."""
        self._ledger.lives += 1
        step = 0
        with new_world(self._hosts, self._ledger, own_store=self._own_store) as world:
            try:
                for number in range(self._vms):
                    self._tell(0, "make", _describe(world.add_guest(self._chance(f"vm{number}"))))
                steps = min(self._steps, most_steps)
                for step in range(1, steps + 1):
                    if step == self._plan.stop_before:
                        break
                    self._step(world, step)
                prove_all(world)
                self._tell(step, "end", f"{len(world.points.known)} points and all disks are what was written")
            except Exception as error:  # whatever ends a life must be told with its step
                self._violated(step, error)
                return False
            finally:
                if self._plan.keep:
                    input(f"the life ended at step {step}; its world is {world.host.dir}. Enter removes it. ")
        return True

    def _step(self, world: World, step: int) -> None:
        chance = self._chance(step)
        sabotage = self._plan.sabotage if step >= self._sabotaged_at else None
        if sabotage is not None and SABOTAGES[sabotage].possible(world):
            self._tell(step, f"sabotage {sabotage}", SABOTAGES[sabotage].run(world, chance))
            find_harm(world)
            raise AssertionError(f"the sabotage {sabotage} was not found")
        guest = chance.choice(world.guests)
        drawn = draw(world, guest, chance, calm=self._plan.calm)
        began = time.monotonic()
        self._ledger.begin_line(f"{self._place(step)}: {guest.name} {drawn.name}: ")
        told = drawn.run(world, guest, chance)
        check(world)
        if step % _PROOF_EVERY == 0:
            prove_guest(world, guest)
        seconds = time.monotonic() - began
        self._ledger.count_step(drawn.name, seconds)
        self._ledger.end_line(f"{told} [{guest.state.value}, {seconds:.1f} s]")

    def _chance(self, what: object) -> random.Random:
        """Each step draws from numbers of its own, so that one that ended otherwise does not change the next."""
        return random.Random(f"{self._plan.seed}/{self._number}/{what}")

    def _place(self, step: int) -> str:
        return f"seed {self._plan.seed} life {self._number} step {step}"

    def _tell(self, step: int, what: str, how: str) -> None:
        self._ledger.end_line(f"{self._place(step)}: {what}: {how}")

    def _violated(self, step: int, error: Exception) -> None:
        self._ledger.end_line("")
        said = getattr(error, "stderr", None) or ""  # of a tool that failed
        reason = str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error} {said}".strip()
        if not isinstance(error, Violation):
            self._ledger.end_line(traceback.format_exc())
        again = f"make soak SEED={self._plan.seed} ARGS='--only-life {self._number}'"
        self._tell(step, "VIOLATION", reason)
        told = f"seed {self._plan.seed}, life {self._number}, step {step}: {reason} [{again}]"
        self._ledger.violations.append(told)


def find_harm(world: World) -> None:
    """Look at everything, as after a step and at the end of a life."""
    check(world)
    prove_all(world)


def draw(world: World, guest: Guest, chance: random.Random, *, calm: bool = False) -> Operation:
    """Draw one of the operations that can be done to a VM now."""
    fitting = [
        each for each in OPERATIONS.values() if (each.while_saved or not guest.saved) and not (calm and each.timed)
    ]
    possible = [each for each in fitting if each.possible(world, guest)]
    return chance.choices(possible, [each.weight for each in possible])[0]


def _describe(guest: Guest) -> str:
    disks = ", ".join(f"{disk.target} {disk.kind.name} {disk.image.size_bytes}" for disk in guest.disks.values())
    return f"{guest.name} with {disks}"
