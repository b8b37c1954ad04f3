"""`vmkeep verify`: read what points need and prove it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_point_or_vm
from vmkeep.cli.console import Console, size_text, time_text
from vmkeep.cli.points import search_point
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.errors import IntegrityError, InvalidRequest, PointNotFound, StoreError, VmkeepError, VmNotFound

if TYPE_CHECKING:
    from vmkeep.host.tasks.survey import Progress
    from vmkeep.planning.rota import Coverage
    from vmkeep.repository import Finding, RepositoryReport
    from vmkeep.repository.proofs import Proofs


def register(app: typer.Typer) -> None:
    app.command(short_help="Prove that points are sound.", epilog="Example: vmkeep verify win11@latest")(verify)


def verify(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="POINT|VM",
            help="A point, or a VM for all its points.",
            show_default=False,
            autocompletion=complete_point_or_vm,
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every object of the repository.")] = False,
    sample: Annotated[
        float, typer.Option(metavar="PERCENT", help="Read only this share of the blocks, chosen at random.")
    ] = 100.0,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|SIZE",
            help="Of every object: what was longest not read, for so long (2h) or so much (50GB).",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Read everything that points need and prove that it is what was written."""
    with session(context, json=json, connect=connect, debug=debug) as running:
        if (what is not None) + every + (budget is not None) != 1:
            raise InvalidRequest("Name a point or a VM, or give --all or --budget: one of them")
        if not 0 < sample <= 100:
            raise InvalidRequest("--sample takes a percentage above 0, up to 100")
        if budget is not None:
            if sample != 100:
                raise InvalidRequest("--sample goes with a point, a VM or --all, and not with --budget")
            result = _portion(running, budget)
        elif what is None:
            result = _everything(running, sample / 100)
        else:
            chosen, beside = _chosen(running, what)
            result = {**_points(running, chosen, sample / 100), **beside}
        _note_soundness(running, result)
        _name(running, result["verified"])
        if running.console.json:
            running.console.document(result)
        else:
            _show(running.console, result)
        location = running.premises.repository.location
        if result["damaged"]:
            raise IntegrityError(_damage(result), path=location)
        if not result["ok"]:
            raise StoreError(_unreadable(result), path=location)


def _chosen(running: Session, what: str) -> tuple[list[str], dict[str, list[str]]]:
    catalog = running.premises.catalog
    try:
        found = [point["id"] for point in catalog.summaries(what)]
    except VmNotFound:
        point, beside = search_point(running, what)
        return [point.id], beside
    if not found:
        raise PointNotFound(f"There is no point of VM {what!r}", vm=what)
    return found, {}


def _points(running: Session, ids: Sequence[str], sample: float) -> dict[str, Any]:
    repository = running.premises.repository
    verified = []
    for number, point_id in enumerate(ids, start=1):
        stage = f"verify {point_id[:8]} ({number} of {len(ids)})"
        with running.console.progress() as watch:
            try:
                report = repository.verify_point(point_id, sample=sample, progress=_reported(watch, stage))
            except PointNotFound:
                verified.append(_verdict(point_id, [_absent(point_id)], [], ok=False))
                continue
        findings = [_finding(finding) for finding in report.findings]
        unread = [_finding(finding) for finding in report.unreadable]
        _tell_unsteady(running, report.unsteady)
        verdict = _verdict(
            point_id, findings, unread, ok=report.sound, blocks=report.blocks, size_bytes=report.bytes_read
        )
        verified.append(verdict)
    damaged = any(point["findings"] for point in verified)
    ok = not damaged and not any(point["unreadable"] for point in verified)
    return {"verified": verified, "ok": ok, "damaged": damaged, "sample": sample * 100}


def _everything(running: Session, sample: float) -> dict[str, Any]:
    repository = running.premises.repository
    with running.console.progress() as watch, _proofs_if_possible(running) as proofs:
        report = repository.verify_all(sample=sample, progress=_reported(watch, "verify"), proofs=proofs)
    result = _of_repository(running, report)
    return {**result, "sample": sample * 100, "packs": report.packs}


