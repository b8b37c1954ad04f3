"""Whatever happens to state files and to those who keep them: the newest version is not lost, and no older one takes
its place by itself.

Two installations keep one VM in one repository. The state file of the VM on each one's host is written by the guest,
torn, gone, or put back as it was. Captures are answered late, twice, or after those of others; points die between
repository and catalogue; catalogues are lost and made anew from the repository.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from tests.integration.catalog.examples import make_tables
from tests.integration.repository.samples import opener, sample_key
from tests.property.custody.world import VM, Compared, Home, content_of, hash_of
from tests.rig.database import shared_cluster
from tests.unit.repository.signed import ROGUE, SIGNER
from vmkeep.catalog import SAFETY_LABEL, Catalog, CatalogState, MemoryCatalog, SqlCatalog, Trust
from vmkeep.catalog.memory_tables import Tables
from vmkeep.custody.standing import NOTHING, Standing
from vmkeep.errors import VmkeepError
from vmkeep.repository import Repository

names = st.sampled_from(["alpha", "alpha", "beta"])
picks = st.integers(0, 30)


@cache
def _place() -> Path:
    """Return a directory with an empty repository and an empty catalogue; in memory, where a sync costs nothing."""
    memory = Path("/dev/shm")  # noqa: S108 -- mkdtemp makes the name
    place = Path(tempfile.mkdtemp(prefix="vmkeep-custody-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, place)
    Repository.create(str(place / "repository"), sample_key())
    SqlCatalog.open(place / "catalog.sqlite").close()
    return place


class Custody(RuleBasedStateMachine):
    """``alpha`` is asked in a catalogue of each kind, ``beta`` in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.places = ExitStack()
        self.dir = Path(self.places.enter_context(tempfile.TemporaryDirectory(dir=_place())))
        shutil.copytree(_place() / "repository", self.dir / "repository")
        self.written = 0
        self.aside: Tables | None = None
        self.homes: dict[str, Home] = {}

    @initialize()
    def begin(self) -> None:
        for name, key in (("alpha", SIGNER), ("beta", ROGUE)):
            repository = Repository.open(str(self.dir / "repository"), opener(sample_key()))
            catalog = self.catalog() if name == "alpha" else MemoryCatalog()
            self.homes[name] = Home(name, key, catalog, repository, self.dir / name)
            self.homes[name].begin()
            self.homes[name].file = content_of(0)

    def catalog(self) -> Catalog:
        """Return empty catalogues of each kind as one."""
        path = Path(self.places.enter_context(tempfile.TemporaryDirectory(dir=self.dir))) / "catalog.sqlite"
        shutil.copy(_place() / "catalog.sqlite", path)
        opened = [self.places.enter_context(SqlCatalog.open(path)), *self.on_server()]
        return Compared.catalog(MemoryCatalog(), *opened)

    def on_server(self) -> Iterator[Catalog]:
        return iter(())

    def teardown(self) -> None:
        self.places.close()

    # -- what happens to the file ----------------------------------------------------------------------------------

    @rule(name=names)
    def guest_writes(self, name: str) -> None:
        self.written += 1
        self.homes[name].file, self.homes[name].torn = content_of(self.written), False

    @rule(name=names, torn=st.booleans())
    def file_is_torn_or_gone(self, name: str, torn: bool) -> None:
        home = self.homes[name]
        home.torn, home.file = (True, home.file) if torn else (home.torn, None)

    @rule(name=names, pick=picks)
    def file_is_rolled_back(self, name: str, pick: int) -> None:
        self.homes[name].file, self.homes[name].torn = content_of(pick % (self.written + 1)), False

    # -- what is kept ----------------------------------------------------------------------------------------------

    @rule(name=names)
    def capture(self, name: str) -> None:
        with self.kept_by(self.homes[name]) as home:
            home.accept(home.read_alone())

    @rule(name=names)
    def guest_writes_and_is_captured(self, name: str) -> None:
        self.guest_writes(name)
        self.capture(name)

    @rule(name=names)
    def capture_is_not_answered_yet(self, name: str) -> None:
        with self.kept_by(self.homes[name]) as home:
            home.replies.append(home.read_alone())

    @precondition(lambda self: any(home.replies for home in self.homes.values()))
    @rule(pick=picks)
    def capture_is_answered_late_or_again(self, pick: int) -> None:
        waiting = [(home, reply) for home in self.homes.values() for reply in home.replies]
        home, reply = waiting[pick % len(waiting)]
        with self.kept_by(home):
            home.accept(reply)

    @rule(name=names, dies=st.booleans())
    def point(self, name: str, dies: bool) -> None:
        with self.kept_by(self.homes[name]) as home:
            home.recover()
            record = home.commit({})
            if dies:
                home.die(record)
            else:
                home.record(record)

    @rule(name=names, pick=picks)
    def snapshot(self, name: str, pick: int) -> None:
        self.written += 1
        with self.kept_by(self.homes[name]) as home:
            home.recover()
            home.snapshot(self.written, f"s{pick % 2}")

    # -- what somebody means ---------------------------------------------------------------------------------------

    @rule(name=names, pick=picks)
    def restore_in_place(self, name: str, pick: int) -> None:
        """A point goes back over its VM, or a version alone; what lay there is kept in a safety point before."""
        with self.kept_by(self.homes[name]) as home:
            home.recover()
            if home.torn or home.file is None:
                return
            home.record(home.commit({SAFETY_LABEL: "yes"}))
            versions = [state for state in home.catalog.states_of_vm(VM) if not state.conflict]
            chosen = versions[pick % len(versions)]
            home.file = home.repository.state(chosen.id)[1]
            home.catalog.place_states(VM, {"tpm": chosen.sha256})
            holders = [each for each in home.catalog.pins(chosen.id) if home.catalog.point(each) is not None]
            if holders:
                home.catalog.return_to(VM, holders[0])
            assert home.judged().standing is Standing.CURRENT
            assert home.may_start()

    @rule(name=names)
    def what_lies_there_is_accepted(self, name: str) -> None:
        home = self.homes[name]
        if home.torn or home.catalog.vm(VM) is None:
            return
        home.catalog.place_states(VM, {"tpm": NOTHING if home.file is None else hash_of(home.file)})
        assert home.may_start()

    @rule(name=names, pick=picks)
    def point_is_deleted(self, name: str, pick: int) -> None:
        with self.kept_by(self.homes[name]) as home:
            home.recover()
            # One of a host that is not trusted goes without a pin, and so would what only that host holds.
            points = [point for point in home.catalog.points_of_vm(VM) if point.is_vouched_for]
            if points:
                point = points[pick % len(points)]
                home.settle(without=point.id)
                home.repository.delete_point(point.id)
                home.catalog.forget_point(point.id)

    @rule(name=names, pick=picks)
    def snapshot_is_deleted(self, name: str, pick: int) -> None:
        with self.kept_by(self.homes[name]) as home:
            snapshots = home.catalog.snapshots_of_vm(VM)
            if snapshots:
                home.catalog.forget_snapshot(snapshots[pick % len(snapshots)].id)
                home.settle()

    # -- what others made --------------------------------------------------------------------------------------------

    @rule(name=names)
    def catch_up(self, name: str) -> None:
        with self.kept_by(self.homes[name]) as home:
            home.recover()
            home.catch_up()

    @rule(name=names, trust=st.sampled_from([Trust.TRUSTED, Trust.DISTRUSTED]))
    def other_is_trusted_or_not(self, name: str, trust: Trust) -> None:
        home = self.homes[name]
        for key in home.catalog.host_keys():
            if key.trust is not Trust.OWN:
                home.catalog.trust_host(key.fingerprint, trust)

    @rule()
    def catalogue_is_lost(self) -> None:
        """It is made anew from what the repository holds: whatever was accepted and is pinned is found again.

        Whom to trust is decided anew, by people; what only a host that was not trusted before has pinned is known.
        """
        home = self.homes["alpha"]
        before = _newest(home)
        trusted = {key.fingerprint for key in home.catalog.host_keys() if key.trust is Trust.TRUSTED}
        home.catalog = self.catalog()
        home.lost = True
        home.replies.clear()
        home.committed.clear()
        home.begin()
        home.adopt_all()
        for key in trusted & {key.fingerprint for key in home.catalog.host_keys()}:
            home.catalog.trust_host(key, Trust.TRUSTED)
        after = home.catalog.newest_state(VM, "tpm")
        assert before is None or (after is not None and after.generation >= before.generation)

    @rule(back=st.booleans())
    def home_is_put_aside_or_back(self, back: bool) -> None:
        """The catalogue of ``beta`` becomes what it was earlier."""
        home = self.homes["beta"]
        catalog = home.catalog
        assert isinstance(catalog, MemoryCatalog)
        if not back:
            self.aside = catalog._tables  # a transaction makes new ones
        elif self.aside is not None:
            catalog._tables, home.lost = self.aside, True
            home.committed.clear()

    # -- what is promised --------------------------------------------------------------------------------------------

    @contextmanager
    def kept_by(self, home: Home) -> Iterator[Home]:
        """Look at what a home's catalogue has before and after something that may fail as a whole."""
        before, known = _newest(home), home.catalog.states_of_vm(VM)
        doubtful = home.doubtful()  # which content like that says nothing about the VM
        vouched = [each for each in known if not each.conflict and each.id not in doubtful]
        older = {each.sha256 for each in vouched if each != before}
        meant = home.catalog.placed_states(VM).get("tpm")
        knows = home.knows_where
        with suppress(VmkeepError):
            yield home
        after = _newest(home)
        if before is None or after == before:
            return
        assert after is not None, "the newest version is not known any more"
        assert after.generation >= before.generation, "generations fall"
        if after.generation == before.generation:
            assert not _held_before(home, before), "a version that was held gave way to another"
        # What another one keeps that is trusted counts here as it does there.
        told = {each for other in self.homes.values() if other is not home for each in other.repeated}
        if knows and after.id not in {each.id for each in vouched} | told:
            assert after.sha256 not in older - {meant}, "an older version became the newest one by itself"

    @invariant()
    def what_was_kept_later_counts_as_newer(self) -> None:
        for home in self.homes.values():
            own = [state for state in home.catalog.states_of_vm(VM) if not state.conflict and state.id in home.made]
            places = [home.made.index(state.id) for state in own]
            assert places == sorted(places, reverse=True)

    @invariant()
    def list_and_gate_are_of_one_mind(self) -> None:
        for home in self.homes.values():
            standing = home.judged().standing
            assert home.may_start() == (standing not in (Standing.SUPERSEDED, Standing.CONFLICT, Standing.MISSING))

    @invariant()
    def newest_version_can_be_read_and_may_start(self) -> None:
        for home in self.homes.values():
            newest = _newest(home)
            if newest is None:
                continue
            assert hash_of(home.repository.state(newest.id)[1]) == newest.sha256
            file, home.file = home.file, home.repository.state(newest.id)[1]
            assert home.may_start()
            home.file = file


