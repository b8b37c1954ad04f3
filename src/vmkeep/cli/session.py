"""One command's run: its options, its settings, what the installation has, and the engine while it is used."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

import typer

from vmkeep.cli.console import Console
from vmkeep.cli.interruption import Interruption
from vmkeep.config import Settings, limited, load_settings, prepare_home
from vmkeep.errors import InvalidRequest
from vmkeep.filesystem import OF_STORAGE
from vmkeep.rates import limit_process

if TYPE_CHECKING:
    from vmkeep.catalog.listing import Listing
    from vmkeep.flows.engine import Engine
    from vmkeep.flows.installation import InitReport, Premises
    from vmkeep.host.protocol import Host

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
ConnectOption = Annotated[
    str | None,
    typer.Option("--connect", "-c", metavar="URI", help="The libvirt to speak to, as for virsh.", show_default=False),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print errors and warnings only, as a timer wants it.",
        callback=lambda context, value: _ask_for_quiet(context, wanted=value),
        expose_value=False,
    ),
]
"""An option of every command that is declared once: ``vmkeep.cli.ondemand`` adds it to each."""
WaitOption = Annotated[
    str | None,
    typer.Option(
        "--wait",
        metavar="LENGTH",
        help="Wait so long (10m) for another operation that holds the VM, instead of failing at once.",
        show_default=False,
    ),
]
MaxRateOption = Annotated[
    str | None,
    typer.Option(
        "--max-rate",
        metavar="RATE",
        help="Move no more than this to and from the repository, 50MB/s; as much of guests' disks.",
        show_default=False,
    ),
]
MaxRequestsOption = Annotated[
    str | None,
    typer.Option(
        "--max-requests", metavar="N/s", help="Send no more requests to the bucket's server, 20/s.", show_default=False
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Write a log file that can be sent; its path is printed.")]

_WHILE_WORKING = 50_000
# The commands that do nothing but print: of a reader who has seen enough (`vmkeep points | head -1`) nothing is said.
_LOOKING = {
    *("key providers", "key recipients list", "key status"),
    *("doctor", "host list", "log", "ops list", "ops show", "point show", "points", "schedule show", "status"),
    *("verify", "vm list", "vm show"),
    *("policy explain", "policy show"),
    *("state conflicts", "state diff", "state list", "state show", "state versions", "tpm show"),
    *("tombstones list", "tpm removal list", "tpm removal show"),
    *(
        f"{kind} {command}"
        for kind in ("checkpoint", "snapshot")
        for command in ("dumpxml", "export", "health", "info", "list", "parent", "tree")
    ),
}


def _ask_for_quiet(context: typer.Context, *, wanted: bool) -> None:
    console: Console = context.obj.console
    console.quiet = console.quiet or wanted


@dataclass
class Invocation:
    """What stands before the command, and what all parts of one run share."""

    console: Console
    interruption: Interruption
    connect: str | None = None
    debug: bool = False
    logging: bool = False
    arguments: Sequence[str] = ()
    ends_process: bool = False


class Session:
    """What a command works with."""

    def __init__(
        self, invocation: Invocation, *, keys_too: bool = True, limits: tuple[str | None, str | None] = (None, None)
    ) -> None:
        """``keys_too``: refuse keys that others may read. What others may change is refused in any case."""
        self._keys_too = keys_too
        self._limits = limits
        self.console = invocation.console
        self.interruption = invocation.interruption
        self._invocation = invocation

    @property
    def connect(self) -> str | None:
        """The libvirt that the command line names."""
        return self._invocation.connect

    @cached_property
    def settings(self) -> Settings:
        settings = limited(load_settings(self._invocation.connect, keys_too=self._keys_too), *self._limits)
        limit_process(settings.limits)
        return settings

    @cached_property
    def premises(self) -> Premises:
        with self.interruption.postponed():
            from vmkeep.flows.installation import Premises

        return Premises(self.settings)

    def listing(self, vm: str | None) -> Listing:
        """Return the points of a VM or of all, as the catalogue has them. Raises what opening and reading it raises."""
        from vmkeep.catalog.listing import Listing, read_listing

        with contextlib.suppress(*OF_STORAGE):  # of a home that cannot be written: the catalogue is copied then
            prepare_home(self.settings)
            if (listing := read_listing(self.settings.catalog_path, vm)) is not None:
                return listing
        catalog = self.premises.catalog
        return Listing(catalog.summaries(vm), catalog.point_ids())

    @contextlib.contextmanager
    def host(self) -> Iterator[Host]:
        """The host that the URI names."""
        from vmkeep.host.local import LocalHost

        self._attend()
        with contextlib.closing(LocalHost(self.settings, lambda: self.premises.repository)) as host:
            yield host

    def _attend(self) -> None:
        """Say what libvirt is waited for, and let Ctrl-C end the wait."""
        from vmkeep.host.protocol import attend

        attend(
            tell=self.console.notice,
            cancelled=lambda: self.interruption.received,
            limit_seconds=self.settings.stalled_after_seconds,
        )

    def require_rights(self, vm: str) -> None:
        """Raise PermissionRefused when this user may not use the files of a VM that a point of it needs.

        To be called before anything is made or begun. Root is not looked at.
        """
        from vmkeep.host.tasks.survey import RequireRights

        if os.geteuid() != 0:
            with self.host() as host:
                host.ask(RequireRights(vm))

    @contextlib.contextmanager
    def engine(self, *, first_use: bool = False, needs_home: bool = True) -> Iterator[Engine]:
        """Start what runs flows; tell what it found interrupted. Signals ask the running operation to stop.

        Without ``needs_home`` it also runs where vmkeep's home cannot be written. ``first_use``: initialise the
        installation if that was never done, and say where the key is.
        """
        with self.interruption.postponed():
            from vmkeep.flows.engine import Engine
            from vmkeep.flows.requests import THIS_HOST

        gc.freeze()  # modules stay
        gc.set_threshold(_WHILE_WORKING)
        self._attend()
        if first_use:
            report = self.premises.ensure()
            if report is not None:
                tell_first_use(self.console, report)
        with (
            self.host() as host,
            Engine(
                self.premises,
                {THIS_HOST: host},
                needs_home=needs_home,
                last=self._invocation.ends_process,
                watch=self.console.note,
            ) as engine,
        ):
            for sentence in engine.recovered:
                self.console.notice(sentence)
            with self.interruption.handed_to(engine.cancel):
                # A signal that came while the engine started was raised there; one that comes now is handed on.
                yield engine

    def stand_apart(self) -> None:
        """Do the work in a process that may hang in the repository's storage; before anything else of a flow."""
        from vmkeep.cli.supervision import supervise

        supervise(self.settings.home, self.settings.repository)

    def expect_job(self) -> None:
        """Start what a job needs before it begins; called early, it costs no time."""
        from vmkeep.host.guard.standby import stand_by

        stand_by(self.settings.guards_dir)

    def start_debug_log(self) -> None:
        from vmkeep.cli.debuglog import log_beginning, start_log

        if self._invocation.logging:
            return
        self.console.debug_log = str(start_log(self.settings.logs_dir))
        self._invocation.logging = True
        log_beginning(self._invocation.arguments, self.settings)

    def close(self) -> None:
        opened = self.__dict__.get("premises")
        if opened is not None:
            opened.close()


