"""MomentTree and libvirt's test driver, given the same calls: same forest, same current moment, same errors.

The driver lives in this process and needs no daemon; from a file of its own, and unlike ``test:///default``, each
connection has a state of its own. It does not let a domain have checkpoints and snapshots at once, so each kind has
a machine. What differs, and why, stands in docs/internals/moments-tree.md.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import libvirt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.examples import examples
from vmkeep.moments import (
    Checkpoint,
    DeleteMode,
    Moment,
    MomentError,
    MomentFilter,
    MomentKind,
    MomentTree,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    SnapshotMemory,
    SnapshotState,
    draw_tree,
    parse_snapshot,
    select,
)

NAMES = st.sampled_from(["a", "B", "c", "d1", "d2", "_e", "F-", "g."])
PARENTS = st.none() | NAMES
MODES = st.sampled_from(DeleteMode)
MODE_FLAGS = {
    DeleteMode.ALONE: 0,
    DeleteMode.WITH_CHILDREN: libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN,
    DeleteMode.CHILDREN_ONLY: libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_CHILDREN_ONLY,
}
ANY_FLAGS = st.integers(0, (1 << 12) - 1) | st.sets(st.integers(0, 11), max_size=2).map(
    lambda s: sum(1 << b for b in s)
)
TOPOLOGICAL = {MomentKind.CHECKPOINT: 2, MomentKind.SNAPSHOT: 1024}

T = TypeVar("T")

LEAVES = 4
TEST_NAMESPACE = "http://libvirt.org/schemas/domain/test/1.0"
UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
DOMAIN = f"""<domain type='test'><name>test</name><uuid>{UUID}</uuid><memory>8192</memory><vcpu>1</vcpu>
<os><type>hvm</type></os><devices><disk type='file' device='disk'>
<source file='/no/such/file'/><target dev='vda'/></disk></devices>%s</domain>"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test driver's host with one running domain."""
    path = tmp_path_factory.mktemp("node") / "node.xml"
    path.write_text(f"<node>{DOMAIN % ''}</node>")
    return path


def answer(call: Callable[[], T]) -> T | tuple[int | None, str]:
    """Return what a call returns, or the number and the words of its error."""
    try:
        return call()
    except MomentError as error:
        return error.code, error.message
    except libvirt.libvirtError as error:
        return error.get_error_code(), str(error)


def assert_same_refusal(ours: object, theirs: object) -> bool:
    """Compare two answers; return whether both are a refusal."""
    ours_refused, theirs_refused = isinstance(ours, tuple), isinstance(theirs, tuple)
    assert ours_refused == theirs_refused, (ours, theirs)
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        assert ours[0] == theirs[0], (ours, theirs)
        assert theirs[1].endswith(ours[1]), (ours, theirs)
    return ours_refused


