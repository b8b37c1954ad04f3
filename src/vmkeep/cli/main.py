"""The command `vmkeep`: its commands put together, and how every way to end becomes an exit status."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from vmkeep import __version__
from vmkeep.cli.console import Console
from vmkeep.cli.interruption import Interruption
from vmkeep.cli.ondemand import OnDemandGroup
from vmkeep.cli.outputs import OutputLost, make_whole
from vmkeep.cli.session import ConnectOption, DebugOption, Invocation, JsonOption, QuietOption
from vmkeep.cli.shells import ASKED_BY, INSTALL, SHOW, answer, install_or_show, is_asked_for
from vmkeep.cli.supervision import tell_status
from vmkeep.errors import GivenUp, Interrupted, InvalidRequest, VmkeepError
from vmkeep.filesystem import fault_error

_WHILE_LOADING = 200_000
EXAMPLE = "Example: vmkeep backup win11"

app = typer.Typer(
    name="vmkeep",
    cls=OnDemandGroup,  # with all commands
    help="Keep the whole state of virtual machines: disks, UEFI variables and TPM of one and the same instant.",
    epilog=f"{EXAMPLE}   (exit status 0 means that all that was asked for was done)",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,  # ours is in vmkeep.cli.shells
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def before_command(
    context: typer.Context,
    json: JsonOption = False,
    connect: ConnectOption = None,
    debug: DebugOption = False,
    quiet: QuietOption = False,  # noqa: ARG001  its callback has told the console
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    install_completion: Annotated[
        bool, typer.Option(INSTALL, help="Complete names in the shell you type in; or add: bash, zsh, fish.")
    ] = False,
    show_completion: Annotated[bool, typer.Option(SHOW, help="Print the shell's script for that.")] = False,
) -> None:
    invocation: Invocation = context.obj
    invocation.console.json = invocation.console.json or json
    invocation.connect = connect
    invocation.debug = debug
    if version:
        if invocation.console.json:
            invocation.console.document({"version": __version__})
        else:
            invocation.console.show(f"vmkeep {__version__}")
        raise typer.Exit(0)
    if install_completion or show_completion:
        install_or_show([INSTALL if install_completion else SHOW], invocation.console)
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        if invocation.console.json:
            raise InvalidRequest("No command was given", hint="`vmkeep --help` lists the commands.")
        invocation.console.text(f"{context.get_help()}\n")
        raise typer.Exit(InvalidRequest.exit_status)


def main(arguments: Sequence[str], *, ends_process: bool = False) -> int:
    """Run one command line and return its exit status. ``ends_process``: the caller ends the process with it."""
    console = Console(json_wanted=_json_wanted(arguments))
    interruption = Interruption(console.notice)
    invocation = Invocation(console, interruption, arguments=arguments, ends_process=ends_process)
    try:
        if is_asked_for(arguments):
            install_or_show(arguments, console)
            return 0
        with interruption.installed():
            command = typer.main.get_command(app)
            result = command.main(args=list(arguments), prog_name="vmkeep", standalone_mode=False, obj=invocation)
        return _ended(console, result if isinstance(result, int) else 0)
    except OutputLost as lost:  # of the parser, which prints help by itself
        console.lose_output(lost)
        return _ended(console, 0)
    except SystemExit as ended:
        # Typer's own answer to a closed pipe, while it prints help.
        if ended.code == 1:
            console.lose_output(BrokenPipeError(errno.EPIPE, "its reader is gone"))
        return _ended(console, int(ended.code or 0) if ended.code != 1 else 0)
    except BaseException as raised:
        error = _translated(raised, interruption.received)
        if invocation.logging:
            from vmkeep.cli.debuglog import log_failure

            log_failure(raised)
        if console.output_is_lost:
            error.add_note("standard output could not be written")
        console.failure(error)
        if not console.json:
            console.end()
        if not console.output_is_lost:
            console.lost()
        return error.exit_status


def _ended(console: Console, status: int) -> int:
    """Say what is left to say, and return the exit status: that of an output which failed, unless all did not end."""
    if not (console.json and console.output_is_lost):  # that says all in one document
        console.end()
    return status or console.lost()


def run() -> NoReturn:
    """The entry point of the installed command."""
    make_whole()
    # Whatever is made for others to read is made for nobody else to write, also by programs that are run; and what is
    # made here can be used by its owner.
    os.umask((os.umask(0o077) | 0o022) & 0o077)
    # Most of a short command is imports, and an eighth of those is the collector looking at modules that stay. Where
    # much is done afterwards, `Session.engine` makes it look more often.
    gc.set_threshold(_WHILE_LOADING)
    if ASKED_BY in os.environ:
        _complete()
    status = main(sys.argv[1:], ends_process=True)
    # All that was opened is closed by now. Taking the modules apart, as the interpreter does at its end, would take
    # 0.14 s, a sixth of a short command.
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    tell_status(status)
    os._exit(status)


def _complete() -> NoReturn:
    """Answer a shell. Whatever goes wrong, the line that is being typed stays as it is."""
    with contextlib.suppress(BaseException):
        answer(os.environ)
        sys.stdout.flush()
    os._exit(0)


def _translated(raised: BaseException, signalled: Interrupted | None) -> VmkeepError:
    """Return the error to tell; ``signalled`` is what a signal raised, and what others may hide in theirs."""
    if isinstance(raised, VmkeepError):
        return raised
    if isinstance(raised, GivenUp):
        return raised.error
    if isinstance(raised, typer.TyperException):
        return InvalidRequest(raised.format_message().rstrip(".\n"), hint=_usage_hint(raised))
    if isinstance(raised, typer.Abort | KeyboardInterrupt):
        return Interrupted("Interrupted by Ctrl-C")
    if signalled is not None and _came_of(raised, signalled):
        return signalled
    if isinstance(raised, FileNotFoundError) and not _has_current_folder():
        return InvalidRequest(
            "the current folder was deleted, and a relative path begins there",
            hint="Go to another folder (`cd`), or give absolute paths.",
        )
    return fault_error(raised)


def _has_current_folder() -> bool:
    try:
        Path.cwd()
    except FileNotFoundError:
        return False
    return True


def _came_of(raised: BaseException, cause: BaseException) -> bool:
    """Return whether an error was raised from another, or while that was handled."""
    seen: set[int] = set()
    error: BaseException | None = raised
    while error is not None and id(error) not in seen:
        if error is cause:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def _usage_hint(raised: typer.TyperException) -> str:
    context = getattr(raised, "ctx", None)
    command_path = context.command_path if context is not None else "vmkeep"
    return f"See `{command_path} --help`."


def _json_wanted(arguments: Sequence[str]) -> bool:
    """Tell before anything is parsed, because an error of parsing must be JSON as well."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


if __name__ == "__main__":
    run()
