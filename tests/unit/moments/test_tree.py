"""The forest of moments: how it is built, changed, filtered and drawn. What libvirt says is asked in tests/contract."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vmkeep.moments import (
    Checkpoint,
    DeleteMode,
    MissingParent,
    Moment,
    MomentError,
    MomentFilter,
    MomentKind,
    MomentTree,
    draw_tree,
    select,
)
from vmkeep.moments import tree as tree_module

CHECKPOINT, SNAPSHOT = MomentKind


def moments(**parents: str | None) -> list[Moment]:
    return [Moment(name=name, parent_name=parent) for name, parent in parents.items()]


def built(kind: MomentKind = SNAPSHOT, /, **parents: str | None) -> MomentTree[Moment]:
    return MomentTree.build(kind, moments(**parents))


def names(found: Sequence[Moment]) -> list[str | None]:
    return [moment.name for moment in found]


def picture(tree: MomentTree[Moment]) -> tuple[object, ...]:
    """Return all that can be seen of a tree."""
    links = {m.name: (m, tree.parent(m.name or ""), tree.children(m.name or "")) for m in tree}
    return links, tree.children(), tree.current, tree.broken, list(tree.descendants())


BROKEN = {
    "lost": "gone",
    "below_lost": "lost",
    "stray": "away",
    "self": "self",
    "q": "r",
    "r": "p",
    "p": "q",
    "tail": "r",
    "sound": None,
    "x1": "x2",
    "x2": "x1",
}


def test_all_that_is_broken_is_named_the_same_way_in_any_order() -> None:
    pictures = []
    for seed in range(20):
        shuffled = moments(**BROKEN)
        random.Random(seed).shuffle(shuffled)
        tree = MomentTree.build(SNAPSHOT, shuffled, current="sound")
        assert tree.broken.missing == (MissingParent("lost", "gone"), MissingParent("stray", "away"))
        assert tree.broken.cycles == (("p", "q", "r"), ("self",), ("x1", "x2"))
        assert names(tree.children()) == ["lost", "p", "self", "sound", "stray", "x1"]
        assert len(list(tree.descendants())) == len(tree) == len(BROKEN), "every moment stays listed"
        assert tree.current is None
        pictures.append(picture(tree))
    assert all(seen == pictures[0] for seen in pictures)


def test_broken_relations_are_refused_with_all_names() -> None:
    with pytest.raises(MomentError) as refusal:
        built(**BROKEN).demand_sound()
    assert refusal.value.libvirt_name == "VIR_ERR_INTERNAL_ERROR"
    assert refusal.value.message == (
        "Snapshots have inconsistent relations: parent gone of lost is missing; parent away of stray is missing; "
        "the parents of p lead back to it: p -> q -> r -> p; the parents of self lead back to it: self -> self; "
        "the parents of x1 lead back to it: x1 -> x2 -> x1"
    )
    built(a=None, b="a").demand_sound()


def test_parent_that_comes_back_gets_its_children() -> None:
    tree = built(b="a", c="b")
    tree.insert(Moment(name="a"))
    assert not tree.broken
    assert names(list(tree.descendants())) == ["a", "b", "c"]


def test_missing_parent_cannot_come_back_below_its_own_child() -> None:
    tree = built(b="a", c="b")
    with pytest.raises(MomentError, match="parent b would create cycle to a"):
        tree.insert(Moment(name="a", parent_name="c"))
    assert tree.broken.missing == (MissingParent("b", "a"),)


@pytest.mark.parametrize("change", ["redefine", "reparent", "delete"])
def test_cycle_that_is_cut_by_hand_is_whole_again(change: str) -> None:
    tree = built(a="b", b="c", c="a", d="c")
    if change == "redefine":
        tree.replace(Moment(name="c"))
    elif change == "reparent":
        tree.reparent("c", None)
    else:
        tree.delete("a")
        assert not tree.broken
        assert names(list(tree.descendants())) == ["c", "b", "d"]
        return
    assert not tree.broken
    assert names(list(tree.descendants())) == ["c", "b", "a", "d"]


def test_deleting_a_moment_of_a_cycle_leaves_the_others_listed() -> None:
    tree = built(a="b", b="c", c="a")
    tree.delete("b")
    assert tree.broken.missing == (MissingParent("a", "b"),)
    assert names(list(tree.descendants())) == ["a", "c"]


def refused(**change: Any) -> tuple[str, str]:
    tree = built(root=None, mid="root", leaf="mid")
    tree.revert("leaf")
    before = picture(tree)
    (name, arguments), *_ = change.items()
    with pytest.raises(MomentError) as refusal:
        getattr(tree, name)(*arguments)
    assert picture(tree) == before, "a call that raises changed nothing"
    return refusal.value.libvirt_name, refusal.value.message


def test_refusals_have_libvirts_number_and_words_and_change_nothing() -> None:
    invalid, taken = "VIR_ERR_INVALID_ARG", "VIR_ERR_OPERATION_FAILED"
    assert refused(create=[Moment(name="mid")]) == (taken, "domain moment mid already exists")
    assert refused(insert=[Moment(name="mid")]) == (taken, "domain moment mid already exists")
    assert refused(redefine=[Moment(name="new", parent_name="new")]) == (
        invalid,
        "cannot set moment new as its own parent",
    )
    assert refused(reparent=["mid", "no"]) == (invalid, "parent no for moment mid not found")
    assert refused(reparent=["root", "leaf"]) == (invalid, "parent mid would create cycle to root")
    assert refused(replace=[Moment(name="root", parent_name="mid")]) == (
        invalid,
        "parent mid would create cycle to root",
    )
    nothing = ("VIR_ERR_NO_DOMAIN_SNAPSHOT", "no domain snapshot with matching name 'no'")
    assert refused(delete=["no"]) == refused(revert=["no"]) == refused(find=["no"]) == nothing
    assert refused(replace=[Moment(name="no")]) == refused(reparent=["no", None]) == nothing
    assert refused(parent=["no"]) == refused(children=["no"]) == refused(has_children=["no"]) == nothing
    assert refused(create=[Moment()])[0] == "VIR_ERR_XML_ERROR"
    with pytest.raises(MomentError, match="no domain checkpoint with matching name 'no'") as refusal:
        built(CHECKPOINT).find("no")
    assert refusal.value.code == 103


def test_moments_of_one_name_or_with_an_unknown_current_one_make_no_tree() -> None:
    with pytest.raises(MomentError, match="domain moment a already exists"):
        MomentTree.build(SNAPSHOT, [Moment(name="a"), Moment(name="a")])
    with pytest.raises(MomentError, match="no domain snapshot with matching name 'b'"):
        MomentTree.build(SNAPSHOT, [Moment(name="a")], current="b")


def test_current_checkpoint_of_a_load_is_the_only_leaf() -> None:
    assert built(CHECKPOINT, a=None, b="a", c="b").current == Moment(name="c", parent_name="b")
    assert built(CHECKPOINT, a=None, b="a", c="a").current is None
    assert built(CHECKPOINT, a=None, b=None).current is None
    assert built(CHECKPOINT).current is None
    assert built(SNAPSHOT, a=None).current is None


def test_deletion_tells_what_went_and_what_moved() -> None:
    parents: dict[str, str | None] = {"r": None, "a": "r", "b": "a", "c": "b", "d": "a"}
    alone = built(**parents).delete("a")
    assert names(alone.removed) == ["a"]
    assert alone.moved == (Moment(name="b", parent_name="r"), Moment(name="d", parent_name="r"))
    whole = built(**parents).delete("a", DeleteMode.WITH_CHILDREN)
    assert (names(whole.removed), whole.moved) == (["b", "c", "d", "a"], ())
    below = built(**parents)
    assert names(below.delete("a", DeleteMode.CHILDREN_ONLY).removed) == ["b", "c", "d"]
    assert names(list(below.descendants())) == ["r", "a"]
    roots = built(**parents).delete("r")
    assert roots.moved == (Moment(name="a", parent_name=None),)


def test_siblings_stand_in_the_order_of_virsh() -> None:
    tree = built(**dict.fromkeys(["é", "É", "b", "B", "a", "_", "AB", "ab", "A.", "10", "9"]))
    assert names(tree.children()) == ["10", "9", "_", "a", "A.", "AB", "ab", "B", "b", "É", "é"]


def test_filters_of_snapshots_are_not_for_checkpoints() -> None:
    tree = built(CHECKPOINT, a=None)
    for word in ("metadata", "no_metadata", "inactive", "active", "disk_only", "internal", "external"):
        with pytest.raises(MomentError, match=f"{word.replace('_', '-')} is no filter for checkpoints"):
            select(tree, MomentFilter(**{word: True}))  # type: ignore[arg-type]  # mypy takes the word for start


def test_start_goes_with_descendants_and_not_with_roots() -> None:
    with pytest.raises(MomentError, match="roots do not hang from a moment"):
        MomentFilter(roots=True, start="a")
    with pytest.raises(MomentError, match="descendants need a moment to start from"):
        MomentFilter(descendants=True)


@pytest.mark.parametrize("kind", MomentKind)
def test_flags_of_a_filter_make_the_same_filter(kind: MomentKind) -> None:
    for start in (None, "a"):
        for flags in range(1 << (4 if kind is CHECKPOINT else 11)):
            assert MomentFilter.from_flags(kind, flags, start).flags(kind) == flags
    with pytest.raises(MomentError, match="unsupported flags"):
        MomentFilter.from_flags(kind, 1 << 11)


def test_leaves_and_no_leaves_together_find_nothing() -> None:
    assert select(built(a=None, b="a"), MomentFilter(leaves=True, no_leaves=True)) == ()


def test_drawing_is_as_deep_as_the_chain_and_keeps_one_path_only() -> None:
    # A bush of siblings at each depth: kept text for each of them would be 3 * 2000 * 4000 bytes on average.
    tree: MomentTree[Moment] = MomentTree(SNAPSHOT)
    above = None
    for depth in range(2000):
        for side in "abc":
            tree.insert(Moment(name=f"{side}{depth}", parent_name=above))
        above = f"a{depth}"
    tracemalloc.start()
    lines = sum(1 for _ in draw_tree(tree))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines > 3 * 2000
    assert peak_bytes < 4_000_000


def test_chain_has_no_depth_at_which_it_overflows() -> None:
    # `python -m bench moments` does the same with a million.
    count = 100_000
    chain = [Moment(name=str(at), parent_name=str(at - 1) if at else None) for at in range(count)]
    tree = MomentTree.build(CHECKPOINT, reversed(chain))
    assert tree.current is chain[-1]
    tree.reparent("50000", None)
    assert len(tree.delete("50001", DeleteMode.WITH_CHILDREN).removed) == 49_999
    tree.delete("50000")
    with pytest.raises(MomentError, match="parent 1 would create cycle to 0"):
        tree.reparent("0", "49999")
    assert len(tree.delete("0", DeleteMode.CHILDREN_ONLY).removed) == 49_999
    assert names(tuple(tree)) == ["0"]
    assert tree.current is None


class CountedDict(dict[Any, Any]):
    """A dict that counts how often it is asked."""

    asked = 0

    def __getitem__(self, key: Any) -> Any:
        CountedDict.asked += 1
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        CountedDict.asked += 1
        return super().__contains__(key)


def counted_work(parents: dict[str, str | None]) -> int:
    """Return how often the name index is asked while moments are inserted, redefined, listed and deleted."""
    tree: MomentTree[Moment] = MomentTree(CHECKPOINT)
    tree._moments = CountedDict()
    CountedDict.asked = 0
    for moment in moments(**parents):
        tree.insert(moment)
    for moment in moments(**parents):
        tree.replace(dataclasses.replace(moment, description="again"))
    for chosen in (MomentFilter(), MomentFilter(topological=True, leaves=True), MomentFilter(roots=True)):
        select(tree, chosen)
    for name in list(parents)[1::2]:
        tree.delete(name)
    for root in tree.children():
        tree.delete(root.name or "", DeleteMode.WITH_CHILDREN)
    assert len(tree) == 0
    return CountedDict.asked


@pytest.mark.parametrize("shape", ["chain", "fan", "random"])
def test_work_grows_with_the_number_of_moments_and_not_faster(shape: str) -> None:
    def parents(count: int) -> dict[str, str | None]:
        chance = random.Random(1)
        above: dict[str, Callable[[int], int]] = {
            "chain": lambda at: at - 1,
            "fan": lambda _: 0,
            "random": chance.randrange,
        }
        return {f"m{at}": f"m{above[shape](at)}" if at else None for at in range(count)}

    small, large = counted_work(parents(500)), counted_work(parents(4000))
    assert small > 500
    assert large < 8.5 * small


def test_build_walks_over_each_moment_once() -> None:
    # Whatever comes first: in this order each walk of libvirt's own check would go up to the root.
    assert tree_module._cycles({str(at): str(at - 1) if at else None for at in range(200_000)}) == ()


def test_checkpoint_of_the_model_fits_into_the_tree() -> None:
    tree: MomentTree[Checkpoint] = MomentTree(CHECKPOINT)
    tree.create(Checkpoint(name="a"))
    assert tree.create(Checkpoint(name="b", parent_name="ignored")).parent_name == "a"
    with pytest.raises(MomentError, match="cannot be chosen"):
        tree.redefine(Checkpoint(name="c"), current=True)
