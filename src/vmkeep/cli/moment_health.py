"""`vmkeep checkpoint health` and `repair`, `vmkeep snapshot health` and `repair`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_checkpoint, complete_vm
from vmkeep.cli.console import Console
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.tables import Table
from vmkeep.commandline import command_line
from vmkeep.errors import OperationFailed

if TYPE_CHECKING:
    from vmkeep.flows.moment_health import LookedAt, Repaired
    from vmkeep.planning.checkpoint_health import CheckpointHealth, DiskHealth
    from vmkeep.planning.snapshot_health import SnapshotHealth

VmArgument = Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)]
_STANDINGS = {
    "replaced": "no base any more",
    "left-over": "left over: its point is gone",
    "foreign": "not vmkeep's",
    "unknown": "not known",
}


def register_for_checkpoints(app: typer.Typer) -> None:
    """Add the commands to ``vmkeep checkpoint``."""
    app.command("health", epilog="Example: vmkeep checkpoint health win11")(checkpoint_health)
    app.command("repair", epilog="Example: vmkeep checkpoint repair win11 --dry-run")(repair)


def register_for_snapshots(app: typer.Typer) -> None:
    """Add the commands to ``vmkeep snapshot``."""
    app.command("health", epilog="Example: vmkeep snapshot health win11")(snapshot_health)
    app.command("repair", epilog="Example: vmkeep snapshot repair win11 --dry-run")(snapshot_repair)


def checkpoint_health(
    context: typer.Context,
    vm: VmArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say of each checkpoint, and of each bitmap in the images, whether it is sound and what it is good for.

    Nothing is changed. The exit status is 0 when everything of vmkeep's is sound.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            from vmkeep.flows.moment_health import MomentHealth

            looked = MomentHealth(running.premises, host).checkpoints(vm)
        if looked.busy is not None:
            running.console.notice(
                f"{looked.busy} works on VM {vm!r} now: whether a checkpoint is left over could not be told"
            )
        if running.console.json:
            running.console.document(_checkpoints_document(looked))
        else:
            _show_checkpoints(running.console, looked.health)
        _demand_sound(looked.health, vm)


def repair(
    context: typer.Context,
    vm: VmArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
    foreign: Annotated[
        list[str] | None,
        typer.Option(
            "--foreign",
            metavar="NAME",
            autocompletion=complete_checkpoint,
            help="Mend this one too, which is not vmkeep's: a broken checkpoint, or a bitmap without one. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Mend vmkeep's own checkpoints and bitmaps of a VM: list lost ones again, remove what is broken or left over.

    It may be killed at any time and run again. No point is lost by it: at worst a disk is read whole once.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            from vmkeep.flows.moment_health import MomentHealth

            care = MomentHealth(running.premises, host)
            done = care.plan(vm, foreign or ()) if dry_run else care.repair(vm, foreign or ())
        if running.console.json:
            running.console.document({"repair": _repair_document(done, dry_run=dry_run)})
        else:
            running.console.show(*_repair_lines(done, dry_run=dry_run))
        if not dry_run and not done.complete:
            raise OperationFailed(
                f"not all checkpoints of VM {vm!r} could be repaired",
                vm=vm,
                hint=f"What is left is listed; `{command_line('vmkeep checkpoint health', vm)}` shows it again.",
            )


def snapshot_health(
    context: typer.Context,
    vm: VmArgument,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Say of each snapshot whether the images and files that hold it are there, and still hold it.

    Nothing is changed. The exit status is 0 when all snapshots are sound.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        with running.host() as host:
            from vmkeep.flows.moment_health import MomentHealth

            snapshots = MomentHealth(running.premises, host).snapshots(vm)
        if running.console.json:
            document = [snapshot.as_dict() for snapshot in snapshots]
            ok = not any(snapshot.trouble for snapshot in snapshots)
            running.console.document({"snapshot_health": {"ok": ok, "snapshots": document}})
        else:
            _show_snapshots(running.console, snapshots)
        bad = [snapshot.name for snapshot in snapshots if snapshot.trouble]
        if bad:
            raise OperationFailed(
                f"{len(bad)} of {len(snapshots)} snapshots of VM {vm!r} {'is' if len(bad) == 1 else 'are'} not sound: "
                f"{', '.join(bad)}",
                vm=vm,
                hint="Each is listed with the reason. docs/operations.md says what can be done about it.",
            )


def snapshot_repair(
    context: typer.Context,
    vm: VmArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Put right what libvirt's records of snapshots say of their images, where removing another's record changed it.

    Only records are changed. It may be killed at any time and run again.
    """
    with session(context, json=json, connect=connect, debug=debug) as running:
        from vmkeep.cli.moments import changing
        from vmkeep.host.tasks.moments import RepairSnapshots

        with changing(running) as change:
            done = change(RepairSnapshots(vm=vm, dry=dry_run))
        if running.console.json:
            steps = [{"snapshot": name, "does": told} for name, told in zip(done.names, done.notices, strict=True)]
            running.console.document({"snapshot_repair": {"vm": done.vm, "dry_run": dry_run, "steps": steps}})
            return
        how = "would be put right" if dry_run else "was put right"
        for name, told in zip(done.names, done.notices, strict=True):
            running.console.show(f"the record of snapshot {name} {how}: {told}")
        if not done.names:
            running.console.show("nothing to repair")


