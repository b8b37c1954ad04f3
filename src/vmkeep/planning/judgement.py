"""Which checkpoints and bitmaps of ours a VM still needs, and which are left over. No I/O.

Each disk is read against the newest checkpoint whose bitmap in it is sound (``vmkeep.planning.bases``); what is that
of no disk is left over. A bitmap whose point exists but whose checkpoint libvirt has lost is none as long as nothing
newer replaces it, because the next backup can list it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vmkeep.planning import BitmapHealth
from vmkeep.planning.bitmaps import Bitmaps
from vmkeep.values import dataclass


def sound_targets(bitmaps: Bitmaps, name: str, targets: Collection[str]) -> frozenset[str]:
    """Return in which of a checkpoint's disks its bitmap can be a base now."""
    return frozenset(target for target in targets if bitmaps.health(name, target) is BitmapHealth.SOUND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The checkpoints and bitmaps of a VM, judged. No I/O.

    ``points`` are the ids of the VM's points, newest first; ``checkpoints`` the disks of each that libvirt lists;
    ``bitmaps`` the names in each disk's top image; ``sound`` the disks in which each checkpoint can be a base.
    ``others`` are points that another installation took into the same repository: theirs are never left over.
    """

    prefix: str
    points: tuple[str, ...]
    checkpoints: Mapping[str, frozenset[str]]
    bitmaps: Mapping[str, frozenset[str]]
    sound: Mapping[str, frozenset[str]]
    others: frozenset[str] = frozenset()

    def _of_points(self) -> list[str]:
        """Return the names that the points' checkpoints have, newest first."""
        return [self.prefix + point for point in self.points]

    def _ours(self, names: Collection[str]) -> frozenset[str]:
        ours = (name for name in names if name.startswith(self.prefix))
        return frozenset(name for name in ours if name.removeprefix(self.prefix) not in self.others)

    def bases(self) -> dict[str, str]:
        """Return the checkpoint that each disk is read against next: its newest sound one, else its newest."""
        found: dict[str, str] = {}
        listed = [name for name in self._of_points() if name in self.checkpoints]
        for targets in (self.sound, self.checkpoints):
            for name in listed:
                for target in targets.get(name, frozenset()):
                    found.setdefault(target, name)
        return found

    def left_checkpoints(self) -> list[str]:
        """Return the checkpoints of ours that belong to no point."""
        return sorted(self._ours(self.checkpoints.keys()) - set(self._of_points()))

    def old_checkpoints(self) -> list[str]:
        """Return the checkpoints of points that are the base of no disk."""
        listed = self._ours(self.checkpoints.keys()) & set(self._of_points())
        return sorted(listed - set(self.bases().values()))

    def left_bitmaps(self) -> dict[str, frozenset[str]]:
        """Return the bitmaps of ours that no checkpoint names and no point can use, with the disks they are in.

        That of a point is one that a newer base replaces in its disk.
        """
        bases = self.bases()
        rank = {name: number for number, name in enumerate(self._of_points())}
        found: dict[str, set[str]] = {}
        for target, names in self.bitmaps.items():
            base = bases.get(target)
            usable = base is not None and target in self.sound.get(base, frozenset())
            for name in self._ours(names):
                if name in self.checkpoints:
                    continue
                replaced = base is not None and usable and rank.get(name, -1) > rank[base]
                if name not in rank or replaced:
                    found.setdefault(name, set()).add(target)
        return {name: frozenset(targets) for name, targets in sorted(found.items())}

    def unlisted(self) -> dict[str, frozenset[str]]:
        """Return the bitmaps of points whose checkpoint libvirt does not list, but for those that are replaced."""
        left = self.left_bitmaps()
        found: dict[str, set[str]] = {}
        for target, names in self.bitmaps.items():
            for name in names & set(self._of_points()):
                if name not in self.checkpoints and target not in left.get(name, frozenset()):
                    found.setdefault(name, set()).add(target)
        return {name: frozenset(targets) for name, targets in sorted(found.items())}

    def unsound(self) -> dict[str, str]:
        """Return the disks whose newest checkpoint cannot be a base, and neither an older one, with its name."""
        return {
            target: name
            for target, name in sorted(self.bases().items())
            if target not in self.sound.get(name, frozenset())
        }
