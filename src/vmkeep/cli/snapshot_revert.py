"""`vmkeep snapshot revert`: a VM back to a snapshot of libvirt, all of it or nothing."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.completion import complete_part, complete_snapshot, complete_vm
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.commandline import command_line
from vmkeep.errors import HypervisorError, InvalidRequest
from vmkeep.flows.requests import RevertSnapshot, RunAfterwards, TpmChoice

if TYPE_CHECKING:
    from vmkeep.flows.requests import SnapshotReverted
    from vmkeep.host.tasks.reverts import RevertChecked

_NAMES = {"nvram": "UEFI variables", "tpm": "TPM"}


def register(app: typer.Typer) -> None:
    app.command("revert", epilog="Example: vmkeep snapshot revert win11 before-update --stop")(revert)


def revert(
    context: typer.Context,
    vm: Annotated[str, typer.Argument(metavar="VM", help="Name or UUID.", autocompletion=complete_vm)],
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The snapshot, as libvirt names it.", autocompletion=complete_snapshot)
    ],
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART",
            autocompletion=complete_part,
            help="disks, state (or nvram, tpm), or a disk by target; repeatable. Leaves the memory.",
            show_default=False,
        ),
    ] = None,
    tpm: Annotated[
        TpmChoice | None,
        typer.Option(help="same: the snapshot's TPM; keep: the VM's own. [default: same]", show_default=False),
    ] = None,
    no_memory: Annotated[
        bool, typer.Option("--no-memory", help="Leave the memory that the snapshot holds: the VM boots.")
    ] = False,
    run: Annotated[bool, typer.Option("--running", help="Let the VM run afterwards.")] = False,
    paused: Annotated[bool, typer.Option("--paused", help="Leave the VM paused afterwards.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Pull the plug of the VM if it runs.")] = False,
    safety: Annotated[
        bool, typer.Option("--safety/--no-safety", help="Take a point of the VM as it is now first, as the way back.")
    ] = True,
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove the images that the VM is on now, where nothing needs them.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Revert although the VM got disks since; they stay as they are.")
    ] = False,
    drop_checkpoints: Annotated[
        bool,
        typer.Option(
            "--drop-checkpoints", help="Remove checkpoints of other tools that an internal snapshot cannot go with."
        ),
    ] = False,
    reset_nvram: Annotated[
        bool,
        typer.Option("--reset-nvram", help="Start with new UEFI variables; with --running or --paused."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Take a VM back to a snapshot: disks, memory, UEFI variables and TPM together."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        if run and paused:
            raise InvalidRequest("Give one of --running and --paused")
        if tpm is TpmChoice.NEW:
            raise InvalidRequest(
                "--tpm takes same or keep here", hint="`vmkeep restore --as` makes a VM with a new TPM."
            )
        if reset_nvram and not (run or paused):
            raise InvalidRequest("--reset-nvram goes with --running or --paused only: it is done at the start")
        running.stand_apart()
        afterwards = RunAfterwards.RUNNING if run else RunAfterwards.PAUSED if paused else RunAfterwards.THEN
        request = RevertSnapshot(
            vm=vm,
            snapshot=name,
            only=tuple(dict.fromkeys(only or ())),
            tpm=tpm or TpmChoice.SAME,
            memory=not no_memory,
            run=afterwards,
            stop=stop,
            discard=discard,
            force=force,
            drop_checkpoints=drop_checkpoints,
            reset_nvram=reset_nvram,
        )
        _revert(running, request, safety=safety, yes=yes)


def _revert(running: Session, request: RevertSnapshot, *, safety: bool, yes: bool) -> None:
    running.require_rights(request.vm)
    running.expect_job()
    with running.engine(first_use=True) as engine:
        with running.console.progress() as watch:
            request, checked = engine.check_revert(request, watch)
        running.console.confirm(_question(request, checked, safety=safety), yes=yes)
        if checked.running:
            with running.console.progress() as watch:
                engine.stop_for_revert(request, watch)
        if safety:
            with running.console.progress() as watch:
                taken = engine.take_point_before_revert(request, checked, watch)
            point = str(taken.point["id"])
            request = replace(request, safety=point)
            # Told at once: whatever happens from here on, this is the way back.
            running.console.notice(f"safety point {point} holds the VM as it was; {_way_back(point)} goes back to it")
            for warning in taken.warnings:
                running.console.notice(f"warning: {warning}")
        with running.console.progress() as watch:
            reverted = engine.revert_snapshot(request, watch)
    _tell(running, reverted)


def _question(request: RevertSnapshot, checked: RevertChecked, *, safety: bool) -> str:
    what = ", ".join(_parts(checked.disks, checked.states, memory=checked.memory))
    stopped = "It runs, and its plug is pulled first. " if checked.running else ""
    told = "A safety point of it is taken first." if safety else "No safety point of it is taken."
    lost = [
        *(["the images that it is on now, where nothing needs them"] if request.discard and checked.left else []),
        *(["its present UEFI variables and TPM"] if checked.states and not safety else []),
    ]
    gone = f" What is lost: {' and '.join(lost)}." if lost else ""
    return f"Take VM {checked.vm_name!r} back to snapshot {request.snapshot!r}: {what}? {stopped}{told}{gone}"


def _parts(disks: tuple[str, ...], states: tuple[str, ...], *, memory: bool) -> list[str]:
    return [
        *([", ".join(disks)] if disks else []),
        *(["memory"] if memory else []),
        *(_NAMES[kind] for kind in states),
    ]


def _way_back(safety: str) -> str:
    return command_line("vmkeep restore", safety, options="--in-place")


def _tell(running: Session, reverted: SnapshotReverted) -> None:
    console = running.console
    back = None if reverted.safety is None else _way_back(reverted.safety)
    if console.json:
        told = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(reverted).items()}
        console.document({"reverted": {**told, "way_back": back}})
    else:
        parts = ", ".join(_parts(reverted.disks, reverted.states, memory=reverted.memory))
        lines = [f"VM {reverted.name} is at snapshot {reverted.snapshot} again: {parts}; it is {reverted.state}"]
        lines += [f"what it was on stays: {path}" for path in reverted.left]
        lines += [f"removed: {path}" for path in reverted.discarded]
        console.show(*lines, *([] if back is None else [f"to go back: {back}"]))
    for warning in reverted.warnings:
        console.notice(f"warning: {warning}")
    if reverted.not_started:
        raise HypervisorError(
            f"VM {reverted.name!r} is at snapshot {reverted.snapshot} again, but it could not be started: "
            f"{reverted.not_started}",
            vm=reverted.name,
            hint="Nothing of the revert is missing. Put right what libvirt says, and start the VM.",
        )
