"""What mends the checkpoints and bitmaps of a VM: a plan of steps, each of them one call that may be repeated. No I/O.

Only ours are touched, and those of others that the user names. What could not be looked at is left, and so is what is
in an image that another VM uses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vmkeep.planning import BitmapHealth
from vmkeep.planning.checkpoint_health import CheckpointFacts, CheckpointHealth, DiskHealth, Role
from vmkeep.planning.lineage import Lineage
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class ListAgain:
    """Make libvirt list a checkpoint of ours that it lost, with those of the bitmaps which it finds sound.

    It is hung from the first of ``parents`` that libvirt lists then.
    """

    checkpoint: str
    targets: tuple[str, ...]
    parents: tuple[str, ...]
    creation_time: int

    def __str__(self) -> str:
        below = f" below {self.parents[0]}" if self.parents else ""
        return f"define the checkpoint {self.checkpoint} again{below}, with {', '.join(self.targets)}"


@dataclass(frozen=True, slots=True)
class Narrow:
    """Take disks out of a checkpoint, and remove the bitmaps that are left in those of ``drop``."""

    checkpoint: str
    keep: tuple[str, ...]
    lose: tuple[str, ...]
    drop: tuple[str, ...]

    def __str__(self) -> str:
        left = f", and remove what is left of its bitmap there ({', '.join(self.drop)})" if self.drop else ""
        return f"take {', '.join(self.lose)} out of the checkpoint {self.checkpoint}{left}"


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a checkpoint of a VM that runs, with its bitmaps."""

    checkpoint: str

    def __str__(self) -> str:
        return f"delete the checkpoint {self.checkpoint} with its bitmaps"


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove libvirt's record of a checkpoint and no bitmap."""

    checkpoint: str

    def __str__(self) -> str:
        return f"remove libvirt's record of the checkpoint {self.checkpoint}"


@dataclass(frozen=True, slots=True)
class DropBitmap:
    """Remove bitmaps that no checkpoint names from the disks of a VM that runs."""

    checkpoint: str
    targets: tuple[str, ...]

    def __str__(self) -> str:
        return f"remove the bitmap {self.checkpoint} from {', '.join(self.targets)}"


@dataclass(frozen=True, slots=True)
class RemoveBitmap:
    """Remove a bitmap that no checkpoint names from an image of a VM that is off."""

    checkpoint: str
    target: str
    image: str

    def __str__(self) -> str:
        return f"remove the bitmap {self.checkpoint} from {self.target}, image {self.image}"


@dataclass(frozen=True, slots=True)
class Hang:
    """Make libvirt list a checkpoint of ours below the one of the point that it descends from, if it lists that."""

    checkpoint: str
    parent: str

    def __str__(self) -> str:
        return f"make {self.parent} the parent of the checkpoint {self.checkpoint}"


RepairStep = ListAgain | Narrow | Delete | Forget | DropBitmap | RemoveBitmap | Hang


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """What would be done, in this order, and what is left as it is, each with the reason."""

    steps: tuple[RepairStep, ...]
    left: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "steps": [{"checkpoint": step.checkpoint, "does": str(step)} for step in self.steps],
            "left": list(self.left),
        }


def plan_repair(
    facts: CheckpointFacts,
    judged: tuple[CheckpointHealth, ...],
    *,
    foreign: frozenset[str] = frozenset(),
    refused_bitmaps: frozenset[tuple[str, str]] = frozenset(),
) -> RepairPlan:
    """Return what mends the checkpoints of ours, and of others those that are named.

    ``refused_bitmaps``, by checkpoint and disk: libvirt refused them when their checkpoint was defined again.
    """
    planned = _Planned(facts, foreign, refused_bitmaps)
    for checkpoint in judged:
        planned.mend(checkpoint)
    planned.list_lost()
    planned.hang()
    return RepairPlan((*planned.removals, *planned.narrowed, *planned.additions), tuple(planned.left))


