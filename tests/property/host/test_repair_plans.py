"""Whatever a VM holds: a repair touches nothing of others, takes no base from a disk, and ends, also when it is killed.

A VM is played by a model that does what libvirt and qemu-img do with each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.host.checkpoints.health import Surveyed, next_bases
from vmkeep.host.checkup.checkpoints import checkpoint_findings
from vmkeep.host.tasks.checkup import MendCheckpoint
from vmkeep.moments import Checkpoint, CheckpointDisk, CheckpointType
from vmkeep.planning import PlannableDisk
from vmkeep.planning.bitmaps import Bitmaps
from vmkeep.planning.checkpoint_health import CheckpointFacts, Health, judge_checkpoints
from vmkeep.planning.checkpoint_repair import (
    Delete,
    DropBitmap,
    Forget,
    Hang,
    ListAgain,
    Narrow,
    RemoveBitmap,
    RepairPlan,
    RepairStep,
    plan_repair,
)
from vmkeep.planning.images import ImageBitmap, ImageLayer
from vmkeep.planning.lineage import Lineage
from vmkeep.planning.model import KnownDisk, KnownPoint

OURS = "vmkeep-0123abcd-"
TARGETS = ("vda", "vdb")
POINTS = ("p3", "p2", "p1")  # the newest first; each descends from the one before
NAMES = (*(OURS + point for point in POINTS), OURS + "gone", "theirs")
SIZE = 1 << 20


@dataclass(slots=True)
class Model:
    """A VM: its listed checkpoints with the disks of each, its images, and what QEMU holds for sound."""

    running: bool
    listed: dict[str, frozenset[str]]
    parents: dict[str, str | None]
    images: dict[str, list[dict[str, ImageBitmap]]]  # by disk, the top one first
    in_qemu: dict[str, set[str]]  # by name, the disks whose bitmap QEMU has and holds for sound
    shared: frozenset[str]
    refused_bitmaps: set[tuple[str, str]] = field(default_factory=set)

    def facts(self) -> CheckpointFacts:
        chains = {
            target: tuple(
                ImageLayer(_path(target, depth), "qcow2", SIZE, tuple(held.values()), False, None, None)
                for depth, held in enumerate(layers)
            )
            for target, layers in self.images.items()
        }
        valid = {name: dict.fromkeys(disks & self.in_qemu.get(name, set()), 0) for name, disks in self.listed.items()}
        disks = tuple(KnownDisk(target, _path(target, 0), SIZE, "qcow2") for target in TARGETS)
        points = [
            KnownPoint(point, disks, f"2026-01-0{number}T00:00:00Z", parent)
            for point, parent, number in (("p3", "p2", 3), ("p2", "p1", 2), ("p1", None, 1))
        ]
        lineage = Lineage.of(OURS, points)
        facts = CheckpointFacts(
            prefix=OURS,
            points=lineage.points,
            listed={
                name: Checkpoint(
                    name=name,
                    parent_name=self.parents[name],
                    creation_time=lineage.creation_time(name) if name in lineage.points else 5,
                    disks=tuple(
                        CheckpointDisk(t, CheckpointType.BITMAP if t in disks else CheckpointType.NO) for t in TARGETS
                    ),
                )
                for name, disks in self.listed.items()
            },
            bitmaps=Bitmaps(chains=chains, valid_bytes=valid if self.running else None),
            shared=dict.fromkeys(self.shared, "other"),
        )
        plannable = [PlannableDisk(target=t, source=_path(t, 0), format="qcow2", size_bytes=SIZE) for t in TARGETS]
        return replace(
            facts,
            bases=next_bases(
                facts, plannable, vm="guest", killed=False, refused_bitmaps=frozenset(self.refused_bitmaps)
            ),
        )

    def plan(self) -> RepairPlan:
        facts = self.facts()
        return plan_repair(facts, judge_checkpoints(facts), refused_bitmaps=frozenset(self.refused_bitmaps))

    def take(self, step: RepairStep) -> None:  # noqa: C901  one arm a step, and nothing else
        match step:
            case ListAgain(name, targets, parents, _):
                assert name not in self.listed
                parent = next((above for above in parents if above in self.listed), None)
                proven = set(targets) & self.in_qemu.get(name, set()) if self.running else set(targets)
                self.refused_bitmaps |= {(name, target) for target in set(targets) - proven}
                if proven:
                    self.listed[name], self.parents[name] = frozenset(proven), parent
            case Narrow(name, keep, _, drop):
                self.listed[name] = frozenset(keep)
                for target in drop:
                    self._drop(name, target)
            case Delete(name):
                assert self.running
                for target in self.listed[name]:
                    self._drop(name, target)
                self._forget(name)
            case Forget(name):
                self._forget(name)
            case DropBitmap(name, targets):
                assert self.running
                assert name not in self.listed
                for target in targets:
                    self._drop(name, target)
            case RemoveBitmap(name, target, image):
                assert not self.running
                assert name not in self.listed
                for depth, held in enumerate(self.images[target]):
                    if _path(target, depth) == image:
                        held.pop(name, None)
            case Hang(name, parent) if parent in self.listed:
                self.parents[name] = parent

    def _drop(self, name: str, target: str) -> None:
        for held in self.images[target]:
            held.pop(name, None)
        self.in_qemu.get(name, set()).discard(target)

    def _forget(self, name: str) -> None:
        del self.listed[name]
        above = self.parents.pop(name)
        self.parents = {each: above if parent == name else parent for each, parent in self.parents.items()}

    def sound_bases(self) -> Mapping[str, str]:
        """Return what each disk's next point would be read against without any repair: what libvirt proves."""
        facts = self.facts()
        known = facts.bases.items()
        if not self.running:
            return dict(known)
        return {target: name for target, name in known if target in self.in_qemu.get(name, set())}

    def of(self, name: str) -> tuple[object, ...]:
        """Return all there is of a name."""
        held = [[layer.get(name) for layer in layers] for layers in self.images.values()]
        return name in self.listed, self.listed.get(name), held, frozenset(self.in_qemu.get(name, set()))

    def in_shared(self) -> list[set[str]]:
        return [
            set(held)
            for target, layers in self.images.items()
            for depth, held in enumerate(layers)
            if _path(target, depth) in self.shared
        ]


