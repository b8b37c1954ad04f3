"""Which of a VM's earlier points a new one can start from: libvirt's list held against the bitmaps in the images.

What libvirt lost is listed again where the bitmaps are there, and what belongs to no point of ours is removed. Names
that do not begin with this repository's own prefix belong to somebody else and are never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from vmkeep.definition import Definition
from vmkeep.errors import VmkeepError
from vmkeep.host.checkpoints.bindings import as_bound
from vmkeep.host.checkpoints.bitmaps import look_at_bitmaps
from vmkeep.host.checkpoints.changes import Checkpoints
from vmkeep.hypervisor import Domain
from vmkeep.logs import get_logger
from vmkeep.planning import Base, BitmapHealth
from vmkeep.planning.bases import base_of, newest_by_disk
from vmkeep.planning.bitmaps import Bitmaps, Chains
from vmkeep.planning.lineage import Lineage, newest_first
from vmkeep.planning.model import KnownPoint
from vmkeep.transfer.imagekey import ImageKey
from vmkeep.values import dataclass

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundBases:
    """What was found and put right. ``dirty_bytes``: of a running VM's sound bitmaps, by checkpoint and target."""

    bases: tuple[Base, ...]
    dirty_bytes: Mapping[str, Mapping[str, int]]
    warnings: tuple[str, ...]


class Bases:
    """Examines one VM. Nothing of it is changed but what is this repository's own."""

    def __init__(
        self,
        domain: Domain,
        definition: Definition,
        chains: Chains,
        *,
        stopped: bool,
        prefix: str,
        points: Sequence[KnownPoint],
        find_point: Callable[[str], KnownPoint | None] = lambda _point_id: None,
        key: Callable[[str], ImageKey | None] = lambda _target: None,
    ) -> None:
        """``points`` are the VM's, newest first. ``find_point`` is asked for one of an id that is not among them.
        ``key`` is asked for what opens a disk of a VM that is off, by target.

        Another installation may keep the same VM in the same repository: before a migration, or on the other host.
        """
        self._domain = domain
        self._definition = definition
        self._stopped = stopped
        self._prefix = prefix
        self._points = {prefix + point.point_id: point for point in points}
        self._find_point = find_point
        self._images = look_at_bitmaps(domain, definition, chains, (), stopped=stopped)
        self._checkpoints = Checkpoints(domain, definition, self._images.chains, stopped=stopped, key=key)
        self._stored = frozenset(bitmap.name for chain in self._images.chains.values() for bitmap in chain[0].bitmaps)
        self._warnings: list[str] = []

    def examine(self) -> FoundBases:
        """Remove left-overs, list lost checkpoints again, and judge every bitmap that may serve as a base."""
        listed = self._domain.checkpoint_names()
        self._find_points(listed)
        self._remove_left_overs(listed)
        # The bitmaps of the newest may be in the memory of QEMU alone.
        newest = {*list(self._points)[:1], *newest_by_disk(self._points, self._images.chains).values()}
        wanted = [name for name in self._points if name in listed or name in self._stored or name in newest]
        lineage = Lineage(self._points)
        lost = [name for name in lineage.in_order(wanted) if name not in listed]
        listed |= {name for name in lost if self._list_again(name, lineage)}
        asked = [name for name in wanted if name in listed]
        bitmaps = self._look(asked)
        told = {str(checkpoint.name): checkpoint.description for checkpoint in self._domain.checkpoints()}
        bases = tuple(
            base_of(as_bound(self._points[name], told.get(name), bitmaps.chains), name, bitmaps, listed=name in listed)
            for name in wanted
        )
        return FoundBases(bases, bitmaps.valid_bytes or {}, tuple(self._warnings))

    def _look(self, names: Collection[str]) -> Bitmaps:
        """Ask libvirt for checkpoints. A disk that grew after a snapshot is taken out of those it cannot answer for.

        libvirt merges the bitmaps of a disk's images to tell of one, and QEMU merges none of different sizes. Nothing
        can be read against such a bitmap any more, and the other disks of the checkpoint stay incremental.
        """
        bitmaps = look_at_bitmaps(self._domain, self._definition, self._images.chains, names, stopped=self._stopped)
        grown = {target for target in bitmaps.chains if bitmaps.grew(target)}
        if not (bitmaps.refused and grown):
            return bitmaps
        for name in bitmaps.refused:
            try:
                self._take_out(name, grown)
            except VmkeepError as error:
                self._warnings.append(f"The checkpoint {name} cannot be used again: {error}")
        return look_at_bitmaps(self._domain, self._definition, self._images.chains, names, stopped=self._stopped)

    def _take_out(self, name: str, targets: Collection[str]) -> None:
        having = self._domain.checkpoint_targets(name)
        if having.issubset(targets):
            self._checkpoints.remove(name)
        else:
            self._checkpoints.narrow(name, having.difference(targets), having.intersection(targets))

    def _find_points(self, listed: frozenset[str]) -> None:
        for name in sorted(self._ours(listed | self._stored) - self._points.keys()):
            point = self._find_point(name.removeprefix(self._prefix))
            if point is not None:
                self._points[name] = point
        self._points = {self._prefix + point.point_id: point for point in newest_first(self._points.values())}

    def _list_again(self, name: str, lineage: Lineage) -> bool:
        """Make libvirt list a checkpoint whose bitmaps are there; False when none of them is sound."""
        candidates = {disk.target for disk in self._points[name].disks} & self._images.chains.keys()
        if self._stopped:
            candidates = {target for target in candidates if self._images.health(name, target) is BitmapHealth.SOUND}
        try:
            others = {str(other.name): other.creation_time for other in self._domain.checkpoints()}
            parent, made = next(iter(lineage.parents(name, others)), None), lineage.creation_time(name)
            return bool(self._checkpoints.list_again(name, candidates, parent=parent, creation_time=made))
        except VmkeepError as error:
            self._warnings.append(f"The checkpoint {name}, which libvirt has lost, cannot be used again: {error}")
            return False

    # -- left-overs --------------------------------------------------------------------------------------------

    def remove_older(self, keep: Collection[str]) -> list[str]:
        """Remove all of ours but ``keep``; return a sentence for each that stays.

        Each older checkpoint costs every write of the guest a bitmap update, so only what is a base is kept.
        """
        try:
            ours = self._ours(self._domain.checkpoint_names() | self._stored)
        except VmkeepError as error:
            return [f"The older checkpoints could not be listed; the next point removes them: {error}"]
        warnings = []
        for name in sorted(ours.difference(keep)):
            try:
                self._checkpoints.remove(name)
            except VmkeepError as error:
                warnings.append(f"The older checkpoint {name} stays until the next point: {error}")
        return warnings

    def _remove_left_overs(self, listed: frozenset[str]) -> None:
        """Remove checkpoints and bitmaps of ours that belong to no point. What cannot be removed is only told."""
        for name in sorted(self._ours(listed) - self._points.keys()):
            self._attempt(f"checkpoint {name}", partial(self._checkpoints.remove, name))
        for name in sorted(self._ours(self._stored) - self._points.keys()):
            self._attempt(f"bitmap {name}", partial(self._checkpoints.remove_bitmaps, name))

    def _attempt(self, what: str, remove: Callable[[], None]) -> None:
        _log.info("left-over", vm=self._domain.name, what=what)
        try:
            remove()
        except VmkeepError as error:
            self._warnings.append(f"The left-over {what} could not be removed: {error}")

    def _ours(self, names: frozenset[str]) -> frozenset[str]:
        return frozenset(name for name in names if name.startswith(self._prefix))
