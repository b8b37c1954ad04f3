"""What a check-up says of a VM's checkpoints and bitmaps, by the judgement of ``checkpoint health``. No I/O.

What is called left over is what a repair would remove, and what mends it are the steps of that repair: two judgements
that disagreed would have the one remove what the other needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from vmkeep.host.checkpoints.health import Surveyed
from vmkeep.host.tasks.checkup import Finding, FindingCode, MendCheckpoint
from vmkeep.planning.checkpoint_health import CheckpointFacts, CheckpointHealth, Health, Role
from vmkeep.planning.checkpoint_repair import Delete, DropBitmap, Forget, ListAgain, RemoveBitmap, RepairStep


def checkpoint_findings(vm: str, vm_uuid: str, surveyed: Surveyed) -> Iterator[Finding]:
    """Yield what there is to say of the checkpoints of ours."""
    finding = partial(Finding, vm=vm)
    unsound = _unsound(surveyed)
    for judged in surveyed.judged:
        steps = _removals(surveyed, judged.name)
        mend = MendCheckpoint(vm_uuid, steps) if steps else None
        if judged.listed:
            if judged.standing is Role.LEFT_OVER:
                message = f"the checkpoint {judged.name} belongs to no point"
                yield finding(FindingCode.LEFT_CHECKPOINT, message, mend=mend)
            elif judged.standing is Role.REPLACED and steps and judged.name not in unsound.values():
                message = (
                    f"the checkpoint {judged.name} is the base of no disk any more, and costs each write of the guest "
                    "time"
                )
                yield finding(FindingCode.OLD_CHECKPOINT, message, mend=mend)
        elif targets := _left_in(surveyed, judged, steps):
            message = f"the image of disk {', '.join(targets)} has the bitmap {judged.name}, which nothing needs"
            if mend is None:
                message += "; another VM uses the same image, so it is left"
            yield finding(FindingCode.LEFT_BITMAP, message, mend=mend)
    for step in surveyed.plan.steps:
        if isinstance(step, ListAgain):
            message = (
                f"libvirt does not list the checkpoint {step.checkpoint}, whose bitmap is in disk "
                f"{', '.join(step.targets)}; the next backup lists it again if it can"
            )
            yield finding(FindingCode.CHECKPOINT_UNLISTED, message)
    for target, name in unsound.items():
        message = (
            f"the bitmap of disk {target} for the checkpoint {name} is missing or cannot be trusted; "
            "the next backup reads this disk whole, and nothing has to be done"
        )
        yield finding(FindingCode.BASE_UNSOUND, message)


def _removals(surveyed: Surveyed, name: str) -> tuple[RepairStep, ...]:
    """Return the steps that remove a checkpoint or bitmaps of a name; to take a disk out of one removes nothing."""
    removing = (Delete, Forget, DropBitmap, RemoveBitmap)
    return tuple(step for step in surveyed.plan.steps if step.checkpoint == name and isinstance(step, removing))


def _left_in(surveyed: Surveyed, judged: CheckpointHealth, steps: tuple[RepairStep, ...]) -> list[str]:
    """Return the disks with a bitmap that nothing needs: one that is removed, or that an image of others keeps."""
    found: set[str] = set()
    for step in steps:
        if isinstance(step, DropBitmap):
            found |= set(step.targets)
        elif isinstance(step, RemoveBitmap):
            found.add(step.target)
    if not found and _is_needless(surveyed.facts, judged):
        found = {disk.target for disk in judged.disks if any(path in surveyed.facts.shared for path in disk.images)}
    return sorted(found)


def _is_needless(facts: CheckpointFacts, judged: CheckpointHealth) -> bool:
    """Return whether a name of ours has a point that is gone."""
    return (
        facts.is_ours(judged.name)
        and judged.name not in facts.points
        and judged.name not in facts.others
        and not facts.unsure
    )


def _unsound(surveyed: Surveyed) -> dict[str, str]:
    """Return the disks without a base whose newest listed checkpoint is broken in them, each with its name."""
    broken = {
        (judged.name, disk.target)
        for judged in surveyed.judged
        for disk in judged.disks
        if disk.listed and disk.health is Health.BROKEN
    }
    newest: dict[str, str] = {}
    for name in surveyed.facts.points:  # the newest first
        for target in surveyed.facts.listed_targets(name):
            newest.setdefault(target, name)
    return {
        target: name
        for target, name in sorted(newest.items())
        if target not in surveyed.facts.bases and (name, target) in broken
    }
