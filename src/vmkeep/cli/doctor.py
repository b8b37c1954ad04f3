"""`vmkeep doctor`: what is wrong, or left behind, with this host and installation, and what mends it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmkeep.cli.completion import complete_vm
from vmkeep.cli.console import Console
from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, Session, session
from vmkeep.errors import OperationFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmkeep.flows.check_up import CheckedUp
    from vmkeep.host.protocol import Host

_NOTHING_ELSE = (
    " Nothing else was looked at, as others may have changed what is there: look yourself before you take it from them."
)


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("doctor", short_help="Say what is wrong, and what mends it.", epilog="Example: vmkeep doctor --fix")(
        doctor
    )


def doctor(
    context: typer.Context,
    vms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VM",
            help="Look at these VMs only; the host is looked at in any case.",
            autocompletion=complete_vm,
            show_default=False,
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Finish or undo what was interrupted, and remove what vmkeep left behind.")
    ] = False,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
) -> None:
    """Look at the host, the installation and the VMs, and say what is wrong and what mends it.

    Nothing is changed without --fix. With it, only what is vmkeep's own is removed.
    """
    with session(context, json=json, connect=connect, debug=debug, keys_too=False) as running:
        exposed = _look_at_home()
        if exposed is not None:
            result = exposed
        else:
            with running.host() as host:
                from vmkeep.flows.check_up import CheckUp

                checkup = CheckUp(running.premises, host, vms or ())
                result = checkup.mend(lambda: _recovered(running, host)) if fix else checkup.look()
        if running.console.json:
            running.console.document({"doctor": _document(result)})
        else:
            _show(running.console, result)
        if result.problems:
            number = len(result.problems)
            raise OperationFailed(
                f"{number} problem{'s were' if number > 1 else ' was'} found",
                hint="Each is listed with what mends it."
                + (
                    _NOTHING_ELSE
                    if exposed
                    else ""
                    if fix
                    else " `vmkeep doctor --fix` does what vmkeep can do itself."
                ),
            )


def _look_at_home() -> CheckedUp | None:
    """Return what others have in hand of the home; None when they can change nothing there.

    Else no setting and no record of it can be believed, so nothing else is looked at, and nothing is mended.
    """
    from vmkeep.config import home_place
    from vmkeep.ownership import exposures

    found = exposures(home_place())
    if all(exposure.only_read for exposure in found):
        return None
    from vmkeep.flows.exposed_home import look_at_exposed

    return look_at_exposed(found)


def _recovered(running: Session, host: Host) -> Sequence[str]:
    from vmkeep.flows.engine import Engine
    from vmkeep.flows.requests import THIS_HOST

    running.console.works = True
    with Engine(running.premises, {THIS_HOST: host}) as engine:
        return (*engine.recovered, *engine.resume_all())


def _document(result: CheckedUp) -> dict[str, Any]:
    return {
        "ok": not result.problems,
        "findings": [finding.as_dict() for finding in result.findings],
        "recovered": list(result.recovered),
        "fixed": [_of(mended.finding, mended.told) for mended in result.mended if mended.done],
        "failed": [_of(mended.finding, mended.told) for mended in result.mended if not mended.done],
    }


def _of(finding: Any, told: str) -> dict[str, Any]:
    return {"code": str(finding.code), "vm": finding.vm, "path": finding.path, "message": told}


def _show(console: Console, result: CheckedUp) -> None:
    lines = [f"recovered: {sentence}" for sentence in result.recovered]
    lines += [f"{'fixed' if mended.done else 'not fixed'}: {mended.told}" for mended in result.mended]
    for finding in result.findings:
        value = finding.as_dict()
        subject = [text for text in (finding.vm, finding.path) if text]
        lines.append(f"{value['severity']}: {': '.join([*subject, finding.message])} [{value['code']}]")
        if value["remedy"]:
            lines.append(f"  {value['remedy']}")
    counted = Counter(str(finding.severity) for finding in result.findings)
    numbers = [f"{number} {word}{'s' if number > 1 else ''}" for word, number in counted.items()]
    lines.append(f"{', '.join(numbers)}." if numbers else "nothing was found")
    console.show(*lines)
