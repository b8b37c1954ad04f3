"""Which moments of a tree are asked for: the filters of libvirt's lists.

Their meaning is that of libvirt 9.0, as its test driver answers. Filters of one group widen each other (``active`` and
``disk_only``: either), different groups narrow each other (``roots`` and ``leaves``: roots without children), and
a group with nothing chosen, or with all of it, does not filter. ``leaves`` and ``no_leaves`` together are the
exception: libvirt finds nothing then, against its manual, and so does this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Final, Protocol, cast

from vmkeep.moments.errors import LibvirtError, MomentError
from vmkeep.moments.tree import M, MomentKind, MomentTree, name_order
from vmkeep.values import dataclass


class _Located(Protocol):
    @property
    def location(self) -> str: ...


class _Snapshot(Protocol):
    """What the filters for snapshots look at."""

    @property
    def state(self) -> str | None: ...
    @property
    def memory(self) -> _Located | None: ...
    @property
    def disks(self) -> Sequence[_Located]: ...


_ROOTS_OR_DESCENDANTS: Final = 1
_FLAGS: Final[dict[MomentKind, dict[str, int]]] = {
    MomentKind.CHECKPOINT: {"topological": 2, "leaves": 4, "no_leaves": 8},
    MomentKind.SNAPSHOT: {
        "metadata": 2,
        "leaves": 4,
        "no_leaves": 8,
        "no_metadata": 16,
        "inactive": 32,
        "active": 64,
        "disk_only": 128,
        "internal": 256,
        "external": 512,
        "topological": 1024,
    },
}
"""The bits of virDomainListAllCheckpoints and virDomainListAllSnapshots, and of the lists of children."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentFilter:
    """A choice of moments. Nothing chosen means all of them, in the order of their names.

    ``start`` is a name: its children are asked for, with ``descendants`` all that descends from it, and never the
    moment itself. ``roots`` has no start, and ``descendants`` needs one: libvirt has one bit for both.
    ``topological`` puts each moment before what descends from it, siblings by name. From ``metadata`` to
    ``external`` the filters are for snapshots only. Raises MomentError when the filter is made wrong.
    """

    start: str | None = None
    roots: bool = False
    descendants: bool = False
    leaves: bool = False
    no_leaves: bool = False
    metadata: bool = False
    no_metadata: bool = False
    inactive: bool = False
    active: bool = False
    disk_only: bool = False
    internal: bool = False
    external: bool = False
    topological: bool = False

    def __post_init__(self) -> None:
        if self.roots and self.start is not None:
            raise _wrong("roots", f"roots do not hang from a moment; ask for all roots or start from {self.start}")
        if self.descendants and self.start is None:
            raise _wrong("descendants", "descendants need a moment to start from")

    @classmethod
    def from_flags(cls, kind: MomentKind, flags: int, start: str | None = None) -> MomentFilter:
        """Return the filter that libvirt's flags stand for, of a list of children when there is a start."""
        known = _FLAGS[kind]
        if unsupported := flags & ~(sum(known.values()) | _ROOTS_OR_DESCENDANTS):
            raise _wrong("flags", f"unsupported flags (0x{unsupported:x}) in a list of {kind}s")
        chosen = {name: bool(flags & bit) for name, bit in known.items()}
        chosen["roots" if start is None else "descendants"] = bool(flags & _ROOTS_OR_DESCENDANTS)
        return cls(start=start, **chosen)

    def flags(self, kind: MomentKind) -> int:
        """Return libvirt's flags for this filter. Raises MomentError for a filter that the kind does not have."""
        known = _FLAGS[kind] | {"roots": _ROOTS_OR_DESCENDANTS, "descendants": _ROOTS_OR_DESCENDANTS}
        flags = 0
        for field in fields(self):
            if field.name == "start" or not getattr(self, field.name):
                continue
            if field.name not in known:
                raise _wrong(field.name, f"{field.name.replace('_', '-')} is no filter for {kind}s")
            flags |= known[field.name]
        return flags


def select(tree: MomentTree[M], wanted: MomentFilter) -> tuple[M, ...]:
    """Return the moments of a tree that a filter asks for, in its order.

    Raises MomentError for a start that is not there, and for a filter that the tree's kind does not have.
    """
    wanted.flags(tree.kind)  # raises for what the kind does not have
    kept = tuple(moment for moment in _candidates(tree, wanted) if _is_wanted(tree, wanted, moment))
    if wanted.topological:
        return kept
    return tuple(sorted(kept, key=lambda moment: name_order(moment.name or "")))


def _candidates(tree: MomentTree[M], wanted: MomentFilter) -> Sequence[M]:
    if wanted.roots or (wanted.start is not None and not wanted.descendants):
        return tree.children(wanted.start)
    if wanted.topological or wanted.start is not None:
        return tuple(tree.descendants(wanted.start))
    return tuple(tree)


def _is_wanted(tree: MomentTree[M], wanted: MomentFilter, moment: M) -> bool:
    if wanted.leaves or wanted.no_leaves:
        has_children = tree.has_children(moment.name or "")
        if (wanted.leaves and has_children) or (wanted.no_leaves and not has_children):
            return False
    if tree.kind is MomentKind.CHECKPOINT:
        return True
    if wanted.no_metadata and not wanted.metadata:
        return False  # what libvirt lists is known to it by its metadata, and nothing else is
    snapshot = cast("_Snapshot", moment)
    return _has_wanted_state(wanted, snapshot) and _has_wanted_location(wanted, snapshot)


def _has_wanted_state(wanted: MomentFilter, snapshot: _Snapshot) -> bool:
    if not (wanted.inactive or wanted.active or wanted.disk_only):
        return True
    if snapshot.state == "shutoff":
        return wanted.inactive
    if snapshot.state == "disk-snapshot":
        return wanted.disk_only
    return wanted.active


def _has_wanted_location(wanted: MomentFilter, snapshot: _Snapshot) -> bool:
    if wanted.internal == wanted.external:
        return True
    memory = () if snapshot.memory is None else (snapshot.memory,)
    return wanted.external == any(part.location == "external" for part in (*memory, *snapshot.disks))


def _wrong(element: str, words: str) -> MomentError:
    return MomentError(LibvirtError.VIR_ERR_INVALID_ARG, element, words)
