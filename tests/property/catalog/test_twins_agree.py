"""The catalogue in memory says and refuses what those in SQL do, whatever was done to both before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.examples import examples
from tests.integration.catalog.examples import WEB, WIN11, example_point, example_state, make_tables, number
from tests.rig.database import shared_cluster
from tests.unit.custody.graves import grave
from vmkeep.catalog import (
    SAFETY_LABEL,
    Catalog,
    CatalogDeletion,
    CatalogPin,
    CatalogPoint,
    CatalogSnapshot,
    CatalogState,
    FoundPin,
    KnownHostKey,
    MemoryCatalog,
    OperationState,
    PassedPoint,
    PointProtection,
    PointRemoval,
    Policy,
    SqlCatalog,
    StateFile,
    Trust,
)
from vmkeep.custody.tombstones import Ending
from vmkeep.errors import VmkeepError

_PLACE = tempfile.TemporaryDirectory(prefix="vmkeep-twins-")  # removed at the end of the process
_EMPTY = Path(_PLACE.name) / "empty.sqlite"
_TIMES = {"seen_at", "since", "started", "updated", "finished", "changed_at"}
NAMES = {WIN11: "win11", WEB: "web"}
KEYS = [f"{digit * 8}{'0' * 24}" for digit in "ab"]
vms = st.sampled_from([WIN11, WEB])
points = st.sampled_from(["p1", "p2", "p3", "p4", "p5"])
snapshots = st.sampled_from(["before", "after"])
states = st.builds(
    lambda vm, kind, generation, name: example_state(f"{vm}{kind}{generation}{name}", generation, vm=vm, kind=kind),
    vms,
    st.sampled_from(["tpm", "nvram"]),
    st.integers(0, 4),
    st.sampled_from("xy"),
)


@st.composite
def made_points(draw: st.DrawFn) -> CatalogPoint:
    vm = draw(vms)
    point = example_point(
        f"{vm}{draw(points)}",
        vm=vm,
        vm_name=draw(st.sampled_from([NAMES[vm], "renamed"])),
        parent=draw(st.none() | points.map(lambda name: number(f"{vm}{name}"))),
        minute=draw(st.integers(0, 5)),
        labels=draw(st.sampled_from([{}, {SAFETY_LABEL: "x"}])),
        sequence=draw(st.none() | st.integers(1, 6)),
        host=draw(st.sampled_from(["alpha", "beta"])),
    )
    return replace(point, signed_by=draw(st.sampled_from([None, "", *KEYS])), digest=draw(st.sampled_from([None, "d"])))


def _plain(value: Any) -> Any:
    """Return a value without the times at which it was written, which two catalogues cannot have in common."""
    if is_dataclass(value) and not isinstance(value, type):
        told = {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.name not in _TIMES}
        return told | {name: getattr(value, name) is None for name in ("finished",) if hasattr(value, name)}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value


def _outcome(ask: Callable[[Catalog], Any], catalog: Catalog) -> Any:
    try:
        return _plain(ask(catalog))
    except VmkeepError as error:
        return type(error)


class Twins(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._places = ExitStack()
        self.sql, self.memory = self._opened(), MemoryCatalog()

    def _opened(self) -> SqlCatalog:
        if not _EMPTY.exists():
            SqlCatalog.open(_EMPTY).close()
        path = Path(self._places.enter_context(tempfile.TemporaryDirectory(dir=_PLACE.name))) / "catalog.sqlite"
        path.write_bytes(_EMPTY.read_bytes())
        return SqlCatalog.open(path)

    def teardown(self) -> None:
        self.sql.close()
        self._places.close()

    def agree(self, ask: Callable[[Catalog], Any]) -> Any:
        one, other = _outcome(ask, self.sql), _outcome(ask, self.memory)
        assert one == other
        return one

    @rule(point=made_points(), held=st.lists(states, max_size=2))
    def record_point(self, point: CatalogPoint, held: list[CatalogState]) -> None:
        self.agree(lambda catalog: catalog.record_point(point, held))

    @rule(found=st.lists(st.tuples(made_points(), st.lists(states, max_size=2)), max_size=3))
    def adopt(self, found: list[tuple[CatalogPoint, list[CatalogState]]]) -> None:
        found = [(point, [state for state in held if state.vm_uuid == point.vm_uuid]) for point, held in found]

        def ask(catalog: Catalog) -> tuple[int, int, int, int]:
            done = catalog.adopt(found)
            return done.points, done.vms, done.states, len(done.conflicts)

        self.agree(ask)

    @rule(vm=vms, name=points)
    def forget_point(self, vm: str, name: str) -> None:
        self.agree(lambda catalog: catalog.forget_point(number(f"{vm}{name}")))

    @rule(vm=vms, name=points, digest=st.sampled_from("de"))
    def note_digest(self, vm: str, name: str, digest: str) -> None:
        self.agree(lambda catalog: catalog.note_digest(number(f"{vm}{name}"), digest))

    @rule(vm=vms, host=st.sampled_from([None, "h1", "h2"]), seen=st.booleans())
    def see_vm(self, vm: str, host: str | None, seen: bool) -> None:
        if seen and host is not None:
            self.agree(lambda catalog: catalog.see_host(host, host))
        self.agree(lambda catalog: catalog.see_vm(vm.upper(), NAMES[vm], host))

    @rule(vm=vms, name=st.none() | points, lost=st.booleans())
    def go_to(self, vm: str, name: str | None, lost: bool) -> None:
        point_id = None if name is None else number(f"{vm}{name}")
        self.agree(lambda catalog: catalog.lose_track(vm) if lost else catalog.return_to(vm, point_id))

    @rule(held=st.lists(states, max_size=2))
    def accept_states(self, held: list[CatalogState]) -> None:
        self.agree(lambda catalog: catalog.accept_states(held))

    @rule(held=st.lists(states, max_size=2))
    def keep_late(self, held: list[CatalogState]) -> None:
        self.agree(lambda catalog: catalog.keep_late(held))

    @rule(vm=vms, kind=st.sampled_from(["tpm", "nvram"]), content=st.none() | st.sampled_from(["", "ab"]))
    def place_states(self, vm: str, kind: str, content: str | None) -> None:
        self.agree(lambda catalog: catalog.place_states(vm, {kind: content}))

    @rule(vm=vms, name=snapshots, made=st.sampled_from("123"), held=st.lists(states, max_size=2))
    def record_snapshot(self, vm: str, name: str, made: str, held: list[CatalogState]) -> None:
        snapshot = CatalogSnapshot(number(f"{vm}{name}{made}"), vm, name, 1, None, f"202{made}", tuple(held))
        self.agree(lambda catalog: catalog.record_snapshot(snapshot))

    @rule(vm=vms, name=snapshots, new_name=snapshots)
    def rename_snapshot(self, vm: str, name: str, new_name: str) -> None:
        self.agree(lambda catalog: catalog.rename_snapshot(vm, name, new_name))

    @rule(vm=vms, name=snapshots, made=st.sampled_from("123"))
    def forget_snapshot(self, vm: str, name: str, made: str) -> None:
        self.agree(lambda catalog: catalog.forget_snapshot(number(f"{vm}{name}{made}")))

    @rule(
        vm=vms,
        name=st.sampled_from("123"),
        found=st.lists(states, max_size=2),
        key=st.none() | st.sampled_from(KEYS),
        snapshot=st.none() | snapshots,
    )
    def adopt_pin(self, vm: str, name: str, found: list[CatalogState], key: str | None, snapshot: str | None) -> None:
        kept = tuple({state.id: state for state in found if state.vm_uuid == vm}.values())
        created = f"2026-03-02T10:0{name}:00.000000+00:00"
        pin = CatalogPin(number(f"{vm}pin{name}"), vm, NAMES[vm], "alpha", created, "capture", (), None, key)
        kept_with = None
        if snapshot is not None:
            kept_with = CatalogSnapshot(number(f"{vm}{snapshot}1"), vm, snapshot, 7, None, created)
        self.agree(lambda catalog: len(catalog.adopt_pins([FoundPin(pin, kept, kept_with)])))

    @rule(vm=vms, name=st.sampled_from("123"))
    def forget_pin(self, vm: str, name: str) -> None:
        self.agree(lambda catalog: catalog.forget_pin(number(f"{vm}pin{name}")))

    @rule(vm=vms, until=st.sampled_from("12"))
    def forget_vm(self, vm: str, until: str) -> None:
        self.agree(lambda catalog: catalog.forget_vm(vm, f"203{until}-01-01T00:00:00.000000+00:00"))

    @rule(vm=vms, name=st.sampled_from("123"))
    def pass_pin(self, vm: str, name: str) -> None:
        self.agree(lambda catalog: catalog.pass_pins({number(f"{vm}pin{name}"): vm}))

    @rule(vm=vms, kinds=st.sets(st.sampled_from(["tpm", "nvram"])), sha=st.sampled_from([None, "aa"]))
    def note_files(self, vm: str, kinds: set[Literal["tpm", "nvram"]], sha: str | None) -> None:
        found = [StateFile(vm, "h", kind, "/x", sha, 7, "current") for kind in sorted(kinds)]
        self.agree(lambda catalog: catalog.note_state_files("h", {vm: found}))

    @rule()
    def see_host(self) -> None:
        self.agree(lambda catalog: catalog.see_host("h", "alpha"))

    @rule(vm=vms, code=st.sampled_from(["state-torn", "file-missing"]), clear=st.booleans())
    def alert(self, vm: str, code: str, clear: bool) -> None:
        self.agree(lambda catalog: catalog.clear_alerts(vm) if clear else catalog.note_alert(vm, code, "torn"))

    @rule(vm=vms, name=st.sampled_from("12"), of=st.booleans(), graves=st.sets(st.sampled_from("ab")))
    def record_deletion(self, vm: str, name: str, of: bool, graves: set[str]) -> None:
        deletion = CatalogDeletion(
            number(f"{name}{of}"), number(f"{name}False") if of else None, "removal", vm, f"202{name}", {"a": [1]}
        )
        left = [grave(id=number(f"{each}{name}"), origin=name, vm_uuid=vm) for each in sorted(graves)]
        self.agree(lambda catalog: catalog.record_deletion(deletion, left))

    @rule(name=st.sampled_from("12"), of=st.booleans(), key=st.none() | st.sampled_from(KEYS), stored=st.booleans())
    def end_deletion(self, name: str, of: bool, key: str | None, stored: bool) -> None:
        def ask(catalog: Catalog) -> None:
            if stored:
                catalog.note_deletion_stored(number(f"{name}{of}"), key)
            else:
                catalog.withdraw_deletion(number(f"{name}{of}"), name)

        self.agree(ask)

    @rule(
        vm=vms,
        name=points,
        key=st.none() | st.sampled_from(KEYS),
        trust=st.sampled_from(Trust),
        grace=st.integers(0, 2),
        ended=st.booleans(),
    )
    def hide(self, vm: str, name: str, key: str | None, trust: Trust, grace: int, ended: bool) -> None:
        point = number(f"{vm}{name}")
        removal = PointRemoval(point, "alpha", "2026", f"202{grace}", grace, "", vm, "x", None, key, trust)
        self.agree(lambda catalog: catalog.end_removal(point) if ended else catalog.hide_point(removal))

    @rule(name=points, until=st.none() | st.just("2027"), ended=st.booleans())
    def protect(self, name: str, until: str | None, ended: bool) -> None:
        protection = PointProtection(number(name), "alpha", "2026", "2026", "why", until, None)
        self.agree(lambda catalog: catalog.end_protection(number(name)) if ended else catalog.protect_point(protection))

    @rule(harmed=st.sets(points), sound=st.sets(points))
    def verify(self, harmed: set[str], sound: set[str]) -> None:
        self.agree(lambda catalog: catalog.note_soundness(harmed, sound))

    @rule(subject=st.sampled_from(["all", "vm:x", "label:a=b"]), last=st.integers(1, 2), dropped=st.booleans())
    def set_policy(self, subject: str, last: int, dropped: bool) -> None:
        policy = Policy(subject, f"last={last}", last, "UTC", last)
        self.agree(lambda catalog: catalog.drop_policy(subject) if dropped else catalog.set_policy(policy))

    @rule(what=st.sampled_from(["failed", "settled", "waived"]), chosen=st.integers(0, 3), stale=st.booleans())
    def move_tombstone(self, what: str, chosen: int, stale: bool) -> None:
        found = self.sql.tombstones()[chosen : chosen + 1]
        if not found or not found[0].is_open:
            return
        known = found[0]
        match what:
            case "failed":
                moved = known.failed("2026", "x")
            case "settled":
                moved = known.settled("2026", Ending.GONE)
            case _:
                moved = known.waived("2026", "me", "x")
        before = known.failed("2026", "y") if stale else known
        self.agree(lambda catalog: catalog.move_tombstone(before, moved))

    @rule(key=st.sampled_from(KEYS), trust=st.sampled_from(Trust), machine=st.sampled_from(["", "m"]))
    def see_key(self, key: str, trust: Trust, machine: str) -> None:
        met = KnownHostKey(key, "00", "installation", "alpha", trust, machine=machine)
        self.agree(lambda catalog: catalog.see_host_key(met))

    @rule(text=st.sampled_from([*(key[:9] for key in KEYS), "aaaa", "00000000"]), trust=st.sampled_from(Trust))
    def trust_host(self, text: str, trust: Trust) -> None:
        self.agree(lambda catalog: catalog.trust_host(text, trust))

    @rule(key=st.sampled_from(KEYS), retired=st.booleans())
    def note_copy(self, key: str, retired: bool) -> None:
        self.agree(lambda catalog: catalog.retire_own_key(key) if retired else catalog.note_copy(key, "beta"))

    @rule(name=points)
    def pass_by(self, name: str) -> None:
        self.agree(lambda catalog: catalog.pass_points([PassedPoint(number(f"{WEB}{name}"), WEB, "web")]))

    @rule(name=st.sampled_from("12"), owner=st.sampled_from(["me", "you"]))
    def begin(self, name: str, owner: str) -> None:
        self.agree(lambda catalog: catalog.begin_operation(name, "take", "win11", owner, {"vm": ["a", 1]}))

    @rule(
        name=st.sampled_from("12"),
        owner=st.sampled_from(["me", "you"]),
        to=st.sampled_from(OperationState),
        error=st.sampled_from([None, {"code": "no-space"}]),
    )
    def move(self, name: str, owner: str, to: OperationState, error: dict[str, Any] | None) -> None:
        self.agree(lambda catalog: catalog.move_operation(name, owner, to, error))

    @rule(name=st.sampled_from("12"), what=st.sampled_from(["cancel", "take over", "progress"]))
    def go_on(self, name: str, what: str) -> None:
        def ask(catalog: Catalog) -> bool:
            if what == "cancel":
                return catalog.request_cancel(name)
            if what == "take over":
                return catalog.take_over_operation(name, "me", "you")
            return catalog.report_progress(name, "copy", 1, 2)

        self.agree(ask)

    @rule(
        text=st.sampled_from(
            [
                *("win11@latest", "web@latest", "renamed@latest", f"{WEB}@latest", "nobody@latest", "win11", "", "0"),
                *("win11@2026-03-01T10:02Z", "renamed@2026-03-01T10:03Z", "win11@2026-02-01", "win11@soon"),
                *(number(f"{WIN11}p1"), number(f"{WEB}p2")[:5], number(f"{WIN11}p3")[:4].upper()),
            ]
        )
    )
    def find(self, text: str) -> None:
        found = self.agree(lambda catalog: catalog.find_point(text))
        if not isinstance(found, dict):
            return
        point = self.sql.find_point(text)
        self.agree(lambda catalog: catalog.against_the_clock(text, point))
        self.agree(lambda catalog: catalog.newer_distrusted(point))
        self.agree(lambda catalog: catalog.newer_safety_points(point))

    @invariant()
    def everything_is_told_alike(self) -> None:
        for ask in (
            *(Catalog.points, Catalog.summaries, Catalog.point_ids, Catalog.makers, Catalog.points_of_host_keys),
            *(Catalog.vms, Catalog.passed_points, Catalog.pin_ids, Catalog.passed_pins),
            *(Catalog.deletions, Catalog.unstored_deletions, Catalog.tombstones, Catalog.open_tombstones),
            *(Catalog.removals, Catalog.protections, Catalog.policies, Catalog.is_anything_marked),
        ):
            self.agree(lambda catalog, name=ask.__name__: getattr(catalog, name)())  # type: ignore[misc]
        # Of two that were written in one microsecond the order is nobody's promise.
        self.agree(lambda catalog: {key.fingerprint: _plain(key) for key in catalog.host_keys()})
        self.agree(lambda catalog: [(alert.vm_uuid, alert.code, alert.times) for alert in catalog.alerts()])
        self.agree(lambda catalog: {operation.id: _plain(operation) for operation in catalog.operations()})
        self.agree(lambda catalog: {operation.id for operation in catalog.unfinished_operations()})
        self.agree(lambda catalog: catalog.host_names())
        self.agree(lambda catalog: sorted(catalog.harmed_points()))
        for vm in NAMES:
            self.agree(lambda catalog, vm=vm: [replace(f, since="", seen_at="") for f in catalog.state_files(vm)])  # type: ignore[misc]
            for name in (
                *("points", "points_of_vm", "outlines_of_vm", "next_sequence", "newest_made", "states_of_vm", "vm"),
                *("snapshots_of_vm", "vms_named", "placed_states", "holders", "pins_of_vm", "deletions", "removals"),
            ):
                self.agree(lambda catalog, name=name, vm=vm: getattr(catalog, name)(vm))  # type: ignore[misc]
            self.agree(lambda catalog, vm=vm: catalog.newest_state(vm, "tpm"))  # type: ignore[misc]
            for state in self.sql.states_of_vm(vm):
                self.agree(lambda catalog, state=state: catalog.pins(state.id))  # type: ignore[misc]


class TwinsOnPostgres(Twins):
    def _opened(self) -> SqlCatalog:
        return SqlCatalog.connect(self._places.enter_context(shared_cluster().database(make_tables)))


TestTwinsAgree = Twins.TestCase
TestTwinsAgree.settings = settings(max_examples=examples(15), stateful_step_count=20, deadline=None)

TestTwinsAgreeOnPostgres = pytest.mark.usefixtures("cluster")(TwinsOnPostgres.TestCase)
TestTwinsAgreeOnPostgres.settings = settings(max_examples=examples(4), stateful_step_count=20, deadline=None)
