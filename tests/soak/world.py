"""All that a life has: the host, its VMs, the points, and vmkeep's home."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from tests.environment.injector import Injector
from tests.rig import Host
from tests.soak.command import Commands, Outcome
from tests.soak.guest import Guest
from tests.soak.ledger import Ledger
from tests.soak.machine import make_machine, shared_secret
from tests.soak.model import Moment, Points, Violation

_STORE_SIZE = "512m"


@dataclass(slots=True)
class World:
    """``commands`` is vmkeep in a home of this life.

    ``own_store``: the repository is on a file system of its own, so that vmkeep does its work in a child process.
    """

    host: Host
    hosts: Hosts
    commands: Commands
    ledger: Ledger
    own_store: bool
    guests: list[Guest] = field(default_factory=list)
    points: Points = field(default_factory=Points)
    settled_at: int = 0  # how many commands had ended when the points were last compared
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def add_guest(self, chance: random.Random) -> Guest:
        shared_secret(self.host)
        vm, disks = make_machine(self.host, f"vm{len(self.guests) + 1}", chance)
        guest = Guest(self.host, vm, disks)
        guest.start(run=False)  # makes UEFI variables and TPM state
        self.guests.append(guest)
        return guest

    def fresh(self, what: str) -> str:
        """Return a name that was not used in this life."""
        return f"{what}{next(self._numbers)}"

    @property
    def home(self) -> Path:
        return self.commands.vmkeep.home

    @property
    def repository(self) -> Path:
        """Where the repository is, as the host sees it."""
        return (self.host.dir / "store" if self.own_store else self.home) / "repository"

    def small_directory(self, name: str, size: str) -> Path:
        """Return a new directory inside the host on a file system of its own, of which nothing is seen outside."""
        directory = self.host.dir / "work" / self.fresh(name)
        mount_small(self.host, directory, size)
        return directory

    def work(self, name: str) -> Path:
        return self.host.dir / "work" / name

    def points_of(self, guest: Guest) -> dict[str, Moment]:
        return {key: moment for key, moment in self.points.known.items() if moment.vm_uuid == guest.vm.uuid}

    # -- what commands did -------------------------------------------------------------------------------------

    def expect(self, outcome: Outcome, *refusals: str) -> bool:
        """Return whether it was done; raise Violation for an end that is neither that nor one of these codes."""
        if outcome.done:
            return True
        if outcome.code not in refusals:
            raise Violation(f"not done, and {outcome.code} is not to be expected here: {outcome.told()}")
        return False

    def expect_refused(self, outcome: Outcome, *codes: str) -> None:
        """Raise Violation unless it was refused with one of these codes."""
        if outcome.code not in codes:
            raise Violation(f"{outcome.code} in place of {' or '.join(codes)}: {outcome.told()}")

    def keep_point(self, point_id: object, moment: Moment, *, safety: bool = False) -> str:
        """Remember a point that a command says that it made."""
        if not isinstance(point_id, str) or point_id in self.points.known:
            raise Violation(f"no id of a new point: {point_id!r}")
        self.points.known[point_id] = moment
        self.points.safety |= {point_id} if safety else set()
        return point_id[:8]

    def may_have_made(self, moment: Moment) -> None:
        """A command that was killed may have stored this as a point, or not."""
        self.points.pending.append(moment)

    def settle_points(self, listed: Collection[str]) -> list[str]:
        """Compare the points that vmkeep lists with the model; return those that killed commands may have made."""
        lost = set(self.points.known) - set(listed) - self.points.deleting
        if lost:
            raise Violation(f"points are gone: {sorted(lost)}")
        for gone in self.points.deleting - set(listed):
            self.points.known.pop(gone, None)
        self.points.deleting &= set(listed)
        return sorted(set(listed) - set(self.points.known))


class Hosts:
    """The host of the lives of one process, and a second one as soon as something migrates."""

    def __init__(self, started: Mapping[str, Host] = MappingProxyType({})) -> None:
        """``started``: hosts that somebody else ends."""
        self._stack = ExitStack()
        self._hosts = dict(started)
        self._injector: Injector | None = None

    def host(self, name: str) -> Host:
        if name not in self._hosts:
            self._hosts[name] = self._stack.enter_context(Host(name))
        return self._hosts[name]

    def injector(self, host: Host) -> Injector:
        """Return what makes calls of the system fail, built when it is first asked for."""
        if self._injector is None or not self._injector.library.exists():
            directory = host.dir / "injector"
            directory.mkdir(exist_ok=True)
            self._injector = Injector(directory)
        return self._injector

    def close(self) -> None:
        self._stack.close()


@contextmanager
def new_world(hosts: Hosts, ledger: Ledger, *, own_store: bool) -> Iterator[World]:
    """A world without VMs; everything of it is gone afterwards, also when it ended badly."""
    host = hosts.host("alpha")
    host.clear()
    store = host.dir / "store"
    if own_store:
        mount_small(host, store, _STORE_SIZE)
    commands = Commands(host, ledger.count_outcome)
    world = World(host, hosts, commands, ledger, own_store)
    try:
        world.expect(commands.run("init", *(("--repository", world.repository) if own_store else ())))
        # From here on each start asks the gate, which may refuse none but those of `lose_the_state`.
        world.expect(commands.run("hook", "install"))
        yield world
    finally:
        commands.run("hook", "remove")
        commands.close()
        if own_store:
            host.run(["umount", "--lazy", store], check=True)


def mount_small(host: Host, directory: Path, size: str) -> None:
    """Give the host a directory that is a file system of its own, in memory."""
    directory.mkdir(exist_ok=True)
    host.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", directory], check=True)
