"""`@latest` is what was made last, whatever the clocks said, who made it, and how old the home is that is asked."""

from __future__ import annotations

import shutil
import tempfile
from datetime import datetime
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.examples import examples
from vmkeep.catalog import SqlCatalog
from vmkeep.errors import ObjectMissing, PointNotFound
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.installation import catalog_point, catalog_states
from vmkeep.repository import PinRecord, PointRecord, StateRef
from vmkeep.repository.marks import Mark

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
HOMES = ("alpha", "beta")
homes = st.sampled_from(HOMES)
_PLACE = tempfile.TemporaryDirectory(prefix="vmkeep-order-")  # removed at the end of the process
_EMPTY = Path(_PLACE.name) / "empty.sqlite"


class Pinless:
    """The pins of a repository that has none."""

    def ids(self) -> list[str]:
        return []

    def get(self, pin_id: str) -> PinRecord:
        raise ObjectMissing(pin_id)


class Markless:
    def stored(self) -> dict[str, datetime]:
        return {}

    def get(self, point_id: str) -> Mark:
        raise ObjectMissing(point_id)


class Stored:
    """What of a repository is asked."""

    def __init__(self) -> None:
        self.points: dict[str, PointRecord] = {}

    @property
    def pins(self) -> Pinless:
        return Pinless()

    def marked(self) -> frozenset[str]:
        return frozenset()

    @property
    def removals(self) -> Markless:
        return Markless()

    @property
    def protections(self) -> Markless:
        return Markless()

    def point_ids(self) -> list[str]:
        return sorted(self.points)

    def point(self, point_id: str) -> PointRecord:
        if point_id not in self.points:
            raise PointNotFound(point_id)
        return self.points[point_id]


class Homes(RuleBasedStateMachine):
    """Two installations keep one VM in one repository, one after the other; either may be put back as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.stored = Stored()
        self.dir = Path(tempfile.mkdtemp(dir=_EMPTY.parent))
        self.made: list[str] = []
        self.drawn = 0

    @initialize()
    def begin(self) -> None:
        if not _EMPTY.exists():
            SqlCatalog.open(_EMPTY).close()
        for home in HOMES:
            shutil.copy(_EMPTY, self.file(home))
            shutil.copy(_EMPTY, self.file(f"{home}-aside"))

    def file(self, home: str) -> Path:
        return self.dir / f"{home}.sqlite"

    @rule(home=homes, clock=st.integers(0, 59), numbered=st.booleans())
    def make(self, home: str, clock: int, numbered: bool) -> None:
        """Take a point as the flow does. An older release draws no number, and goes on with what was made last."""
        self.drawn += 1
        with SqlCatalog.open(self.file(home)) as catalog:
            catch_up(catalog, self.stored, lambda point: point.vm_uuid == VM)
            newest = catalog.newest_state(VM, "tpm")
            generation = 1 if newest is None else newest.generation + 1
            state = StateRef("tpm", f"{self.drawn:032x}", generation, "0" * 64, 1, "f")
            record = PointRecord(
                id=f"{(self.drawn * 7919) % 65536:032x}",
                vm_uuid=VM,
                vm_name="win11",
                kind="full",
                parent=self.made[-1] if self.made else None,
                created=f"2026-03-01T10:{clock:02}:00.000000+00:00",
                host=home,
                checkpoint=None,
                pause_ms=1.0,
                labels={},
                disks=(),
                excluded=(),
                states=(state,),
                definition="",
                sequence=catalog.next_sequence(VM) if numbered else None,
            )
            self.stored.points[record.id] = record
            catalog.record_point(catalog_point(record), catalog_states(record))
        self.made.append(record.id)

    @rule()
    def delete_the_last(self) -> None:
        if len(self.made) > 1:
            gone = self.made.pop()
            del self.stored.points[gone]
            for each in (*HOMES, *(f"{home}-aside" for home in HOMES)):
                with SqlCatalog.open(self.file(each)) as catalog:
                    catalog.forget_point(gone)

    @rule(home=homes)
    def put_aside(self, home: str) -> None:
        shutil.copy(self.file(home), self.file(f"{home}-aside"))

    @rule(home=homes)
    def put_back(self, home: str) -> None:
        shutil.copy(self.file(f"{home}-aside"), self.file(home))

    @rule(home=homes)
    def adopt(self, home: str) -> None:
        with SqlCatalog.open(self.file(home)) as catalog:
            records = self.stored.points.values()
            found = [(catalog_point(record), catalog_states(record)) for record in records]
            assert catalog.adopt(found).conflicts == ()

    @invariant()
    def latest_is_the_last_made_in_every_home(self) -> None:
        if not self.made:
            return
        for home in HOMES:
            copy = self.file("asked")
            shutil.copy(self.file(home), copy)
            with SqlCatalog.open(copy) as catalog:
                catch_up(catalog, self.stored, lambda point: point.vm_uuid == VM)
                assert catalog.find_point("win11@latest").id == self.made[-1]
                assert [point.id for point in catalog.points("win11")] == self.made

    def teardown(self) -> None:
        shutil.rmtree(self.dir)


TestHomes = Homes.TestCase
TestHomes.settings = settings(max_examples=examples(10), stateful_step_count=12, deadline=None)
