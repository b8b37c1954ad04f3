"""Whatever hosts do that share a catalogue, and whatever their clocks say: no VM is two hosts' at once, and what a
former owner captured never becomes the newest version.

Each host has a clock that begins anew with its boot and runs a little fast or slow; answers of the catalogue arrive
late. Only what a person says of a host that is fenced is believed, and then it is so.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.examples import examples
from tests.integration.catalog.examples import WIN11, example_state, make_tables
from tests.property.custody.test_custody_machine import _place
from tests.property.custody.world import Compared
from tests.rig.database import shared_cluster
from vmkeep.catalog import Catalog, CatalogState, MemoryCatalog, SqlCatalog
from vmkeep.custody.leases import Lease, Tenure, first_lease, tenure_of
from vmkeep.errors import VmkeepError

_BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
names = st.sampled_from(["alpha", "beta"])
waits = st.sampled_from([0, 1, 30])


@dataclass
class Host:
    """``rate`` is how fast its clock runs; ``read`` what it has captured and not told the catalogue yet."""

    uuid: str
    rate: float
    booted: float = 0.0
    boots: int = 1
    tenure: Tenure | None = None
    lease: Lease | None = None
    read: CatalogState | None = None

    def clock(self, now: float) -> float:
        return (now - self.booted) * self.rate

    def runs(self, now: float) -> bool:
        """Return whether it runs the VM: as long as it holds its lease, by what it knows itself."""
        return self.tenure is not None and self.tenure.holds(f"boot-{self.boots}", self.clock(now))


class Leases(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.places = ExitStack()
        self.now, self.captured = 0.0, 0
        self.under: dict[str, int | None] = {}

    @initialize(rates=st.lists(st.sampled_from([0.85, 1.0, 1.2]), min_size=2, max_size=2))
    def begin(self, rates: list[float]) -> None:
        path = Path(self.places.enter_context(tempfile.TemporaryDirectory(dir=_place()))) / "catalog.sqlite"
        shutil.copy(_place() / "catalog.sqlite", path)
        self.catalog = Compared.catalog(
            MemoryCatalog(), self.places.enter_context(SqlCatalog.open(path)), *self.on_server()
        )
        self.hosts = {
            name: Host(f"00000000-0000-4000-8000-00000000000{place}", rate)
            for place, (name, rate) in enumerate(zip(("alpha", "beta"), rates, strict=True))
        }
        for name, host in self.hosts.items():
            self.catalog.see_host(host.uuid, name)
        self.catalog.see_vm(WIN11, "win11")

    def on_server(self) -> tuple[Catalog, ...]:
        return ()

    def teardown(self) -> None:
        self.places.close()

    def store_time(self) -> str:
        return (_BEGIN + timedelta(seconds=self.now)).isoformat(timespec="microseconds")

    @rule(name=names, slept=st.sampled_from([0, 100, 190, 241]), before=waits, after=waits)
    def take_or_renew(self, name: str, slept: int, before: int, after: int) -> None:
        """Its question takes a while to arrive, and so does the answer."""
        self.now += slept
        host = self.hosts[name]
        asked = host.clock(self.now)
        self.now += before
        known, at = self.catalog.lease(WIN11), self.store_time()
        with suppress(VmkeepError):
            to = first_lease(WIN11, host.uuid, at) if known is None else known.taken(host.uuid, at)
            self.catalog.move_lease(known, to)
            self.now += after
            host.tenure, host.lease = tenure_of(to, f"boot-{host.boots}", asked), to

    @rule(name=names)
    def change_what_was_known_once(self, name: str) -> None:
        """One who slept goes on with the lease as it knew it: nothing comes of it where it stands otherwise."""
        known = self.hosts[name].lease
        if known is not None:
            to = replace(known, serial=known.serial + 1)
            if known == self.catalog.lease(WIN11):
                return
            with pytest.raises(VmkeepError):
                self.catalog.move_lease(known, to)

    @rule(name=names)
    def give_back(self, name: str) -> None:
        host = self.hosts[name]
        known = self.catalog.lease(WIN11)
        if known is not None:
            host.tenure = None  # the VM is off first
            with suppress(VmkeepError):
                self.catalog.move_lease(known, known.given_back(host.uuid))

    @rule(name=names)
    def host_is_booted(self, name: str) -> None:
        host = self.hosts[name]
        host.booted, host.boots = self.now, host.boots + 1

    @rule()
    def owner_is_fenced(self) -> None:
        known = self.catalog.lease(WIN11)
        if known is None:
            return
        with suppress(VmkeepError):
            self.catalog.move_lease(known, known.fenced("root", "switched off"))
            for host in self.hosts.values():
                if host.uuid == known.host_uuid:
                    host.tenure = None

    @rule(name=names)
    def capture(self, name: str) -> None:
        """Read under the lease that it holds or held; it is told to the catalogue later."""
        host, newest = self.hosts[name], self.catalog.newest_state(WIN11, "tpm")
        self.captured += 1
        state = example_state(f"capture {self.captured}", 1 if newest is None else newest.generation + 1)
        host.read = replace(state, epoch=None if host.lease is None else host.lease.epoch)

    @rule(name=names)
    def capture_arrives(self, name: str) -> None:
        host = self.hosts[name]
        if host.read is None:
            return
        lease = self.catalog.lease(WIN11)
        with suppress(VmkeepError):
            self.catalog.accept_states([host.read])
            counts = lease is None or host.read.epoch == lease.epoch
            kept = next(each for each in self.catalog.states_of_vm(WIN11) if each.id == host.read.id)
            assert kept.conflict is not counts or host.read.id in self.under
            self.under.setdefault(host.read.id, host.read.epoch)

    @invariant()
    def vm_is_one_hosts_at_most(self) -> None:
        if hasattr(self, "hosts"):
            assert sum(host.runs(self.now) for host in self.hosts.values()) <= 1

    @invariant()
    def owner_of_the_newest_version_is_no_former_one(self) -> None:
        if hasattr(self, "hosts"):
            accepted = [each for each in self.catalog.states_of_vm(WIN11) if not each.conflict]
            epochs = [self.under.get(each.id) or 0 for each in reversed(accepted)]
            assert epochs == sorted(epochs)


class LeasesOnPostgres(Leases):
    def on_server(self) -> tuple[Catalog, ...]:
        url = self.places.enter_context(shared_cluster().database(make_tables))
        return (self.places.enter_context(SqlCatalog.connect(url)),)


@pytest.mark.parametrize("slept", [179, 190, 211, 239, 240])
def test_host_with_a_slow_clock_has_stopped_before_another_one_may_take_its_vm(slept: int) -> None:
    leases = Leases()
    leases.begin([0.85, 1.2])
    leases.take_or_renew("alpha", 0, 0, 1)
    leases.take_or_renew("beta", slept, 0, 0)
    leases.vm_is_one_hosts_at_most()
    assert leases.hosts["beta"].runs(leases.now) is (slept >= 239)  # the answer to alpha took a second
    leases.teardown()


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=examples(25), stateful_step_count=20, deadline=None)
TestLeasesOnPostgres = pytest.mark.usefixtures("cluster")(LeasesOnPostgres.TestCase)
TestLeasesOnPostgres.settings = settings(max_examples=examples(2), stateful_step_count=20, deadline=None)
