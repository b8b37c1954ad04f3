"""Everything a command writes: tables and progress for people, one JSON document for programs, errors for both.

With ``--json`` standard output is exactly one JSON document or nothing, and standard error at most one. With
``--quiet`` a command reports nothing: errors, warnings and documents that were asked for are left.

What a command does is not undone, and not broken off, because nobody can be told of it. An output that fails is told at
the end, on the other one, and by the exit status (``lost``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, cast

from vmkeep.cli.outputs import Forgiving, silence_output
from vmkeep.cli.tables import Facts, Table
from vmkeep.cli.terminal import BOLD, PLAIN, printable, printable_json, printable_xml, statement, unscreened
from vmkeep.errors import InvalidRequest, OutputFailed, VmkeepError
from vmkeep.filesystem import size_text as size_text

if TYPE_CHECKING:
    from rich.console import Console as RichConsole

    from vmkeep.host.tasks.survey import Progress

BROKEN_PIPE_STATUS = 141  # as a shell reports a program that SIGPIPE ended


class Console:
    """Where one command writes to."""

    def __init__(self, *, json_wanted: bool) -> None:
        self.json = json_wanted
        self.quiet = False
        self.debug_log: str | None = None
        self.works = False
        """Whether the command does more than to print."""
        self._notices: list[str] = []
        self._stands_alone = False  # a document or a text was printed, beside which nothing else may stand
        self._output: OSError | UnicodeEncodeError | None = None
        self._silent: OSError | ValueError | None = None
        self._unsaid: list[str] = []

    # -- standard output ---------------------------------------------------------------------------------------

    def document(self, value: Mapping[str, Any]) -> None:
        """Print the command's one JSON document."""
        self.text(printable_json(value, indent=2) + "\n")

    def line(self, value: Mapping[str, Any]) -> None:
        """Print one of many JSON documents, each a line, at once: for a command that does not end."""
        self.text(printable_json(value) + "\n")

    def show(self, *parts: str | Table | Facts) -> None:
        """Print lines and tables for people, unless they want quiet. Texts are never cut: a path can be copied."""
        if self.quiet:
            return
        on_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if on_terminal else None
        lines: list[str] = []
        for part in parts:
            if isinstance(part, str):
                lines.append(statement(part))
                continue
            shown = list(part.lines(width))
            if on_terminal and isinstance(part, Table) and os.environ.get("TERM", "dumb") != "dumb":
                shown[0] = f"{BOLD}{shown[0]}{PLAIN}"
            lines += shown
        self._print("".join(f"{line}\n" for line in lines))

    def text(self, text: str) -> None:
        """Print a text that other programs read, exactly as it is; what steers a terminal is shown on it as escapes."""
        self._stands_alone = True
        self._print(printable(text) if sys.stdout.isatty() else text)

    def xml(self, xml: str) -> None:
        """Print a document, exactly as it is; on a terminal with references for what would steer it."""
        self._stands_alone = True
        self._print(printable_xml(xml) if sys.stdout.isatty() else xml)

    def _print(self, text: str) -> None:
        if self._output is not None:
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except (OSError, UnicodeEncodeError) as error:
            self.lose_output(error)

    @property
    def output_is_lost(self) -> bool:
        return self._output is not None

    def lose_output(self, error: OSError | UnicodeEncodeError) -> None:
        """Standard output cannot be written: what follows goes nowhere."""
        self._output = self._output or error
        silence_output()

    # -- standard error ----------------------------------------------------------------------------------------

    def notice(self, sentence: str) -> None:
        """Say something beside the result: at once to people, with the error (if any) to programs."""
        if self.json:
            self._notices.append(sentence)
        else:
            self._say(f"vmkeep: {statement(sentence)}\n")

    def remark(self, sentence: str) -> None:
        """Say something good to know beside the result, unless people want quiet."""
        if not self.quiet:
            self.notice(sentence)

    def failure(self, error: VmkeepError) -> None:
        """Print an error, with what to do next."""
        notes = list(getattr(error, "__notes__", ()))
        if self.json:
            value: dict[str, Any] = {"error": error.as_dict()}
            if notes:
                value["notes"] = notes
            self._say_json(value)
            return
        lines = [f"vmkeep: error: {error.message} [{error.code}]", *(f"  also: {note}" for note in notes)]
        if error.hint:
            lines.append(f"  hint: {error.hint}")
        self._say("".join(f"{statement(line)}\n" for line in lines))

    def end(self) -> None:
        """Say what is left to say after success."""
        if self.json:
            self._say_json({})
        elif self.debug_log is not None:
            self._say(f"vmkeep: debug log: {statement(self.debug_log)}\n")

    def lost(self) -> int:
        """Tell of an output that failed, after all else; return the exit status for that, 0 when none did."""
        if self._output is not None:
            error = self._output
            gone = isinstance(error, BrokenPipeError) or getattr(error, "errno", None) == errno.EPIPE
            if not gone or self.works:
                self.failure(_output_failed(error, works=self.works, gone=gone))
            elif self.json:
                self._say_json({})
            return BROKEN_PIPE_STATUS if gone else OutputFailed.exit_status
        if self._silent is None:
            return 0
        if not self.json:
            self._unsaid.append(f"vmkeep: error: standard error cannot be written: {_reason(self._silent)}\n")
        if not self._stands_alone:
            self._print("".join(self._unsaid))
        return OutputFailed.exit_status

    @property
    def can_ask(self) -> bool:
        """Whether somebody sits at a terminal who can be asked."""
        return not self.json and sys.stdin.isatty() and sys.stderr.isatty()

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something that cannot be taken back; raises InvalidRequest without a yes."""
        if yes:
            return
        if not self.can_ask:
            raise InvalidRequest(f"{question} Without a terminal, this needs --yes", hint="Give --yes if you mean it.")
        if not self.ask(question):
            raise InvalidRequest("Not confirmed; nothing was changed", hint="Answer y, or give --yes.")

    def ask(self, question: str) -> bool:
        """Ask on the terminal and return whether the answer was yes."""
        self._say(f"{statement(question)} [y/N] ")
        answer = sys.stdin.readline()
        if not answer.endswith("\n"):
            self._say("\n")  # the end of the input, which leaves the cursor behind the question
        return answer.strip().lower() in ("y", "yes")

    def ask_about(self, error: VmkeepError, question: str) -> bool:
        """Show what an error lists, and ask whether it shall be so all the same."""
        self.notice(": ".join((error.message, "; ".join(error.__notes__))))
        return self.ask(question)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None]]:
        """Show how an operation comes on, with rate and time left; no more than notes where there is no terminal."""
        if self.json or self.quiet or not sys.stderr.isatty():
            yield self.note
            return
        from vmkeep.cli.progress import progress_bar

        with progress_bar(_rich(sys.stderr)) as watch:

            def watch_and_note(report: Progress) -> None:
                self.note(report)
                watch(report)

            yield watch_and_note

    def note(self, report: Progress) -> None:
        """Say what a report has to say beside how far things are."""
        if report.note is not None:
            self.notice(report.note)

    def _say_json(self, value: dict[str, Any]) -> None:
        if self._notices:
            value["notices"] = self._notices
        if self.debug_log is not None:
            value["debug_log"] = self.debug_log
        if value:
            self._say(printable_json(value) + "\n")

    def _say(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError) as error:
            self._silent = error
            self._unsaid.append(text)


def _output_failed(error: OSError | UnicodeEncodeError, *, works: bool, gone: bool) -> OutputFailed:
    what = "was closed by its reader" if gone else f"cannot be written: {_reason(error)}"
    if isinstance(error, UnicodeEncodeError):
        hint = "Set a UTF-8 locale, for example LC_ALL=C.UTF-8."
    elif works:
        hint = "Only its result was lost: the command need not be run again for that. `vmkeep log` shows operations."
    else:
        hint = None
    done = "What was asked for was done, but standard output" if works else "Standard output"
    return OutputFailed(f"{done} {what}", hint=hint)


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"it has the encoding {error.encoding}, which lacks a letter of the result"
    return getattr(error, "strerror", None) or str(error)


def duration_text(seconds: float) -> str:
    """Return a time span for people: "0.4 s", "75 s", "12 min 5 s", "3 h 2 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def time_text(created: str) -> str:
    """Return an ISO time in the time zone of whoever reads it, or the text when it is none.

    The catalogue of an older release may hold a point with any text as its time: it took over what others wrote.
    """
    from datetime import datetime

    try:
        return datetime.fromisoformat(created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return created


def _rich(stream: Any) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(
        file=cast("IO[str]", Forgiving(unscreened(stream))), markup=False, highlight=False, emoji=False, soft_wrap=False
    )
