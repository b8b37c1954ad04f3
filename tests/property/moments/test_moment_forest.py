"""Laws of the forest of moments, also while its relations are broken."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.moments import DeleteMode, Moment, MomentError, MomentFilter, MomentKind, MomentTree, draw_tree, select

NAMES = st.sampled_from("abCDe")
PARENTS = st.none() | NAMES
FORESTS = st.dictionaries(NAMES, PARENTS).map(
    lambda parents: [Moment(name=name, parent_name=parent) for name, parent in parents.items()]
)
Change = Callable[[MomentTree[Moment]], object]
CHANGES: st.SearchStrategy[Change] = st.one_of(
    st.builds(lambda name: lambda tree: tree.create(Moment(name=name)), NAMES),
    st.builds(lambda name, above: lambda tree: tree.redefine(Moment(name=name, parent_name=above)), NAMES, PARENTS),
    st.builds(lambda name, above: lambda tree: tree.reparent(name, above), NAMES, PARENTS),
    st.builds(lambda name, mode: lambda tree: tree.delete(name, mode), NAMES, st.sampled_from(DeleteMode)),
    st.builds(lambda name: lambda tree: tree.revert(name), NAMES),
)


def seen(tree: MomentTree[Moment]) -> object:
    """Return what does not depend on how a tree came about."""
    parents = {moment.name: tree.parent(moment.name or "") for moment in tree}
    return parents, list(tree.descendants()), {moment.name: moment for moment in tree}, tree.broken


@given(st.sampled_from(MomentKind), FORESTS, st.lists(CHANGES, max_size=8), st.randoms(use_true_random=False))
def test_changed_tree_is_the_one_that_its_moments_build(
    kind: MomentKind, moments: list[Moment], changes: list[Change], chance: random.Random
) -> None:
    tree = MomentTree.build(kind, moments)
    for change in changes:
        before = (seen(tree), tree.current)
        try:
            change(tree)
        except MomentError:
            assert (seen(tree), tree.current) == before, "a call that raises changed nothing"
        shuffled = list(tree)
        chance.shuffle(shuffled)
        assert seen(tree) == seen(MomentTree.build(kind, shuffled))
        assert len(list(tree.descendants())) == len(tree)
        assert tree.current is None or tree.current is tree.find(tree.current.name or "")


@given(FORESTS, st.lists(CHANGES, max_size=4))
def test_no_change_breaks_what_is_sound(moments: list[Moment], changes: list[Change]) -> None:
    tree = MomentTree.build(MomentKind.SNAPSHOT, moments)
    faults = len(tree.broken.missing) + len(tree.broken.cycles)
    for change in changes:
        with contextlib.suppress(MomentError):
            change(tree)
        if not faults:
            assert not tree.broken
        faults = len(tree.broken.missing) + len(tree.broken.cycles)


@given(FORESTS)
def test_each_moment_is_drawn_once_and_is_a_leaf_or_none(moments: list[Moment]) -> None:
    tree = MomentTree.build(MomentKind.CHECKPOINT, moments)
    drawn = [line.rpartition(" ")[2] for line in draw_tree(tree)]
    assert sorted(name for name in drawn if name not in {"", "|"}) == sorted(moment.name or "" for moment in moments)
    leaves, others = select(tree, MomentFilter(leaves=True)), select(tree, MomentFilter(no_leaves=True))
    assert {*leaves, *others} == set(moments)
    assert not {*leaves} & {*others}
