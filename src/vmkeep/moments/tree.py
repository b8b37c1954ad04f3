"""The forest of a domain's checkpoints, or of its snapshots.

One tree for both kinds, as libvirt keeps one list of moments: a name index, a root above all roots that has no
moment (``None`` here), and the current moment, which the next one that is created gets as its parent. Errors
have libvirt's number and begin with libvirt's words. Where this tree and libvirt 9.0 differ is listed in
docs/internals/moments-tree.md; tests/contract/moments drives both with the same calls.

Nothing recurses, so that the depth of a forest has no limit of its own. A call that raises changed nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import Field
from enum import StrEnum
from typing import Any, ClassVar, Final, Generic, Protocol, TypeVar

from vmkeep.moments.errors import LibvirtError, MomentError
from vmkeep.values import dataclass


class MomentKind(StrEnum):
    """Which of a domain's two lists of moments; the values are what libvirt calls them in its messages."""

    CHECKPOINT = "checkpoint"
    SNAPSHOT = "snapshot"


class DeleteMode(StrEnum):
    """What goes when a moment is deleted."""

    ALONE = "alone"
    """The moment; its children become children of its parent."""
    WITH_CHILDREN = "with-children"
    """The moment and all that descends from it."""
    CHILDREN_ONLY = "children-only"
    """What descends from it; the moment stays."""


