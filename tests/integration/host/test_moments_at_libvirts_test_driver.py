"""Checkpoints changed at libvirt's own test driver, in this process: what is refused or interrupted leaves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vmkeep.config import Settings, load_settings
from vmkeep.errors import (
    ChoiceRequired,
    Interrupted,
    MomentExists,
    MomentInvalid,
    MomentNotFound,
    MomentsForeign,
    RestorePending,
    VmBusy,
    VmkeepError,
)
from vmkeep.host.moments.local import LocalMoments
from vmkeep.host.records.restore import RestoreJournal
from vmkeep.host.tasks.moments import DeleteMoments, ImportMoments, MomentsChanged, RedefineMoment, to_be_deleted
from vmkeep.hypervisor import Hypervisor
from vmkeep.locks import FileLock
from vmkeep.moments import (
    BundledMoment,
    Checkpoint,
    CheckpointDisk,
    DeleteMode,
    MomentBundle,
    MomentKind,
    draw_tree,
    format_moment,
    redefinable,
)
from vmkeep.planning.names import checkpoint_prefix, is_base_name

KIND = MomentKind.CHECKPOINT
UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
DOMAIN = f"""<domain type='test'><name>test</name><uuid>{UUID}</uuid><memory>8192</memory><vcpu>1</vcpu>
<os><type>hvm</type></os><devices><disk type='file' device='disk'>
<source file='/no/such/file'/><target dev='vda'/></disk></devices></domain>"""
BASE = "vmkeep-01234567-0123456789abcdef0123456789abcdef"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", environ={})


@pytest.fixture
def host(settings: Settings, tmp_path: Path) -> Iterator[LocalMoments]:
    """A host with one running VM. The driver's state is that of its connection."""
    node = tmp_path / "node.xml"
    node.write_text(f"<node>{DOMAIN}</node>")
    hypervisor = Hypervisor.connect(f"test://{node}")
    yield LocalMoments(settings, lambda: hypervisor)
    hypervisor.close()


def checkpoint(name: str, parent: str | None = None, *, description: str | None = None) -> Checkpoint:
    disks = (CheckpointDisk("vda", "bitmap", name),)  # type: ignore[arg-type]  # plain strings are taken
    return Checkpoint(name=name, parent_name=parent, creation_time=1, disks=disks, description=description)


def bundle(*moments: Checkpoint) -> MomentBundle:
    held = tuple(BundledMoment(moment, format_moment(moment, secure=True)) for moment in moments)
    return MomentBundle(kind=KIND, vm_name="test", vm_uuid=UUID, moments=held)


def take_in(
    host: LocalMoments, *moments: Checkpoint, replace_them: bool = False, stop: Callable[[], None] = lambda: None
) -> MomentsChanged:
    # Whether definitions reach into the host is looked at where there is QEMU.
    order = ImportMoments(kind=KIND, vm="test", bundle=bundle(*moments), replace=replace_them, trusted=True)
    return host.change_moments(order, stop=stop)


def drawn(host: LocalMoments) -> list[str]:
    return [line.rstrip() for line in draw_tree(host.moments(KIND, "test").tree()) if line.strip(" |")]


def refused_by_libvirt(moment: Checkpoint) -> Checkpoint:
    """Return the checkpoint with a domain in it that libvirt refuses and a parser alone cannot: another VM's."""
    return replace(moment, domain=DOMAIN.replace(UUID, UUID.replace("6", "7")))


def test_moments_of_a_file_are_listed_whatever_their_order(host: LocalMoments) -> None:
    done = take_in(host, checkpoint("c", "b"), checkpoint("b", "a"), checkpoint("a"), checkpoint("d", "a"))
    assert done.names == ("a", "b", "c", "d")
    assert drawn(host) == ["a", "  +- b", "  |   +- c", "  +- d"]


def test_moments_that_are_there_and_equal_are_kept(host: LocalMoments) -> None:
    take_in(host, checkpoint("a"))
    done = take_in(host, checkpoint("a"), checkpoint("b", "a"))
    assert (done.names, done.kept) == (("b",), ("a",))


def test_parents_of_a_file_may_be_at_the_vm_already(host: LocalMoments) -> None:
    take_in(host, checkpoint("a"))
    take_in(host, checkpoint("b", "a"))
    assert drawn(host) == ["a", "  +- b"]