def _portion(running: Session, text: str) -> dict[str, Any]:
    from vmkeep.planning.rota import Budget

    budget = Budget.parse(text)
    repository = running.premises.repository
    with repository.proofs(running.settings.cache_dir) as proofs:
        with running.console.progress() as watch:
            report = repository.verify_portion(budget, proofs, progress=_reported(watch, "verify"))
        coverage = proofs.coverage()
    assert coverage is not None, "a run that has ended says how far it came"
    result = _of_repository(running, report)
    # Of a point of which nothing is known to be wrong not all was read.
    verified = [verdict for verdict in result["verified"] if not verdict["ok"]]
    return {
        **result,
        "verified": verified,
        "sample": None,
        "packs": report.packs_read,
        "rota": coverage_document(coverage),
    }


@contextlib.contextmanager
def _proofs_if_possible(running: Session) -> Iterator[Proofs | None]:
    """Open the record of what was verified; a home that cannot be written keeps nobody from verifying."""
    proofs = None
    with contextlib.suppress(VmkeepError):
        proofs = running.premises.repository.proofs(running.settings.cache_dir)
    if proofs is None:
        yield None
        return
    with proofs:
        yield proofs


def coverage_document(coverage: Coverage) -> dict[str, Any]:
    """Return how far verification has come as `verify --json` and `status --json` print it."""
    from vmkeep.planning.rota import GOAL

    document = asdict(coverage)
    for name in ("at", "oldest"):
        document[name] = None if document[name] is None else document[name].isoformat()
    return {"goal_days": GOAL.days, **document}


def _of_repository(running: Session, report: RepositoryReport) -> dict[str, Any]:
    known = running.premises.catalog.point_ids()
    findings = [_finding(finding) for finding in report.findings]
    # A point object that was removed leaves no trace in the repository; the catalogue remembers it.
    findings.extend(_absent(point_id) for point_id in known if point_id not in report.points)
    unread = [_finding(finding) for finding in report.unreadable]
    ids = sorted({*report.points, *(point for finding in findings for point in finding["harms"])})
    verified = []
    for point_id in ids:
        harms = [each for each in findings if point_id in each["harms"]]
        lacks = [each for each in unread if point_id in each["harms"]]
        verified.append(_verdict(point_id, harms, lacks, ok=not harms and not lacks))
    _tell_unsteady(running, report.unsteady)
    if report.damaged_packs:
        _condemn(running, report.damaged_packs)
    if report.pardoned_packs:
        _pardon(running, report.pardoned_packs)
    return {
        "verified": verified,
        "ok": not findings and not unread,
        "damaged": bool(findings),
        "findings": findings,
        "unreadable": unread,
        "blocks": report.blocks,
        "bytes": report.bytes_read,
    }


def _note_soundness(running: Session, result: dict[str, Any]) -> None:
    """Let `vmkeep retain` know which points are harmed: those fill no slot. Only all of one proves that it is sound."""
    harmed = {point["point"] for point in result["verified"] if _is_harmed(point)}
    sound = {point["point"] for point in result["verified"] if point["ok"] and result["sample"] == 100}
    catalog = running.premises.catalog
    with contextlib.suppress(VmkeepError):  # a home that cannot be written keeps nobody from verifying
        if harmed or catalog.harmed_points():
            catalog.note_soundness(harmed, sound)


def _condemn(running: Session, packs: Sequence[bytes]) -> None:
    """Keep later points from sharing blocks with packs that are damaged; a repository that cannot be written stays."""
    try:
        running.premises.repository.condemn(packs)
    except VmkeepError as error:
        running.console.notice(f"the damaged packs could not be marked: {error.message}")
    else:
        running.console.notice("later points will not use the damaged packs; `vmkeep backup --full VM` stores all anew")


def _pardon(running: Session, packs: Sequence[bytes]) -> None:
    """Let later points use packs again that an earlier pass had called damaged, and this one proved sound."""
    try:
        freed = running.premises.repository.pardon(packs)
    except VmkeepError as error:
        running.console.notice(f"packs that proved sound could not be freed: {error.message}")
    else:
        if freed:
            running.console.notice(f"{freed} packs that were marked as damaged are sound, and are used again")


def _tell_unsteady(running: Session, unsteady: Sequence[Finding]) -> None:
    for finding in unsteady:
        running.console.notice(
            f"warning: {finding.object} was wrong when it was read first ({finding.what}), and right the second time: "
            "look at the storage, its cable and the memory of this host"
        )