class Machine(RuleBasedStateMachine):
    """What both kinds have in common."""

    kind: MomentKind
    node: Path
    steps_taken = 0

    def __init__(self) -> None:
        super().__init__()
        libvirt.registerErrorHandler(lambda *_: None, None)
        self.connection = libvirt.open(f"test://{self.node}")
        self.domain = self.connection.lookupByName("test")
        self.xml = self.domain.XMLDesc()
        self.tree: MomentTree[Any] = MomentTree(self.kind)

    def teardown(self) -> None:
        self.connection.close()

    def look_up(self, name: str) -> Any:
        raise NotImplementedError

    def list_all(self, flags: int) -> list[Any]:
        raise NotImplementedError

    def send_new(self, name: str) -> Any:
        raise NotImplementedError

    def read_new(self, made: Any) -> Moment:
        raise NotImplementedError

    def parent_at_libvirt(self, name: str) -> str | None:
        found = answer(lambda: self.look_up(name).getParent().getName())
        return found if isinstance(found, str) else None

    @rule(name=NAMES)
    def create(self, name: str) -> None:
        type(self).steps_taken += 1
        theirs = answer(lambda: self.send_new(name))
        new = Moment(name=name) if isinstance(theirs, tuple) else self.read_new(theirs)
        ours = answer(lambda: self.tree.create(new))
        if not assert_same_refusal(ours, theirs):
            assert isinstance(ours, Moment)
            assert ours.parent_name == self.parent_at_libvirt(name)

    @rule(name=NAMES, mode=MODES)
    def delete(self, name: str, mode: DeleteMode) -> None:
        type(self).steps_taken += 1
        ours = answer(lambda: self.tree.delete(name, mode))
        theirs = answer(lambda: self.look_up(name).delete(MODE_FLAGS[mode]))
        assert_same_refusal(ours, theirs)

    @rule(flags=ANY_FLAGS, start=PARENTS)
    def list_moments(self, flags: int, start: str | None) -> None:
        type(self).steps_taken += 1
        ours = answer(lambda: list(select(self.tree, MomentFilter.from_flags(self.kind, flags, start))))
        found = answer(lambda: self.list_all(flags) if start is None else self.look_up(start).listAllChildren(flags))
        if isinstance(ours, tuple) or isinstance(found, tuple):
            assert isinstance(ours, tuple)
            assert isinstance(found, tuple)
            if start is None or start in self.tree:  # of two errors in one call, libvirt's API finds the name first
                assert ours[0] == found[0]
            return
        names = [moment.name for moment in ours]
        assert sorted(names) == sorted(moment.getName() for moment in found)
        if flags & TOPOLOGICAL[self.kind]:
            for order in (names, [moment.getName() for moment in found]):
                places = {name: place for place, name in enumerate(order)}
                for name, place in places.items():
                    above = self.tree.parent(name)
                    while above is not None:
                        assert places.get(above.name, -1) < place
                        above = self.tree.parent(above.name)

    @invariant()
    def forest_is_the_same(self) -> None:
        theirs = {moment.getName(): self.parent_at_libvirt(moment.getName()) for moment in self.list_all(0)}
        assert {moment.name: moment.parent_name for moment in self.tree} == theirs
        for name, above in theirs.items():
            linked = self.tree.parent(name)
            assert (None if linked is None else linked.name) == above

    @invariant()
    def forest_is_that_of_a_fresh_build(self) -> None:
        moments = list(self.tree)
        random.Random(len(moments)).shuffle(moments)
        built = MomentTree.build(self.kind, moments)
        assert not built.broken
        assert list(built.descendants()) == list(self.tree.descendants())
        assert [self.tree.has_children(m.name) for m in moments] == [built.has_children(m.name) for m in moments]