@contextlib.contextmanager
def session(
    context: typer.Context,
    *,
    json: bool,
    connect: str | None,
    debug: bool,
    keys_too: bool = True,
    limits: tuple[str | None, str | None] = (None, None),
) -> Iterator[Session]:
    """Run one command: its options count with those given before it. ``keys_too``: see ``Session``.

    ``limits``: --max-rate and --max-requests, in place of the settings'.
    """
    invocation: Invocation = context.obj
    invocation.console.json = invocation.console.json or json
    invocation.connect = connect or invocation.connect
    invocation.debug = debug or invocation.debug
    if invocation.console.json and invocation.console.quiet:
        raise InvalidRequest("--json and --quiet are mutually exclusive", hint="Leave one of them out.")
    invocation.console.works = context.command_path.removeprefix("vmkeep ") not in _LOOKING
    running = Session(invocation, keys_too=keys_too, limits=limits)
    try:
        if invocation.debug:
            running.start_debug_log()
        yield running
    finally:
        running.close()


def tell_first_use(console: Console, report: InitReport) -> None:
    """Say what was made, and above all where the key is: without it nothing can ever be restored."""
    if report.created:
        console.remark(f"made a repository in {report.location}")
    console.notice(f"its key is {report.key_path}; keep a copy elsewhere, as `vmkeep key export` prints it")
