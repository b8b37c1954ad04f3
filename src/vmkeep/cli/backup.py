"""`vmkeep backup`: take a point of one VM, of several, or of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_disk, complete_vm
from vmkeep.cli.console import Console, duration_text, size_text
from vmkeep.cli.session import (
    ConnectOption,
    DebugOption,
    JsonOption,
    MaxRateOption,
    MaxRequestsOption,
    Session,
    WaitOption,
    session,
)
from vmkeep.cli.tables import Table
from vmkeep.errors import GivenUp, Interrupted, InvalidRequest, OperationFailed, PermissionRefused, VmkeepError

if TYPE_CHECKING:
    from vmkeep.flows.engine import Engine
    from vmkeep.flows.requests import PointTaken, TakePoint
    from vmkeep.host.tasks.survey import Progress, SurveyedVm


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep backup win11 --label why='before the update'")(backup)


def backup(
    context: typer.Context,
    vms: Annotated[
        list[str] | None,
        typer.Argument(metavar="VM", help="Name or UUID.", show_default=False, autocompletion=complete_vm),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every VM of the host.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Read every disk whole, without a base.")] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            help="Leave a disk out by target (vdb); may be repeated.",
            show_default=False,
            autocompletion=complete_disk,
        ),
    ] = None,
    quiesce: Annotated[
        bool, typer.Option("--quiesce", help="Freeze the guest's file systems for the instant, through its agent.")
    ] = False,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Label the point; may be repeated.", show_default=False),
    ] = None,
    wait: WaitOption = None,
    max_rate: MaxRateOption = None,
    max_requests: MaxRequestsOption = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Take a point: disks, UEFI variables and TPM of one instant. The VM may run, be paused or be off."""
    from vmkeep.flows.requests import TakePoint
    from vmkeep.host.tasks.survey import FindVm, LookAtVms

    limits = (max_rate, max_requests)
    with session(context, json=json, connect=connect, debug=debug, limits=limits) as running:
        names = list(dict.fromkeys(vms or ()))
        if every == bool(names):
            raise InvalidRequest("Name the VMs to back up, or give --all for every VM: one of the two")
        labels = _labels(label or ())
        seconds = _wait_seconds(wait)
        running.stand_apart()
        if every:
            # By UUID: two names may look alike, and a VM may be renamed meanwhile.
            with running.host() as host:
                surveyed = host.ask(LookAtVms())
            skipped = [vm for vm in surveyed if vm.skip]
            found = [(vm.name, vm.uuid) for vm in surveyed if not vm.skip]
        else:
            skipped = []
            found = [(name, name) for name in names]
            if len(names) == 1 and not running.settings.catalog_path.exists():
                # A name with a slip of the pen in it makes no repository and no key.
                with running.host() as host:
                    host.ask(FindVm(names[0]))
        requests = [(name, TakePoint(vm, full, tuple(exclude or ()), labels, quiesce)) for name, vm in found]
        refused = _refused(running, [request.vm for _, request in requests])
        if requests and len(refused) == len(requests):
            raise next(iter(refused.values()))  # before a repository is made, and its key
        running.expect_job()
        with running.engine(first_use=True) as engine:
            if len(requests) == 1 and not every:
                _one(running, engine, requests[0][1], seconds)
            else:
                _several(running, engine, requests, refused, skipped, seconds)


def _refused(running: Session, vms: Sequence[str]) -> dict[str, VmkeepError]:
    """Return why this user may not take a point of those VMs of which it may not."""
    refused: dict[str, VmkeepError] = {}
    for vm in vms:
        try:
            running.require_rights(vm)
        except PermissionRefused as error:
            refused[vm] = error
    return refused


def _wait_seconds(text: str | None) -> int:
    if text is None:
        return 0
    from vmkeep.cli.waiting import wait_seconds

    return wait_seconds(text)


def _one(running: Session, engine: Engine, request: TakePoint, wait_seconds: int) -> None:
    taken = _take(running, engine, request, wait_seconds)
    if running.console.json:
        running.console.document({"point": taken.point})
    else:
        _show(running, taken.point)
    for warning in taken.warnings:
        running.console.notice(f"warning: {warning}")
    _tell_of_settings(running, taken.point)


def _tell_of_settings(running: Session, point: Mapping[str, Any]) -> None:
    """Say that a VM which was named is one that `backup --all` leaves out."""
    lasting = running.settings.of_vm(point["vm"], point["vm_uuid"])
    if lasting.skip:
        told = (
            f"VM {point['vm']!r} is skipped by `backup --all`{_because(lasting.reason)}; it was named, so it was taken"
        )
        running.console.remark(told)