class CheckpointMachine(Machine):
    kind = MomentKind.CHECKPOINT

    def look_up(self, name: str) -> libvirt.virDomainCheckpoint:
        return self.domain.checkpointLookupByName(name)

    def list_all(self, flags: int) -> list[libvirt.virDomainCheckpoint]:
        return self.domain.listAllCheckpoints(flags)

    def send_new(self, name: str) -> libvirt.virDomainCheckpoint:
        return self.domain.checkpointCreateXML(f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")

    def read_new(self, made: libvirt.virDomainCheckpoint) -> Checkpoint:
        return Checkpoint(name=made.getName())

    @rule(name=NAMES, parent=PARENTS)
    def redefine(self, name: str, parent: str | None) -> None:
        type(self).steps_taken += 1
        ours = answer(lambda: self.tree.redefine(Checkpoint(name=name, parent_name=parent)))
        theirs = answer(
            lambda: self.domain.checkpointCreateXML(
                checkpoint_xml(name, parent), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
            )
        )
        assert_same_refusal(ours, theirs)

    def teardown(self) -> None:
        # Which one libvirt has as current shows only in the parent of the next one.
        made = self.send_new("last")
        current = self.tree.current
        assert self.parent_at_libvirt(made.getName()) == (None if current is None else current.name)
        super().teardown()


STATES = st.sampled_from(["running", "paused", "shutoff", "disk-snapshot", "crashed"])
LOCATIONS = st.sampled_from(["internal", "external"])


class SnapshotMachine(Machine):
    kind = MomentKind.SNAPSHOT

    def look_up(self, name: str) -> libvirt.virDomainSnapshot:
        return self.domain.snapshotLookupByName(name)

    def list_all(self, flags: int) -> list[libvirt.virDomainSnapshot]:
        return self.domain.listAllSnapshots(flags)

    def send_new(self, name: str) -> libvirt.virDomainSnapshot:
        return self.domain.snapshotCreateXML(f"<domainsnapshot><name>{name}</name></domainsnapshot>")

    def read_new(self, made: libvirt.virDomainSnapshot) -> Snapshot:
        return parse_snapshot(made.getXMLDesc(), redefine=True)

    @rule(name=NAMES, parent=PARENTS, state=STATES, memory=LOCATIONS, disk=LOCATIONS, current=st.booleans())
    def redefine(self, name: str, parent: str | None, state: str, memory: str, disk: str, current: bool) -> None:
        type(self).steps_taken += 1
        if name in self.tree:  # another state is refused for reasons that are not the tree's
            old = self.tree.find(name)
            state, memory, disk = old.state, old.memory.location, old.disks[0].location
        memory = "no" if state in {"shutoff", "disk-snapshot"} else memory
        new = _snapshot(name, parent, state=state, memory=memory, disk=disk)
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT if current else 0
        ours = answer(lambda: self.tree.redefine(new, current=current))
        theirs = answer(lambda: self.domain.snapshotCreateXML(snapshot_xml(new, self.xml), flags))
        assert_same_refusal(ours, theirs)

    @precondition(lambda self: len(self.tree) > 0)
    @rule(data=st.data(), parent=PARENTS)
    def reparent(self, data: st.DataObject, parent: str | None) -> None:
        type(self).steps_taken += 1
        name = data.draw(st.sampled_from(sorted(moment.name for moment in self.tree)))
        moved = replace(self.tree.find(name), parent_name=parent)
        ours = answer(lambda: self.tree.reparent(name, parent))
        theirs = answer(
            lambda: self.domain.snapshotCreateXML(
                snapshot_xml(moved, self.xml), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
            )
        )
        if not assert_same_refusal(ours, theirs):
            assert ours == moved

    @rule(name=NAMES)
    def revert(self, name: str) -> None:
        type(self).steps_taken += 1
        ours = answer(lambda: self.tree.revert(name))
        theirs = answer(lambda: self.domain.revertToSnapshot(self.look_up(name)))
        assert_same_refusal(ours, theirs)

    @invariant()
    def current_is_the_same(self) -> None:
        theirs = self.domain.snapshotCurrent().getName() if self.domain.hasCurrentSnapshot() else None
        assert (None if self.tree.current is None else self.tree.current.name) == theirs


def _snapshot(
    name: str, parent: str | None, *, state: str = "running", memory: str = "internal", disk: str = "internal"
) -> Snapshot:
    return Snapshot(
        name=name,
        parent_name=parent,
        state=SnapshotState(state),
        memory=SnapshotMemory(SnapshotLocation(memory)),
        disks=(SnapshotDisk("vda", SnapshotLocation(disk)),),
    )


def _parent_xml(parent: str | None) -> str:
    return "" if parent is None else f"<parent><name>{parent}</name></parent>"


def checkpoint_xml(name: str, parent: str | None) -> str:
    head = f"<name>{name}</name><creationTime>1</creationTime>"
    return f"<domaincheckpoint>{head}{_parent_xml(parent)}</domaincheckpoint>"


def snapshot_xml(snapshot: Snapshot, domain: str) -> str:
    file = " file='/m'" if snapshot.memory.location == "external" else ""
    source = "<source file='/overlay'/>"
    disks = "".join(
        f"<disk name='vda' snapshot='{disk.location}'>{source if disk.location == 'external' else ''}</disk>"
        for disk in snapshot.disks
    )
    return (
        f"<domainsnapshot><name>{snapshot.name}</name><state>{snapshot.state}</state><creationTime>1</creationTime>"
        f"{_parent_xml(snapshot.parent_name)}<memory snapshot='{snapshot.memory.location}'{file}/>"
        f"<disks>{disks}</disks>{domain}</domainsnapshot>"
    )


@pytest.mark.parametrize(("machine", "count"), [(CheckpointMachine, examples(10)), (SnapshotMachine, examples(120))])
def test_tree_does_what_libvirt_does(machine: type[Machine], count: int, node: Path) -> None:
    machine.steps_taken, machine.node = 0, node
    # No shrinking: libvirt takes 10 ms for a checkpoint, and a failure would be found minutes before it is told.
    phases = [phase for phase in Phase if phase is not Phase.shrink]
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=count, stateful_step_count=40, suppress_health_check=checks, phases=phases),
    )
    assert machine.steps_taken > 20 * count


