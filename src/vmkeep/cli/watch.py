"""`vmkeep watch`: the state files of all VMs, kept as they change, for as long as it runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from vmkeep.cli.session import ConnectOption, DebugOption, JsonOption, session
from vmkeep.cli.state import captured_document, captured_text

if TYPE_CHECKING:
    from vmkeep.cli.session import Session
    from vmkeep.flows.watch_states import Watched

# libvirtd is restarted by an upgrade in less.
_AGAIN_SECONDS = 2.0


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: vmkeep watch")(watch)


def watch(
    context: typer.Context, json: JsonOption = False, connect: ConnectOption = None, debug: DebugOption = False
) -> None:
    """Keep TPM state and UEFI variables as they change. For a service: it runs until it is ended."""
    from vmkeep.errors import HypervisorUnavailable, Terminated
    from vmkeep.flows.watch_mark import WatchMark
    from vmkeep.flows.watch_states import StateWatch

    with session(context, json=json, connect=connect, debug=debug) as running:
        running.premises.ensure()
        watching = StateWatch(running.premises)
        mark = WatchMark(running.settings)
        running.console.remark("watching the TPM state and the UEFI variables of all VMs")
        away = False
        try:
            while True:
                try:
                    with running.host() as host:
                        while True:
                            _tell(running, watching.look(host))
                            mark.renew()
                            away = False
                            watching.settle()
                except HypervisorUnavailable as error:
                    if not away:
                        _warn(running, f"{error.message}; it is waited for")
                    away = True
                    time.sleep(_AGAIN_SECONDS)
        except Terminated:  # as a service is ended
            running.console.remark("ended")
        finally:
            mark.close()


def _tell(running: Session, watched: Watched) -> None:
    for captured in watched.captured:
        if captured.new and running.console.json:
            running.console.line(captured_document(captured))
        elif captured.new:
            running.console.show(captured_text(captured))
        for sentence in captured.older:
            _warn(running, f"{captured.vm}: {sentence}")
    for uuid, error in watched.failed:
        _warn(running, f"{error.vm or uuid}: {error}")


def _warn(running: Session, sentence: str) -> None:
    """Say it at once, also to programs: what is kept for the end of a command would never be said."""
    if running.console.json:
        running.console.line({"warning": sentence})
    else:
        running.console.notice(f"warning: {sentence}")