def _several(
    running: Session,
    engine: Engine,
    requests: Sequence[tuple[str, TakePoint]],
    refused: Mapping[str, VmkeepError],
    skipped: Sequence[SurveyedVm],
    wait_seconds: int,
) -> None:
    """Take them one after the other; a failure does not stop the others, a signal or stalled storage does."""
    points: list[Mapping[str, Any]] = []
    failed: list[dict[str, Any]] = []
    console = running.console
    given_up: GivenUp | None = None
    if wait_seconds:  # those that are held come last: the others need not wait for them
        requests = sorted(requests, key=lambda each: engine.holder_of(each[1].vm) is not None)
    for name, request in requests:
        try:
            running.interruption.check()
            taken = _take_next(running, engine, request, refused, given_up, wait_seconds)
        except VmkeepError as error:
            failed.append({"vm": name, "error": error.as_dict()})
            if not console.json and not isinstance(error, Interrupted):
                console.notice(f"{name}: {error.message} [{error.code}] ({error.hint})")
            continue
        except GivenUp as given:
            given_up = given
            failed.append({"vm": name, "error": given.error.as_dict()})
            continue
        points.append(taken.point)
        for warning in taken.warnings:
            console.notice(f"warning: {name}: {warning}")
        if not console.json:
            _show(running, taken.point)
        _tell_of_settings(running, taken.point)
    _tell_end(console, points, failed, skipped)
    _raise_end(running, given_up)
    if failed:
        raise OperationFailed(
            f"{len(failed)} of {len(requests)} VMs were not backed up: {', '.join(each['vm'] for each in failed)}"
        )


def _tell_end(console: Console, points: Sequence[Any], failed: Sequence[Any], skipped: Sequence[SurveyedVm]) -> None:
    if console.json:
        document = {"points": points, "failed": failed}
        console.document({**document, "skipped": [{"vm": vm.name, "reason": vm.reason} for vm in skipped]})
    elif skipped:
        console.show(*(f"{vm.name}: skipped by vmkeep.toml{_because(vm.reason)}" for vm in skipped))


def _raise_end(running: Session, given_up: GivenUp | None) -> None:
    """Raise what ended all of them: stalled storage, or a signal."""
    if given_up is not None:
        raise given_up
    running.interruption.check()


def _take_next(
    running: Session,
    engine: Engine,
    request: TakePoint,
    refused: Mapping[str, VmkeepError],
    given_up: GivenUp | None,
    wait_seconds: int,
) -> PointTaken:
    if given_up is not None:
        raise given_up.error  # the storage that one point waited for is that of the next as well
    if request.vm in refused:
        raise refused[request.vm]
    return _take(running, engine, request, wait_seconds)


def _take(running: Session, engine: Engine, request: TakePoint, wait_seconds: int) -> PointTaken:
    """Take one point, and note with it how long that took, without what its VM was waited for."""
    began = time.monotonic()

    def take(watch: Callable[[Progress], None]) -> PointTaken:
        nonlocal began
        began = time.monotonic()
        return engine.take_point(request, watch)

    if wait_seconds:
        from vmkeep.cli.waiting import when_free

        taken = when_free(running, engine, request.vm, wait_seconds, take)
    else:
        with running.console.progress() as watch:
            taken = take(watch)
    return replace(taken, point={**taken.point, "seconds": round(time.monotonic() - began, 3)})


def _labels(texts: Sequence[str]) -> dict[str, str]:
    from vmkeep.repository.fields import WrongField, texts_by_name

    labels: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name.startswith("$"):
            raise InvalidRequest(f"{text!r} is not a label", hint="Write it as --label KEY=VALUE.")
        if name in labels:
            raise InvalidRequest(f"The label {name!r} is given twice")
        labels[name] = value
    try:
        texts_by_name(labels)
    except WrongField as error:
        raise InvalidRequest(f"the labels cannot be kept: a name or text of them is wrong: {error}") from error
    return labels


def _show(running: Session, point: Mapping[str, Any]) -> None:
    rows = [
        (
            str(disk["target"]),
            str(disk["mode"]),
            str(disk["reason"]),
            size_text(disk["bytes_read"]),
            size_text(disk["bytes_stored"]),
        )
        for disk in point["disks"]
    ]
    state = [kind for kind in ("tpm", "nvram") if point["state"].get(kind, {}).get("present")]
    left_out = [str(disk["target"]) for disk in point["excluded"] if disk["reason"] == "settings"]
    because = _because(running.settings.of_vm(point["vm"], point["vm_uuid"]).reason)
    running.console.show(
        f"point {point['id']} of {point['vm']}: {point['kind']}",
        Table(columns=("disk", "mode", "reason", "read", "stored"), rows=rows, right=("read", "stored")),
        f"state: {', '.join(state) or 'none'}; {_stood_still(point)}; it took {duration_text(point['seconds'])}",
        *([f"left out by vmkeep.toml: {', '.join(left_out)}{because}"] if left_out else []),
    )


def _because(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _stood_still(point: Mapping[str, Any]) -> str:
    """A VM that was off or paused did not have to be paused."""
    pause_ms = point["pause_ms"]
    return f"the guest was paused for {pause_ms:.0f} ms" if pause_ms else "the guest did not run"
