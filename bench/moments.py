"""The forest of moments: built, listed, drawn and deleted at three sizes and in three shapes, and beside libvirt.

The peer is libvirt's test driver in this process, without a daemon or a file: redefining 1,000 checkpoints from their
XML, and lists of 2,000. Both sides parse the XML; the driver also validates it and keeps a domain. All of it is work
of this one thread, so the seconds are those of the processor, and what else the machine does counts less.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial

import libvirt

from bench.measuring import Figures, Samples, alternating
from tests.rig import Host
from vmkeep.moments import (
    Checkpoint,
    DeleteMode,
    Moment,
    MomentFilter,
    MomentKind,
    MomentTree,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    SnapshotMemory,
    SnapshotState,
    draw_tree,
    parse_checkpoint,
    select,
)

COUNTS = (1_000, 10_000, 100_000)
ENDLESS = 1_000_000
REDEFINED, LISTED = 1_000, 2_000
_LEAVES, _TOPOLOGICAL = 4, 2
_STATES = (SnapshotState.RUNNING, SnapshotState.SHUTOFF, SnapshotState.DISK_SNAPSHOT, SnapshotState.PAUSED)


_Forest = MomentTree[Snapshot]


def measure(_host: Host, runs: int) -> Figures:
    """Return the figures of the forest; docs/performance.md says what each means."""
    samples = Samples()
    for _ in range(runs):
        for shape in _SHAPES:
            for count in COUNTS:
                _measure_forest(samples, shape, count)
        _measure_endless_chain(samples)
    figures = samples.figures()
    for shape in _SHAPES:
        for step in ("parse", "build", "insert", "list_slowest", "draw", "delete_each", "delete_all"):
            smaller, larger = (f"{shape}_{count}_{step}" for count in COUNTS[-2:])
            figures[f"{larger}_over_tenth"] = samples.ratio(larger, smaller)
    return {**figures, **_beside_libvirt(runs)}


_SHAPES: dict[str, Callable[[random.Random, int], int]] = {
    "chain": lambda _chance, at: at - 1,
    "fan": lambda _chance, _at: 0,
    "random": lambda chance, at: chance.randrange(at),
}


def _moments(shape: str, count: int) -> list[Snapshot]:
    chance = random.Random(1)
    inside, outside = SnapshotLocation.INTERNAL, SnapshotLocation.EXTERNAL
    memory = SnapshotMemory(inside)
    disks = [(SnapshotDisk("vda", inside), SnapshotDisk("vdb", second)) for second in (inside, outside)]
    return [
        Snapshot(
            name=f"m{at}",
            parent_name=f"m{_SHAPES[shape](chance, at)}" if at else None,
            creation_time=at,
            state=_STATES[at % 4],
            memory=memory,
            disks=disks[at % 3 != 0],
        )
        for at in range(count)
    ]


def _measure_forest(samples: Samples, shape: str, count: int) -> None:
    name = f"{shape}_{count}"
    moments = _moments(shape, count)
    shuffled = random.Random(2).sample(moments, count)
    texts = [_checkpoint_text(moment.name or "", moment.parent_name, at) for at, moment in enumerate(moments)]
    samples.add(f"{name}_parse", _cpu_seconds(lambda: _each(_parse, texts)))
    built: list[_Forest] = []
    samples.add(f"{name}_build", _cpu_seconds(lambda: built.append(MomentTree.build(MomentKind.SNAPSHOT, shuffled))))
    inserted: _Forest = MomentTree(MomentKind.SNAPSHOT)
    samples.add(f"{name}_insert", _cpu_seconds(lambda: _each(inserted.insert, moments)))
    (tree,) = built
    slowest = 0.0
    for chosen, asked in _filters().items():
        seconds = _cpu_seconds(partial(select, tree, asked))
        slowest = max(slowest, seconds)
        if count == COUNTS[-1]:
            samples.add(f"{name}_list_{chosen}", seconds)
    samples.add(f"{name}_list_slowest", slowest)
    # Each line is made and let go; those of a chain of 100,000 are 40 GB in all, as virsh indents each generation.
    samples.add(f"{name}_draw", _cpu_seconds(lambda: _each(len, draw_tree(tree))))
    samples.add(f"{name}_delete_all", _cpu_seconds(lambda: tree.delete("m0", DeleteMode.WITH_CHILDREN)))
    samples.add(f"{name}_delete_each", _cpu_seconds(lambda: _each(inserted.delete, [f"m{at}" for at in range(count)])))
    if len(tree) or len(inserted):
        raise AssertionError(f"{name}: not all moments were deleted")


def _checkpoint_text(name: str, parent: str | None, at: int) -> str:
    """Return a checkpoint as it is redefined; one without disks, whose reading the number of moments decides alone."""
    above = f"<parent><name>{parent}</name></parent>" if parent is not None else ""
    return f"<domaincheckpoint><name>{name}</name><creationTime>{at + 1}</creationTime>{above}</domaincheckpoint>"


def _parse(text: str) -> Checkpoint:
    return parse_checkpoint(text, redefine=True)


def _filters() -> dict[str, MomentFilter]:
    """Return each filter alone, those with a start from the root that most hangs from."""
    chosen = {"all": MomentFilter(), "start": MomentFilter(start="m0")}
    chosen["descendants"] = MomentFilter(start="m0", descendants=True)
    for field in fields(MomentFilter):
        if field.name not in chosen:
            chosen[field.name] = MomentFilter(**{field.name: True})  # type: ignore[arg-type]  # it is never start
    return chosen


def _measure_endless_chain(samples: Samples) -> None:
    chain = [Moment(name=str(at), parent_name=str(at - 1) if at else None) for at in range(ENDLESS)]
    built: list[MomentTree[Moment]] = []
    _add(samples, f"chain_{ENDLESS}_build", lambda: built.append(MomentTree.build(MomentKind.CHECKPOINT, chain)))
    samples.add(f"chain_{ENDLESS}_delete_all", _cpu_seconds(lambda: built[0].delete("0", DeleteMode.WITH_CHILDREN)))


def _each(act: Callable[[str], object] | Callable[[Snapshot], object], things: Iterable[object]) -> None:
    for thing in things:
        act(thing)  # type: ignore[arg-type]  # each caller's things fit its act


def _cpu_seconds(action: Callable[[], object]) -> float:
    begun = time.process_time()
    action()
    return time.process_time() - begun


def _add(samples: Samples, name: str, action: Callable[[], object]) -> None:
    samples.add(name, _cpu_seconds(action))


def _beside_libvirt(runs: int) -> Figures:
    samples = Samples()
    connection = libvirt.open("test:///default")
    try:
        domain = connection.lookupByName("test")
        tree = _redefine(samples, domain, runs)
        for name, flags in {"list": 0, "list_leaves": _LEAVES, "list_topological": _TOPOLOGICAL}.items():
            chosen = MomentFilter.from_flags(MomentKind.CHECKPOINT, flags)
            ours, theirs = select(tree, chosen), domain.listAllCheckpoints(flags)
            if {moment.name for moment in ours} != {moment.getName() for moment in theirs}:
                raise AssertionError(f"{name}: libvirt lists other checkpoints")
            sides = (
                partial(_add, samples, name, partial(select, tree, chosen)),
                partial(_add, samples, f"{name}_libvirt", partial(domain.listAllCheckpoints, flags)),
            )
            for _ in alternating(runs, sides):
                pass
    finally:
        connection.close()
    pairs = ("redefine", "list", "list_leaves", "list_topological")
    return {**samples.figures(), **{f"{pair}_over_libvirt": samples.ratio(pair, f"{pair}_libvirt") for pair in pairs}}


def _redefine(samples: Samples, domain: libvirt.virDomain, runs: int) -> MomentTree[Checkpoint]:
    """Measure how checkpoints are redefined, and leave as many as are to be listed on both sides."""
    texts = [_checkpoint_text(f"m{at}", f"m{at // 2}" if at else None, at) for at in range(LISTED)]

    def redefine_theirs(some: list[str]) -> None:
        for text in some:
            domain.checkpointCreateXML(text, libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE)

    def redefine_ours(some: list[str]) -> MomentTree[Checkpoint]:
        tree: MomentTree[Checkpoint] = MomentTree(MomentKind.CHECKPOINT)
        for text in some:
            tree.redefine(_parse(text))
        return tree

    sides = (
        partial(_add, samples, "redefine_libvirt", partial(redefine_theirs, texts[:REDEFINED])),
        partial(_add, samples, "redefine", partial(redefine_ours, texts[:REDEFINED])),
    )
    for _ in alternating(runs, sides):
        if domain.listAllCheckpoints():
            domain.checkpointLookupByName("m0").delete(libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN)
    redefine_theirs(texts[REDEFINED:])  # those before are there from the last run
    return redefine_ours(texts)