@settings(max_examples=60)
@given(st.dictionaries(NAMES, PARENTS, min_size=1))
def test_relations_are_broken_where_libvirt_refuses_to_load_them(
    tmp_path_factory: pytest.TempPathFactory, parents: dict[str, str | None]
) -> None:
    libvirt.registerErrorHandler(lambda *_: None, None)
    moments = [_snapshot(name, parent) for name, parent in parents.items()]
    tree = MomentTree.build(MomentKind.SNAPSHOT, moments)
    path = tmp_path_factory.getbasetemp() / "loaded.xml"
    preloaded = "".join(
        snapshot_xml(moment, DOMAIN % "")
        .replace("<domainsnapshot>", f"<test:domainsnapshot xmlns:test='{TEST_NAMESPACE}'>")
        .replace("</domainsnapshot>", "<active>0</active></test:domainsnapshot>")
        for moment in moments
    )
    path.write_text(f"<node>{DOMAIN % preloaded}</node>")
    theirs = answer(lambda: libvirt.open(f"test://{path}"))
    if isinstance(theirs, tuple):
        with pytest.raises(MomentError, match=r"^Snapshots have inconsistent relations") as refusal:
            tree.demand_sound()
        assert (refusal.value.code, theirs[1]) == (
            theirs[0],
            "internal error: Snapshots have inconsistent relations for domain test",
        )
        return
    tree.demand_sound()
    domain = theirs.lookupByName("test")
    assert {moment.getName() for moment in domain.listAllSnapshots(LEAVES)} == {
        moment.name for moment in select(tree, MomentFilter(leaves=True))
    }
    theirs.close()


def random_parents(seed: int, count: int) -> dict[str, str | None]:
    """Return names, some of them in other letters than ASCII, with their parents, parents first."""
    chance = random.Random(seed)
    names = [f"{chance.choice('aBcDéÉ_.-')}{number}" for number in range(count)]
    return {
        name: chance.choice([*names[max(0, at - 6) : at], None]) if chance.random() < 0.9 else None
        for at, name in enumerate(names)
    }


def virsh(node: Path, commands: Sequence[str]) -> list[str]:
    """Carry out commands over one connection; return what each printed."""
    marked = [f"{command}; echo =====" for command in commands]
    done = subprocess.run(
        ["virsh", "-q", "-c", f"test://{node}", "; ".join(marked)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    return done.stdout.split("=====")[:-1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", MomentKind)
def test_lists_and_drawings_are_those_of_virsh(node: Path, tmp_path: Path, kind: MomentKind, seed: int) -> None:
    parents = random_parents(seed, 30)
    if kind is MomentKind.CHECKPOINT:  # their names are of ASCII letters and begin with no dot
        ascii_names = str.maketrans("éÉ.", "eE_")
        parents = {
            name.translate(ascii_names): above and above.translate(ascii_names) for name, above in parents.items()
        }
    tree: MomentTree[Moment] = MomentTree(kind)
    commands = []
    for number, (name, parent) in enumerate(parents.items()):
        moment = _snapshot(name, parent)
        tree.insert(moment)
        xml = tmp_path / f"{number}.xml"
        xml.write_text(
            checkpoint_xml(name, parent) if kind is MomentKind.CHECKPOINT else snapshot_xml(moment, DOMAIN % "")
        )
        commands.append(f"{kind}-create test {xml} --redefine")

    expected: dict[str, list[str]] = {"--tree": list(draw_tree(tree))}
    for options, chosen in {
        "--name": MomentFilter(),
        "--name --roots": MomentFilter(roots=True),
        "--name --leaves": MomentFilter(leaves=True),
        "--name --no-leaves --roots": MomentFilter(no_leaves=True, roots=True),
    }.items():
        expected[options] = [moment.name or "" for moment in select(tree, chosen)]
    for start in [name for name in parents if tree.has_children(name)][:6]:
        expected[f"--tree --from {start}"] = list(draw_tree(tree, start))
        expected[f"--tree --from {start} --descendants"] = list(draw_tree(tree, start, descendants=True))
        below = MomentFilter(start=start, descendants=True)
        expected[f"--name --from {start} --descendants"] = [moment.name or "" for moment in select(tree, below)]
        expected[f"--name --from {start}"] = [moment.name or "" for moment in select(tree, MomentFilter(start=start))]
    printed = virsh(node, [*commands, *(f"{kind}-list test {options}" for options in expected)])[len(commands) :]
    for (options, lines), theirs in zip(expected.items(), printed, strict=True):
        assert "".join(f"{line}\n" for line in lines) == theirs, options