def _verdict(
    point_id: str,
    findings: list[dict[str, Any]],
    unreadable: list[dict[str, Any]],
    *,
    ok: bool,
    blocks: int | None = None,
    size_bytes: int | None = None,
) -> dict[str, Any]:
    return {
        "point": point_id,
        "ok": ok,
        "blocks": blocks,
        "bytes": size_bytes,
        "findings": findings,
        "unreadable": unreadable,
    }


def _name(running: Session, verified: Sequence[dict[str, Any]]) -> None:
    """Add the VM and the time of each point; null where the catalogue does not know it."""
    known = {point["id"]: point for point in running.premises.catalog.summaries(None)}
    for verdict in verified:
        point = known.get(verdict["point"], {})
        verdict.update(vm=point.get("vm"), created=point.get("created"))


def _whose(verdict: dict[str, Any]) -> str:
    return "" if verdict["vm"] is None else f" of {verdict['vm']}, {time_text(verdict['created'])}"


def _finding(finding: Finding) -> dict[str, Any]:
    return {"object": finding.object, "what": finding.what, "harms": list(finding.harms)}


def _absent(point_id: str) -> dict[str, Any]:
    what = "the catalogue knows this point, and it is not in the repository"
    return {"object": f"points/{point_id}", "what": what, "harms": [point_id]}


def _reported(watch: Callable[[Progress], None], stage: str) -> Callable[[int, int], None]:
    from vmkeep.host.tasks.survey import Progress

    return lambda done, total: watch(Progress(stage, done_bytes=done, total_bytes=total))


def _show(console: Console, result: dict[str, Any]) -> None:
    lines = []
    sound = "sound" if result["sample"] == 100 else "sound as far as read"
    for point in result["verified"]:
        read = f" ({point['blocks']} blocks, {size_text(point['bytes'])})" if point["blocks"] is not None else ""
        bad = "DAMAGED" if _is_harmed(point) else "UNREADABLE"
        lines.append(f"point {point['point']}{_whose(point)}: {sound if point['ok'] else bad}{read}")
    unread = result.get("unreadable", [each for point in result["verified"] for each in point["unreadable"]])
    for finding in unread:
        needed = ", ".join(finding["harms"]) or "no point"
        lines.append(f"{finding['object']}: could not be read: {finding['what']}; needed by {needed}")
    findings = result.get("findings", [each for point in result["verified"] for each in point["findings"]])
    for finding in findings:
        harms = ", ".join(finding["harms"]) or "no point"
        lines.append(f"{finding['object']}: {finding['what']}; harms {harms}")
    if "rota" in result:
        lines += _rota_lines(result)
    elif "packs" in result:
        read = f"{result['blocks']} blocks in {result['packs']} packs, {size_text(result['bytes'])} read"
        lines.append(read if result["sample"] == 100 else f"sample: {result['sample']:g} % of the blocks; {read}")
    elif result["sample"] != 100:
        read_bytes = sum(point["bytes"] or 0 for point in result["verified"])
        lines.append(f"sample: {result['sample']:g} % of the blocks; {size_text(read_bytes)} read")
    console.show(*(lines or ["no points"]))


def _rota_lines(result: dict[str, Any]) -> Iterator[str]:
    rota = result["rota"]
    yield f"{result['packs']} of {rota['packs']} packs read, {size_text(result['bytes'])}"
    share = 100 * rota["proved_bytes"] // rota["size_bytes"] if rota["size_bytes"] else 100
    if rota["unread"]:
        oldest = f"{rota['unread']} packs were never read by this installation"
    elif rota["oldest"] is None:
        oldest = "there are none"
    else:
        oldest = f"the oldest proof is of {time_text(rota['oldest'])}"
    yield f"{share} % of the bytes in packs proved within {rota['goal_days']} days; {oldest}"


def _unreadable(result: dict[str, Any]) -> str:
    points = [point["point"] for point in result["verified"] if not point["ok"]]
    told = f"; {len(points)} of {len(result['verified'])} points need it: {', '.join(points)}" if points else ""
    return f"Not all could be read, and nothing that was read is damaged{told}"


def _is_harmed(point: dict[str, Any]) -> bool:
    return any(point["point"] in finding["harms"] for finding in point["findings"])


def _damage(result: dict[str, Any]) -> str:
    harmed = [point["point"] for point in result["verified"] if _is_harmed(point)]
    if not harmed:
        return "The repository is damaged, but no point is harmed"
    return f"{len(harmed)} of {len(result['verified'])} points are damaged: {', '.join(harmed)}"