def test_moments_that_are_there_and_not_equal_are_refused_by_name(host: LocalMoments) -> None:
    take_in(host, checkpoint("a"), checkpoint("b", "a"))
    other = [checkpoint("c"), checkpoint("b"), checkpoint("a", description="new")]
    with pytest.raises(MomentExists, match="'a', 'b'"):
        take_in(host, *other)
    assert drawn(host) == ["a", "  +- b"]
    take_in(host, *other, replace_them=True)
    assert drawn(host) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("moments", "named"),
    [
        ((checkpoint("b", "a"), checkpoint("c", "b")), "parent a of b is missing"),
        ((checkpoint("x"), checkpoint("a", "b"), checkpoint("b", "a")), "a -> b -> a"),
        ((checkpoint("a", "a"),), "a -> a"),
    ],
)
def test_a_file_that_is_no_forest_is_refused_with_the_names(
    host: LocalMoments, moments: tuple[Checkpoint, ...], named: str
) -> None:
    with pytest.raises(MomentInvalid, match=named):
        take_in(host, *moments)
    assert drawn(host) == []


def test_a_file_of_another_vm_or_kind_is_refused(host: LocalMoments) -> None:
    order = ImportMoments(kind=KIND, vm="test", bundle=replace(bundle(checkpoint("a")), vm_uuid=UUID[::-1]))
    with pytest.raises(MomentsForeign, match=UUID):
        host.change_moments(order)
    of_snapshots = replace(bundle(), kind=MomentKind.SNAPSHOT)
    with pytest.raises(MomentsForeign, match="snapshots, not checkpoints"):
        host.change_moments(replace(order, bundle=of_snapshots))


def test_an_import_that_libvirt_refuses_midway_leaves_all_as_it_was(host: LocalMoments) -> None:
    take_in(host, checkpoint("a", description="old"), checkpoint("z", "a"))
    with pytest.raises(VmkeepError, match="checkpoint 'c' of VM 'test'"):
        take_in(
            host,
            checkpoint("a", description="new"),
            checkpoint("b", "a"),
            refused_by_libvirt(checkpoint("c", "b")),
            checkpoint("d", "a"),
            replace_them=True,
        )
    assert drawn(host) == ["a", "  +- z"]
    assert host.moments(KIND, "test").tree().find("a").description == "old"


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_import_that_is_interrupted_leaves_all_as_it_was(host: LocalMoments, steps: int) -> None:
    left = steps

    def stop() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Interrupted("Interrupted by Ctrl-C")

    take_in(host, checkpoint("a"))
    with pytest.raises(Interrupted):
        take_in(host, checkpoint("b", "a"), checkpoint("c", "b"), checkpoint("d", "c"), stop=stop)
    assert drawn(host) == ["a"]


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (DeleteMode.ALONE, ["a", "  +- c", "  +- d", "  |   +- e", "  +- f"]),
        (DeleteMode.WITH_CHILDREN, ["a", "  +- f"]),
        (DeleteMode.CHILDREN_ONLY, ["a", "  +- b", "  +- f"]),
    ],
)
def test_deletions_leave_the_forest_that_libvirt_lists_whole(
    host: LocalMoments, mode: DeleteMode, left: list[str]
) -> None:
    parents = {"a": None, "b": "a", "c": "b", "d": "b", "e": "d", "f": "a"}
    take_in(host, *(checkpoint(name, parent) for name, parent in parents.items()))
    tree = host.moments(KIND, "test").tree()
    names = to_be_deleted(tree, "b", mode)
    assert all(child.name in names[: names.index(name)] for name in names[:-1] for child in tree.children(name))
    order = DeleteMoments(kind=KIND, vm="test", name="b", mode=mode, metadata_only=True)
    assert host.change_moments(order).names == names
    assert drawn(host) == left
    assert not host.moments(KIND, "test").tree().broken


def test_an_interrupted_deletion_says_what_is_gone(host: LocalMoments) -> None:
    take_in(host, checkpoint("a"), checkpoint("b", "a"), checkpoint("c", "b"))
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise Interrupted("Interrupted by Ctrl-C")

    order = DeleteMoments(kind=KIND, vm="test", name="a", mode=DeleteMode.WITH_CHILDREN)
    with pytest.raises(Interrupted) as raised:
        host.change_moments(order, stop=stop)
    assert raised.value.__notes__ == ["deleted checkpoints: 'c'; not deleted: 'b', 'a'"]
    assert drawn(host) == ["a", "  +- b"]


def test_checkpoints_of_points_go_only_with_consent(host: LocalMoments) -> None:
    take_in(host, checkpoint("a"), checkpoint(BASE, "a"))
    order = DeleteMoments(kind=KIND, vm="test", name="a", mode=DeleteMode.WITH_CHILDREN)
    with pytest.raises(ChoiceRequired, match=BASE):
        host.change_moments(order)
    assert drawn(host) == ["a", f"  +- {BASE}"]
    assert host.change_moments(replace(order, bases=frozenset({BASE}))).names == (BASE, "a")