# -- checkpoints -------------------------------------------------------------------------------------------------


def _demand_sound(health: Sequence[CheckpointHealth], vm: str) -> None:
    bad = [checkpoint for checkpoint in health if checkpoint.trouble]
    if bad:
        number = "1 checkpoint is" if len(bad) == 1 else f"{len(bad)} checkpoints are"
        raise OperationFailed(
            f"{number} not sound in VM {vm!r}",
            vm=vm,
            hint=f"`{command_line('vmkeep checkpoint repair', vm, options='--dry-run')}` shows what mends it.",
        )


def _checkpoints_document(looked: LookedAt) -> dict[str, Any]:
    return {
        "checkpoint_health": {
            "ok": not any(checkpoint.trouble for checkpoint in looked.health),
            "busy": looked.busy,
            "checkpoints": [checkpoint.as_dict() for checkpoint in looked.health],
        }
    }


def _show_checkpoints(console: Console, health: Sequence[CheckpointHealth]) -> None:
    if not health:
        console.show("no checkpoints, and no bitmaps in the images")
        return
    rows = []
    with_base = {target for checkpoint in health for target in checkpoint.base_of}
    for checkpoint in health:
        name = checkpoint.name if checkpoint.listed else f"({checkpoint.name})"
        for disk in checkpoint.disks:
            use = _use(checkpoint, disk.target, has_base=disk.target in with_base or disk.absent)
            rows.append((name, disk.target, _disk_text(disk), use, disk.why))
            name = ""
        if not checkpoint.disks:
            rows.append((name, "", str(checkpoint.health), _use(checkpoint, ""), "it has no disks"))
    columns = ("checkpoint", "disk", "health", "use", "why")
    console.show(Table(columns=columns, rows=rows, sentences=True, grouped=True))
    if any(not checkpoint.listed for checkpoint in health):
        console.show("(in brackets: a bitmap, which libvirt lists no checkpoint for)")


def _disk_text(disk: DiskHealth) -> str:
    from vmkeep.planning.checkpoint_health import bitmap_word

    if str(disk.health) in ("broken", "foreign") and str(disk.bitmap) != "unknown":
        return f"{disk.health}: {bitmap_word(disk.bitmap)}"
    return str(disk.health)


def _use(checkpoint: CheckpointHealth, target: str, *, has_base: bool = True) -> str:
    if target in checkpoint.base_of:
        return "base of its next point"
    if not has_base and checkpoint.point is not None:
        return "its next point reads it whole"
    return _STANDINGS.get(str(checkpoint.standing), "no base any more")


def _repair_document(done: Repaired, *, dry_run: bool) -> dict[str, Any]:
    if dry_run:
        return {"dry_run": True, **done.plan.as_dict()}
    return {
        "dry_run": False,
        "complete": done.complete,
        "done": [_taken(each.step.checkpoint, each.told) for each in done.taken if each.done],
        "failed": [_taken(each.step.checkpoint, each.told) for each in done.taken if not each.done],
        "left": list(done.plan.left),
        "checkpoints": [checkpoint.as_dict() for checkpoint in done.health],
    }


def _taken(checkpoint: str, told: str) -> dict[str, str]:
    return {"checkpoint": checkpoint, "message": told}


def _repair_lines(done: Repaired, *, dry_run: bool) -> list[str]:
    from vmkeep.planning.checkpoint_health import health_text

    lines = [f"would {step}" for step in done.plan.steps] if dry_run else []
    lines += [each.told if each.done else f"failed: {each.told}" for each in done.taken]
    lines += [f"left: {sentence}" for sentence in done.plan.left]
    if not dry_run:
        lines += [
            f"still {health_text(checkpoint)}: {checkpoint.name}" for checkpoint in done.health if checkpoint.trouble
        ]
    return lines or ["nothing to repair"]


# -- snapshots ---------------------------------------------------------------------------------------------------


def _show_snapshots(console: Console, snapshots: Sequence[SnapshotHealth]) -> None:
    if not snapshots:
        console.show("no snapshots")
        return
    rows = []
    for snapshot in snapshots:
        name = snapshot.name
        for part in snapshot.parts:
            what = part.name if part.kind != "state" else f"{part.name} state"
            rows.append((name, what, part.location, str(part.health), part.why or part.path or ""))
            name = ""
        if not snapshot.parts:
            rows.append((name, "", "", str(snapshot.health), "it keeps no disk and no memory"))
    columns = ("snapshot", "part", "kept", "health", "why, or where")
    console.show(Table(columns=columns, rows=rows, sentences=True, grouped=True))