class _Planned:
    """A plan that grows. Removals come first: what is listed again must not meet what is in its way."""

    def __init__(
        self, facts: CheckpointFacts, foreign: frozenset[str], refused_bitmaps: frozenset[tuple[str, str]]
    ) -> None:
        self._facts = facts
        self._foreign = foreign
        self._hopeless = refused_bitmaps
        self._lineage = Lineage(facts.points)
        self._lost: dict[str, tuple[str, ...]] = {}
        self._gone: set[str] = set()
        self.removals: list[RepairStep] = []
        self.narrowed: list[RepairStep] = []
        self.additions: list[RepairStep] = []
        self.left: list[str] = []

    def mend(self, judged: CheckpointHealth) -> None:
        """Plan what one checkpoint, or the bitmaps of one name, need."""
        if judged.standing is Role.FOREIGN and judged.name not in self._foreign:
            return
        if judged.standing is Role.UNKNOWN:
            self.left.append(f"{judged.name} stays: whether its point exists could not be told")
            return
        why_unknown = self._facts.bitmaps.why_unknown
        unseen = [disk for disk in judged.disks if disk.bitmap is BitmapHealth.UNKNOWN and why_unknown(disk.target)]
        if unseen:
            self.left.append(
                f"{judged.name} stays: of disk {unseen[0].target} nothing is known: {why_unknown(unseen[0].target)}"
            )
            return
        if not judged.listed:
            self._mend_unlisted(judged)
        elif self._has_served(judged):
            self._delete(judged)
        else:
            self._narrow(judged)

    def _mend_unlisted(self, judged: CheckpointHealth) -> None:
        """List again what the next point could be read against; nobody needs the other bitmaps of the name."""
        usable: tuple[str, ...] = ()
        if judged.standing is Role.BASE:
            usable = tuple(disk.target for disk in judged.disks if self._may_be_sound(judged.name, disk))
        if usable:
            self._lost[judged.name] = usable
        ours = judged.standing is not Role.FOREIGN and judged.standing is not Role.LEFT_OVER
        spare = [disk for disk in judged.disks if disk.target not in usable]
        self._remove_bitmaps(judged.name, [disk for disk in spare if not (ours and self._is_hoped_for(disk.target))])

    def _is_hoped_for(self, target: str) -> bool:
        """Tell whether a disk's base is only hoped to be sound: until libvirt says so, older ones may be needed."""
        base = self._facts.bases.get(target)
        return base is not None and self._facts.bitmaps.running and base not in self._facts.listed

    def _may_be_sound(self, name: str, disk: DiskHealth) -> bool:
        if (name, disk.target) in self._hopeless:
            return False
        if self._facts.bitmaps.running:
            return True  # libvirt proves it
        return self._facts.bitmaps.health(name, disk.target) is BitmapHealth.SOUND

    def _has_served(self, judged: CheckpointHealth) -> bool:
        """Return whether a listed checkpoint is of no use any more.

        One of ours is when its point is gone, or each disk in which it is sound has a newer base. One of somebody else
        is when it is sound in no disk.
        """
        sound = [disk.target for disk in judged.disks if disk.listed and disk.bitmap is BitmapHealth.SOUND]
        if judged.standing is Role.LEFT_OVER:
            return True
        if judged.standing is Role.BASE or any(disk.absent for disk in judged.disks):
            return False
        if judged.standing is Role.FOREIGN:
            return not sound
        return all(target in self._facts.bases and not self._is_hoped_for(target) for target in sound)

    def _narrow(self, judged: CheckpointHealth) -> None:
        """Take the disks out in which a checkpoint is broken, so that the rest of it can be used and deleted."""
        bases = self._facts.bases
        keep: list[DiskHealth] = []
        lose: list[DiskHealth] = []
        for disk in judged.disks:
            sound = disk.bitmap is BitmapHealth.SOUND or disk.absent
            found_again = not disk.listed and sound and bases.get(disk.target) == judged.name
            (keep if (disk.listed and sound) or found_again else lose).append(disk)
        drop = [disk for disk in lose if disk.images and not self._is_shared(judged.name, disk)]
        lose = [disk for disk in lose if disk.listed or disk in drop]
        if lose or not all(disk.listed for disk in keep):
            targets = (tuple(disk.target for disk in disks) for disks in (keep, lose, drop))
            self.narrowed.append(Narrow(judged.name, *targets))
        elif judged.standing is Role.FOREIGN:
            self.left.append(f"{judged.name} stays: it is sound; `virsh checkpoint-delete` deletes it")

    def _delete(self, judged: CheckpointHealth) -> None:
        self._gone.add(judged.name)
        shared = [disk for disk in judged.disks if self._is_shared(judged.name, disk)]
        if self._facts.bitmaps.running and not shared:
            self.removals.append(Delete(judged.name))
            return
        self.removals.append(Forget(judged.name))
        self._remove_bitmaps(judged.name, list(judged.disks), told=shared)

    def _is_shared(self, name: str, disk: DiskHealth) -> bool:
        """Tell whether another VM uses an image with the bitmap, and say so."""
        used = next((path for path in disk.images if path in self._facts.shared), None)
        if used is None:
            return False
        user = self._facts.shared[used]
        self.left.append(f"the bitmap {name} in {used} (disk {disk.target}) stays: VM {user} uses that image too")
        return True

    def _remove_bitmaps(self, name: str, disks: list[DiskHealth], told: list[DiskHealth] | None = None) -> None:
        running = self._facts.bitmaps.running
        whole = []
        for disk in disks:
            shared = disk in told if told is not None else self._is_shared(name, disk)
            if running and disk.images and not shared:
                whole.append(disk.target)  # libvirt removes it from every image of the chain
            elif not running:
                free = [path for path in disk.images if path not in self._facts.shared]
                self.removals += [RemoveBitmap(name, disk.target, path) for path in free]
        if whole:
            self.removals.append(DropBitmap(name, tuple(whole)))

    # -- relations ---------------------------------------------------------------------------------------------

    def list_lost(self) -> None:
        """Plan to list again what was lost, those first that others descend from."""
        listed = self._listed()
        for name in self._lineage.in_order(self._lost):
            made = self._lineage.creation_time(name)
            self.additions.append(ListAgain(name, self._lost[name], self._lineage.parents(name, listed), made))
            listed[name] = made

    def hang(self) -> None:
        """Plan to hang checkpoints of ours from the lost ones that they descend from."""
        listed = {**self._listed(), **{name: self._lineage.creation_time(name) for name in self._lost}}
        for name in self._lineage.in_order([name for name in self._listed() if name in self._facts.points]):
            parent = next((above for above in self._lineage.ancestors(name) if above in listed), None)
            if parent is not None and self._hangs_free(name):
                self.additions.append(Hang(name, parent))

    def _hangs_free(self, name: str) -> bool:
        """Tell whether libvirt lists a checkpoint as a root: below another one it was put on purpose."""
        above = self._facts.listed[name].parent_name
        return above is None or above not in self._facts.listed or above in self._gone

    def _listed(self) -> dict[str, int]:
        listed: Mapping[str, Any] = self._facts.listed
        return {name: listed[name].creation_time for name in listed if name not in self._gone}