def _path(target: str, depth: int) -> str:
    return f"/{target}.{depth}"


@st.composite
def models(draw: st.DrawFn) -> Model:
    def images() -> list[dict[str, ImageBitmap]]:
        layers = []
        for _ in range(draw(st.integers(1, 2))):
            names = draw(st.sets(st.sampled_from(NAMES), max_size=3))
            flags = [(name, draw(st.booleans()), draw(st.booleans())) for name in sorted(names)]
            layers.append({name: ImageBitmap(name, 65536, in_use, rec) for name, in_use, rec in flags})
        return layers

    listed = draw(st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(TARGETS), min_size=1)))
    held = {target: images() for target in TARGETS}
    in_qemu: dict[str, set[str]] = {}
    for name in NAMES:
        # QEMU may hold a bitmap for sound that it has; one that is listed it may have in memory alone.
        may = {t for t in TARGETS if t in listed.get(name, ()) or name in held[t][0]}
        in_qemu[name] = {target for target in sorted(may) if draw(st.booleans())}
    below = [_path(target, 1) for target in TARGETS if len(held[target]) > 1]
    shared = draw(st.frozensets(st.sampled_from(below))) if below else frozenset[str]()
    return Model(draw(st.booleans()), dict(listed), dict.fromkeys(listed), held, in_qemu, shared)


@given(models(), st.data())
def test_a_repair_that_is_killed_at_any_steps_ends_with_nothing_left_to_do(model: Model, data: st.DataObject) -> None:
    theirs, shared, bases = model.of("theirs"), model.in_shared(), model.sound_bases()
    for _ in range(32):
        plan = model.plan()
        if not plan.steps:
            break
        for step in plan.steps[: data.draw(st.integers(1, len(plan.steps)), label="killed after")]:
            assert step.checkpoint != "theirs"
            model.take(step)
            assert model.of("theirs") == theirs
    assert model.plan().steps == ()
    assert model.in_shared() == shared
    after = model.sound_bases()
    assert after.keys() >= bases.keys()  # it may be a newer one now
    assert set(after.values()) <= model.listed.keys()
    for judged in judge_checkpoints(model.facts()):
        untouchable = any(image in model.shared for disk in judged.disks for image in disk.images)
        assert judged.health in (Health.SOUND, Health.FOREIGN) or untouchable, judged


@given(models())
def test_a_repair_told_to_mend_what_is_foreign_leaves_what_is_sound_of_it(model: Model) -> None:
    facts = model.facts()
    judged = judge_checkpoints(facts)
    plan = plan_repair(facts, judged, foreign=frozenset({"theirs"}))
    theirs = next((each for each in judged if each.name == "theirs"), None)
    sound = {
        disk.target for disk in (theirs.disks if theirs is not None else ()) if disk.listed and disk.bitmap == "sound"
    }
    for step in plan.steps:
        if step.checkpoint == "theirs" and sound:
            assert isinstance(step, Narrow)
            assert set(step.keep) >= sound


@given(models())
def test_what_a_check_up_mends_takes_no_base_from_any_disk_and_nothing_of_others(model: Model) -> None:
    theirs, shared, bases = model.of("theirs"), model.in_shared(), model.sound_bases()
    facts = model.facts()
    judged = judge_checkpoints(facts)
    for finding in checkpoint_findings("guest", "uuid", Surveyed(facts, judged, plan_repair(facts, judged))):
        assert "theirs" not in finding.message
        if isinstance(finding.mend, MendCheckpoint):
            assert finding.mend.steps
            for step in finding.mend.steps:
                model.take(step)
    assert model.of("theirs") == theirs
    assert model.in_shared() == shared
    if model.running:
        # Another one may be hoped for now: a checkpoint that went had a bitmap more in an image than it named.
        assert all(target in model.in_qemu[name] for target, name in bases.items())
    else:
        assert model.sound_bases().items() >= bases.items()  # what was in the way of another one may be gone