def _newest(home: Home) -> CatalogState | None:
    """Return the newest version that a home's own points and pins, or those of one that it trusts, vouch for."""
    doubtful = home.doubtful()
    known = home.catalog.states_of_vm(VM)
    return next((state for state in known if not state.conflict and state.id not in doubtful), None)


def _held_before(home: Home, state: CatalogState) -> bool:
    return bool(home.catalog.pins(state.id))


class CustodyOnPostgres(Custody):
    def on_server(self) -> Iterator[Catalog]:
        url = self.places.enter_context(shared_cluster().database(make_tables))
        yield self.places.enter_context(SqlCatalog.connect(url))


# -- what was found once -----------------------------------------------------------------------------------------------


@pytest.fixture
def custody() -> Iterator[Custody]:
    made = Custody()
    made.begin()
    yield made
    made.what_was_kept_later_counts_as_newer()
    made.newest_version_can_be_read_and_may_start()
    made.teardown()


def _counts(custody: Custody, name: str, content: int) -> bool:
    """Return whether a content is the newest version of a home."""
    newest = _newest(custody.homes[name])
    return newest is not None and newest.sha256 == hash_of(content_of(content))


def test_two_that_see_each_others_points_and_trust_each_other_late(custody: Custody) -> None:
    """``beta`` trusts nobody for long, so what ``alpha`` has as older is new to it, and counts nowhere else."""
    custody.capture("alpha")
    custody.point("beta", dies=True)
    custody.capture("alpha")
    custody.point("alpha", dies=True)
    custody.guest_writes_and_is_captured("alpha")
    custody.capture("beta")
    custody.other_is_trusted_or_not("alpha", Trust.TRUSTED)
    custody.capture("alpha")
    known = len(custody.homes["alpha"].catalog.states_of_vm(VM))
    custody.capture("beta")
    custody.capture("alpha")
    assert len(custody.homes["alpha"].catalog.states_of_vm(VM)) == known  # neither file has changed
    assert _counts(custody, "alpha", 1)
    assert custody.homes["alpha"].may_start()
    custody.what_lies_there_is_accepted("alpha")
    custody.what_lies_there_is_accepted("beta")
    custody.other_is_trusted_or_not("beta", Trust.TRUSTED)
    custody.point("alpha", dies=True)
    custody.point("alpha", dies=False)
    assert _counts(custody, "alpha", 1)