class NamedMoment(Protocol):
    """What the tree needs of a moment: a frozen dataclass with these fields."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str | None: ...
    @property
    def parent_name(self) -> str | None: ...


M = TypeVar("M", bound=NamedMoment)


@dataclass(frozen=True, slots=True)
class MissingParent:
    """A moment whose parent is not there; it is a root meanwhile."""

    name: str
    parent_name: str


@dataclass(frozen=True, slots=True)
class BrokenRelations:
    """All that keeps a set of moments from being a forest, the same for any order they came in; false when sound.

    ``missing`` is sorted by name. Each of ``cycles`` begins with its smallest name, which is a root meanwhile,
    and goes on from each moment to its parent; they are sorted as well.
    """

    missing: tuple[MissingParent, ...] = ()
    cycles: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.cycles)

    def __str__(self) -> str:
        missing = [f"parent {fault.parent_name} of {fault.name} is missing" for fault in self.missing]
        cycles = [
            f"the parents of {cycle[0]} lead back to it: {' -> '.join((*cycle, cycle[0]))}" for cycle in self.cycles
        ]
        return "; ".join((*missing, *cycles))


@dataclass(frozen=True, slots=True)
class Deletion(Generic[M]):
    """What a deletion did: the moments that went, and as they are now those that got another parent.

    ``removed`` is in libvirt's order: what descends from the moment, parents first, and then the moment itself.
    """

    removed: tuple[M, ...]
    moved: tuple[M, ...]


_ASCII_LOWER: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def name_order(name: str) -> tuple[str, str]:
    """Return what moments are sorted by: their names as virsh compares them, and equal ones by code points.

    virsh ignores the case of ASCII letters only (strcasecmp in a UTF-8 locale).
    """
    return (name.lower() if name.isascii() else name.translate(_ASCII_LOWER), name)


class MomentTree(Generic[M]):
    """The moments of one kind that a domain has. Siblings are in the order of ``name_order``.

    A moment whose parent is missing, or the one of a cycle with the smallest name, is a root until what is wrong
    with it is put right; ``broken`` names all of them. Creating, redefining, moving and deleting take time in
    proportion to the moments they change, except for a walk up from the new parent of a moment that has children;
    while ``broken`` is not empty each of them links all moments again.
    """

    def __init__(self, kind: MomentKind) -> None:
        self.kind = MomentKind(kind)
        self.broken = BrokenRelations()
        self._moments: dict[str, M] = {}
        self._parents: dict[str, str | None] = {}
        # Of moments that have children only. A dict is a set here that is left in the order of insertion.
        self._children: dict[str | None, dict[str, None]] = {}
        self._current: str | None = None

    @classmethod
    def build(cls, kind: MomentKind, moments: Iterable[M], *, current: str | None = None) -> MomentTree[M]:
        """Return the tree of moments that come in any order, in time proportional to their number.

        As when libvirt loads them: there is no current moment while relations are broken, and the current
        checkpoint, which libvirt records nowhere, is the only leaf of a forest without a branch. Raises MomentError
        for two of one name, one without a name, and a current one that is not among them.
        """
        tree = cls(kind)
        for moment in moments:
            name = _name_of(moment)
            if name in tree._moments:
                raise _exists(name)
            tree._moments[name] = moment
        if current is not None:
            tree.find(current)
        tree._link_all()
        if tree.broken:
            return tree
        tree._current = current
        if current is None and tree.kind is MomentKind.CHECKPOINT:
            tree._current = tree._sole_leaf()
        return tree

    def __len__(self) -> int:
        return len(self._moments)

    def __iter__(self) -> Iterator[M]:
        """Yield all moments, in no order that means anything."""
        return iter(self._moments.values())

    def __contains__(self, name: object) -> bool:
        return name in self._moments

    @property
    def current(self) -> M | None:
        return None if self._current is None else self._moments[self._current]

    def find(self, name: str) -> M:
        """Return the moment of that name. Raises MomentError with libvirt's number for one that is not there."""
        if name in self._moments:
            return self._moments[name]
        unknown = {
            MomentKind.CHECKPOINT: LibvirtError.VIR_ERR_NO_DOMAIN_CHECKPOINT,
            MomentKind.SNAPSHOT: LibvirtError.VIR_ERR_NO_DOMAIN_SNAPSHOT,
        }
        raise MomentError(unknown[self.kind], "name", f"no domain {self.kind} with matching name '{name}'")

    def parent(self, name: str) -> M | None:
        """Return what the moment hangs from, None for a root, whatever parent it names."""
        self.find(name)
        above = self._parents[name]
        return None if above is None else self._moments[above]

    def children(self, name: str | None = None) -> tuple[M, ...]:
        """Return the children of a moment, of None the roots."""
        if name is not None:
            self.find(name)
        return tuple(self._moments[child] for child in self._ordered_children(name))

    def has_children(self, name: str) -> bool:
        self.find(name)
        return name in self._children

    def descendants(self, name: str | None = None) -> Iterator[M]:
        """Yield what descends from a moment, of None all moments: each before its children, siblings in order."""
        if name is not None:
            self.find(name)
        waiting = self._ordered_children(name)[::-1]
        while waiting:
            below = waiting.pop()
            yield self._moments[below]
            if below in self._children:
                waiting += self._ordered_children(below)[::-1]

    def demand_sound(self) -> None:
        """Raise MomentError with all that is broken, under the number that libvirt has for it; else do nothing."""
        if self.broken:
            words = f"{self.kind.capitalize()}s have inconsistent relations: {self.broken}"
            raise MomentError(LibvirtError.VIR_ERR_INTERNAL_ERROR, "parent", words)

    def create(self, moment: M) -> M:
        """Add a new moment below the current one, whatever parent it names, make it current, and return it."""
        name = _name_of(moment)
        if name in self._moments:
            raise _exists(name)
        stored = dataclasses.replace(moment, parent_name=self._current)
        self._check_parent(name, self._current)
        self._put(name, stored)
        self._current = name
        return stored

    def insert(self, moment: M, *, current: bool = False) -> None:
        """Redefine a moment whose name must be new."""
        if _name_of(moment) in self._moments:
            raise _exists(_name_of(moment))
        self.redefine(moment, current=current)

    def replace(self, moment: M, *, current: bool = False) -> None:
        """Redefine a moment that must be there; its children stay."""
        self.find(_name_of(moment))
        self.redefine(moment, current=current)

    def redefine(self, moment: M, *, current: bool = False) -> None:
        """Add a moment below the parent it names, or put it in the place of the one of that name.

        A snapshot becomes current when ``current`` says so, a checkpoint when its parent is current or nothing is:
        that is how libvirt finds the current checkpoint while they are replayed parents first. Raises MomentError
        for a parent that is the moment itself, that is not there, or that descends from it.
        """
        name = _name_of(moment)
        if current and self.kind is MomentKind.CHECKPOINT:
            words = "the current checkpoint cannot be chosen; it follows from the order in which they are redefined"
            raise MomentError(LibvirtError.VIR_ERR_INVALID_ARG, "name", words)
        self._check_parent(name, moment.parent_name)
        self._put(name, moment)
        if self.kind is MomentKind.CHECKPOINT:
            current = self._current is None or moment.parent_name == self._current
        if current:
            self._current = name

    def reparent(self, name: str, parent_name: str | None) -> M:
        """Move a moment with all that descends from it below another, or to the roots; the current one stays."""
        stored = dataclasses.replace(self.find(name), parent_name=parent_name)
        self._check_parent(name, parent_name)
        self._put(name, stored)
        return stored

    def revert(self, name: str) -> None:
        """Make a moment the current one, as going back to a snapshot does."""
        self.find(name)
        self._current = name

    def delete(self, name: str, mode: DeleteMode = DeleteMode.ALONE) -> Deletion[M]:
        """Delete a moment, what descends from it, or both.

        When the current one goes, the nearest moment above it that stays becomes current, and none does when that
        would be above the roots.
        """
        moment = self.find(name)
        mode = DeleteMode(mode)
        above = self._parents[name]
        moved: tuple[M, ...] = ()
        removed = () if mode is DeleteMode.ALONE else tuple(self.descendants(name))
        if mode is DeleteMode.ALONE:
            moved = tuple(dataclasses.replace(child, parent_name=above) for child in self.children(name))
        if mode is not DeleteMode.CHILDREN_ONLY:
            removed = (*removed, moment)
        # Nothing below can fail.
        self._forget(removed, heir=name if mode is DeleteMode.CHILDREN_ONLY else above)
        for child in moved:
            child_name = _name_of(child)
            self._moments[child_name] = child
            self._link(child_name, above)
        if self.broken:
            self._link_all()
        return Deletion(removed, moved)

    def _forget(self, removed: tuple[M, ...], heir: str | None) -> None:
        for name in map(_name_of, removed):
            self._unlink(name)
            self._children.pop(name, None)
            del self._moments[name], self._parents[name]
            if name == self._current:
                self._current = heir

    def _put(self, name: str, moment: M) -> None:
        if name in self._moments:
            self._unlink(name)
        self._moments[name] = moment
        if self.broken:
            self._link_all()
        else:
            self._link(name, moment.parent_name)

    def _link(self, name: str, above: str | None) -> None:
        self._parents[name] = above
        self._children.setdefault(above, {})[name] = None

    def _unlink(self, name: str) -> None:
        above = self._parents[name]
        siblings = self._children.get(above)
        if siblings is None:  # the parent went before
            return
        siblings.pop(name, None)
        if not siblings:
            del self._children[above]

    def _ordered_children(self, name: str | None) -> list[str]:
        children = self._children.get(name, ())
        return sorted(children, key=name_order) if len(children) > 1 else list(children)

    def _sole_leaf(self) -> str | None:
        leaf: str | None = None
        while len(below := self._children.get(leaf, {})) == 1:
            leaf = next(iter(below))
        return None if below else leaf

    def _check_parent(self, name: str, parent_name: str | None) -> None:
        """Raise MomentError unless a moment of that name may hang from the parent."""
        if parent_name is None:
            return
        if parent_name == name:
            raise _bad_parent(f"cannot set moment {name} as its own parent")
        if parent_name not in self._moments:
            raise _bad_parent(f"parent {parent_name} for moment {name} not found")
        if not self.broken and (name not in self._children or self._parents[name] == parent_name):
            return  # nothing descends from it, or its place stays the same
        # By the names that the moments hold and not by the links: the parent that a root misses may come back.
        walked: set[str] = set()
        above: str | None = parent_name
        while above in self._moments and above not in walked:
            walked.add(above)
            further = self._moments[above].parent_name
            if further == name:
                raise _bad_parent(f"parent {above} would create cycle to {name}")
            above = further

    def _link_all(self) -> None:
        """Link all moments again, by the names of their parents."""
        parents: dict[str, str | None] = {}
        missing: list[MissingParent] = []
        for name, moment in self._moments.items():
            above = moment.parent_name
            if above is not None and above not in self._moments:
                missing.append(MissingParent(name, above))
                above = None
            parents[name] = above
        cycles = _cycles(parents)
        for cycle in cycles:
            parents[cycle[0]] = None
        self.broken = BrokenRelations(tuple(sorted(missing, key=lambda fault: fault.name)), cycles)
        children: dict[str | None, dict[str, None]] = {}
        for name, above in parents.items():
            if above in children:
                children[above][name] = None
            else:
                children[above] = {name: None}
        self._parents, self._children = parents, children


def _cycles(parents: dict[str, str | None]) -> tuple[tuple[str, ...], ...]:
    """Return the cycles among links to parents, in O(n): each moment is walked over once."""
    cycles: list[tuple[str, ...]] = []
    walked: dict[str, str] = {}  # each moment, with the one that the walk over it began at
    for start in parents:
        above: str | None = start
        while above is not None and above not in walked:
            walked[above] = start
            above = parents[above]
        if above is None or walked[above] != start:
            continue
        cycle = [above]
        while (further := parents[cycle[-1]]) is not None and further != above:
            cycle.append(further)
        smallest = cycle.index(min(cycle))
        cycles.append((*cycle[smallest:], *cycle[:smallest]))
    return tuple(sorted(cycles))


def _name_of(moment: NamedMoment) -> str:
    if moment.name is None:
        raise MomentError(LibvirtError.VIR_ERR_XML_ERROR, "name", "a moment in a tree must have a name")
    return moment.name


def _exists(name: str) -> MomentError:
    return MomentError(LibvirtError.VIR_ERR_OPERATION_FAILED, "name", f"domain moment {name} already exists")


def _bad_parent(words: str) -> MomentError:
    return MomentError(LibvirtError.VIR_ERR_INVALID_ARG, "parent", words)