def test_names_of_our_bases_are_those_that_points_get() -> None:
    point = "fedcba98" * 4
    assert is_base_name(checkpoint_prefix("0123456789abcdef" * 2) + point)
    for other in ("vmkeep-mine", BASE[:-1], BASE + "0", "x" + BASE, BASE.upper(), BASE + "\n"):
        assert not is_base_name(other), other


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (checkpoint("b", "none"), "parent none for moment b not found"),
        (checkpoint("b", "b"), "as its own parent"),
        (checkpoint("a", "b"), "parent b would create cycle to a"),
    ],
)
def test_redefining_what_would_break_the_forest_is_refused(host: LocalMoments, moment: Checkpoint, words: str) -> None:
    take_in(host, checkpoint("a"), checkpoint("b", "a"))
    with pytest.raises(MomentInvalid, match=words) as refused:
        host.change_moments(RedefineMoment(kind=KIND, vm="test", xml=format_moment(moment)))
    assert refused.value.vm == "test"
    assert drawn(host) == ["a", "  +- b"]


def test_an_edited_definition_that_was_changed_meanwhile_is_not_taken(host: LocalMoments) -> None:
    take_in(host, checkpoint("a", description="one"))
    was = host.moment_xml(KIND, "test", "a", secure=True)
    edited = was.replace("one", "two")
    host.change_moments(RedefineMoment(kind=KIND, vm="test", xml=was.replace("one", "three")))
    with pytest.raises(VmBusy, match="changed by somebody else"):
        host.change_moments(RedefineMoment(kind=KIND, vm="test", xml=edited, was=was))
    assert host.moments(KIND, "test").tree().find("a").description == "three"


def test_a_checkpoint_without_a_time_is_listed_and_taken_back_as_others_are(host: LocalMoments) -> None:
    """libvirt does not write a time of 0, and refuses a definition without one."""
    untimed = redefinable(format_moment(replace(checkpoint("a"), creation_time=0)))
    host.change_moments(RedefineMoment(kind=KIND, vm="test", xml=untimed))
    assert "creationTime" not in host.moment_xml(KIND, "test", "a")
    assert host.moments(KIND, "test").tree().find("a").creation_time == 0
    with pytest.raises(VmkeepError, match="checkpoint 'b' of VM 'test'"):
        take_in(host, checkpoint("a", description="new"), refused_by_libvirt(checkpoint("b", "a")), replace_them=True)
    assert host.moments(KIND, "test").tree().find("a").description is None
    exported = host.moment_definitions(KIND, "test")["a"]
    host.change_moments(DeleteMoments(kind=KIND, vm="test", name="a"))
    host.change_moments(RedefineMoment(kind=KIND, vm="test", xml=exported, was=None))
    assert drawn(host) == ["a"]


def test_a_vm_whose_restore_is_not_finished_is_not_changed(host: LocalMoments, settings: Settings) -> None:
    take_in(host, checkpoint("a"))
    journal = RestoreJournal(
        operation="ab" * 16,
        uri="qemu:///system",
        vm="test",
        vm_uuid=UUID,
        point="01" * 16,
        safety="02" * 16,
        disks=(),
        items=(),
        parked_path="/r",
        parked_target="vda",
        parked_element="<disk/>",
        whole=True,
    )
    journal.save(settings.restores_dir)
    with pytest.raises(RestorePending, match="'test'"):
        host.change_moments(DeleteMoments(kind=KIND, vm="test", name="a"))
    assert drawn(host) == ["a"]


def test_a_vm_that_another_operation_works_on_is_not_changed(host: LocalMoments, settings: Settings) -> None:
    lock = FileLock.try_acquire(settings.locks_dir / f"{UUID}.lock", note="backup (process 1)")
    assert lock is not None
    with lock, pytest.raises(VmBusy, match="backup"):
        take_in(host, checkpoint("a"))
    take_in(host, checkpoint("a"))
    assert not (settings.locks_dir / f"{UUID}.lock").exists()


def test_a_moment_that_is_not_there_is_named_with_its_vm(host: LocalMoments) -> None:
    orders = [DeleteMoments(kind=kind, vm="test", name="gone") for kind in MomentKind]
    for order in orders:
        with pytest.raises(MomentNotFound, match=f"VM 'test'.*{order.kind}.*'gone'"):
            host.change_moments(order)
    for kind in MomentKind:
        with pytest.raises(MomentNotFound, match=f"VM 'test' has no {kind} 'gone'"):
            host.moment_xml(kind, "test", "gone")