@pytest.mark.parametrize("trust", [Trust.UNKNOWN, Trust.TRUSTED])
def test_point_of_another_one_makes_no_older_version_count(custody: Custody, trust: Trust) -> None:
    custody.capture("alpha")
    custody.guest_writes_and_is_captured("alpha")
    custody.guest_writes("beta")
    custody.point("beta", dies=False)
    custody.catch_up("alpha")
    custody.other_is_trusted_or_not("alpha", trust)
    custody.file_is_rolled_back("alpha", 0)
    custody.capture("alpha")
    custody.point("alpha", dies=False)
    assert _counts(custody, "alpha", 1 if trust is Trust.UNKNOWN else 2)
    assert not custody.homes["alpha"].may_start()


def test_version_of_one_that_nobody_trusts_can_be_put_in_place_and_is_what_is_meant(custody: Custody) -> None:
    custody.guest_writes_and_is_captured("beta")
    custody.capture("alpha")
    custody.restore_in_place("alpha", 1)
    assert custody.homes["alpha"].judged().standing is Standing.CURRENT
    assert custody.homes["alpha"].may_start()


def test_version_of_one_that_nobody_trusts_makes_no_older_content_count(custody: Custody) -> None:
    custody.capture("alpha")
    custody.guest_writes_and_is_captured("alpha")
    custody.capture("beta")
    custody.catch_up("alpha")
    custody.file_is_rolled_back("alpha", 0)
    custody.point("alpha", dies=False)
    assert _counts(custody, "alpha", 1)
    assert not custody.homes["alpha"].may_start()


def test_what_is_older_where_one_is_trusted_stays_older_there(custody: Custody) -> None:
    custody.guest_writes_and_is_captured("beta")
    custody.capture("alpha")
    custody.guest_writes_and_is_captured("alpha")
    for name in ("alpha", "beta"):
        custody.catch_up(name)
        custody.other_is_trusted_or_not(name, Trust.TRUSTED)
    custody.file_is_rolled_back("beta", 0)
    custody.capture("beta")
    custody.catch_up("alpha")
    assert _counts(custody, "alpha", 2)
    assert _counts(custody, "beta", 2)
    assert not custody.homes["beta"].may_start()


# What fails is made shorter, and not explained: the tracing of all lines takes minutes.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
TestCustody = Custody.TestCase
TestCustody.settings = settings(max_examples=examples(30), stateful_step_count=20, deadline=None, phases=_PHASES)
TestCustodyOnPostgres = pytest.mark.usefixtures("cluster")(CustodyOnPostgres.TestCase)
TestCustodyOnPostgres.settings = settings(
    max_examples=examples(5), stateful_step_count=20, deadline=None, phases=_PHASES
)
