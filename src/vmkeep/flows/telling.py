"""Who hears of a run: by mail, by a webhook, and by pings to a dead man's switch, which tells when nothing runs.

A ping has the form of healthchecks.io (https://healthchecks.io/docs/http_api/): ``URL/start``, ``URL`` for success,
``URL/STATUS`` for a failure. The addresses are secrets, as whoever has one may speak in vmkeep's name: they stand in
files, and in no message. No answer is believed but its status, no redirection is followed, and whoever does not answer
is given up after a time; whatever comes of telling, the run stays what it was.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from vmkeep import __version__
from vmkeep.audience import ALL, Audience
from vmkeep.config import Settings
from vmkeep.errors import InvalidRequest, OperationFailed, VmkeepError
from vmkeep.filesystem import file_errors
from vmkeep.logs import get_logger
from vmkeep.ownership import refuse_exposed_file
from vmkeep.planning.schedule import Job, Run, Untold, moment_text
from vmkeep.values import dataclass

_log = get_logger(__name__)
PING, WEBHOOK, MAIL = "ping", "webhook", "mail"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_ANSWER_SECONDS: Final = 10.0
_PAUSES_SECONDS: Final = (1.0, 4.0)
_GIVEN_UP_SECONDS: Final = 45.0
_MAILER_SECONDS: Final = 60.0
_MAILERS: Final = ("/usr/sbin/sendmail", "/usr/lib/sendmail")
_MOST_BYTES: Final = 1 << 16
_AGAIN: Final = (408, 425, 429)


class _Refused(Exception):
    """Why somebody could not be told. ``final``: it would be no better the next time."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


@dataclass(frozen=True, slots=True)
class Pacing:
    """How long an answer is waited for, what is waited before each further try, and when all of it is given up."""

    answer_seconds: float = _ANSWER_SECONDS
    pauses_seconds: tuple[float, ...] = _PAUSES_SECONDS
    given_up_seconds: float = _GIVEN_UP_SECONDS


class Teller:
    """Tells of one run of a job."""

    def __init__(self, settings: Settings, job: Job, pacing: Pacing | None = None) -> None:
        self._audience = settings.audience or Audience()
        self._job = job
        self._pacing = pacing or Pacing()
        self._beginning: Callable[[], str | None] | None = None

    def begin(self) -> None:
        """Say that the job runs, beside it: a switch that does not answer keeps nothing from beginning."""
        if self._audience.ping_url_file is not None:
            self._beginning = _beside(lambda: self._ping("start"), self._pacing.given_up_seconds)

    def end(self, run: Run) -> Iterator[Untold]:
        """Say how the run ended, and yield who could not be told."""
        begun = self._beginning() if self._beginning is not None else None
        if begun is not None:
            _log.info("start not told", why=begun)
        ways: list[tuple[str, Callable[[], None]]] = []
        if self._audience.ping_url_file is not None:
            ways.append((PING, lambda: self._ping("" if run.succeeded else str(run.status))))
        if not run.succeeded or run.problems or self._audience.of == ALL:
            if self._audience.webhook_url_file is not None:
                ways.append((WEBHOOK, lambda: self._post(run)))
            if self._audience.mail_to is not None:
                ways.append((MAIL, lambda: self._mail(run)))
        # Side by side: the one that hangs does not make the others late.
        ended = [
            (way, _beside(call, self._pacing.given_up_seconds + _MAILER_SECONDS * (way == MAIL))) for way, call in ways
        ]
        for way, outcome in ended:
            why = outcome()
            if why is not None:
                yield Untold(way, why)

    # -- the ways ------------------------------------------------------------------------------------------------

    def _ping(self, word: str) -> None:
        assert self._audience.ping_url_file is not None
        url = read_addresses(self._audience.ping_url_file, "ping_url_file").get(self._job)
        if url is not None:
            address = f"{url.rstrip('/')}/{word}" if word else url
            self._again(lambda: _send(urllib.request.Request(address), self._pacing.answer_seconds))  # noqa: S310  read_addresses

    def _post(self, run: Run) -> None:
        assert self._audience.webhook_url_file is not None
        url = next(iter(read_addresses(self._audience.webhook_url_file, "webhook_url_file").values()))
        body = json.dumps(message_of(run, socket.gethostname())).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  read_addresses
        self._again(lambda: _send(request, self._pacing.answer_seconds))

    def _mail(self, run: Run) -> None:
        assert self._audience.mail_to is not None
        program = next((path for path in _MAILERS if os.access(path, os.X_OK)), None) or shutil.which("sendmail")
        if program is None:
            raise _Refused("there is no program sendmail on this host")
        document = message_of(run, socket.gethostname())
        mail = EmailMessage()
        mail["To"] = self._audience.mail_to
        mail["Subject"] = document["text"].splitlines()[0][:200]
        mail["Auto-Submitted"] = "auto-generated"
        mail.set_content(document["text"])
        try:
            ended = subprocess.run(
                [program, "-i", "-t"],
                input=mail.as_bytes(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_MAILER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _Refused(f"{program} did not end within {_MAILER_SECONDS:.0f} s") from error
        except OSError as error:
            raise _Refused(f"{program} cannot be run: {error.strerror}") from error
        if ended.returncode != 0:
            said = ended.stderr.decode(errors="replace").strip().splitlines()
            raise _Refused(f"{program} ended with status {ended.returncode}: {said[-1][:200] if said else 'no word'}")

    def _again(self, call: Callable[[], None]) -> None:
        for pause in (*self._pacing.pauses_seconds, None):
            try:
                call()
                return
            except _Refused as refused:
                if pause is None or refused.final:
                    raise
                time.sleep(pause)


@dataclass(frozen=True, slots=True)
class Tried:
    """By which ways somebody was told, and by which nobody could be."""

    told: tuple[str, ...]
    untold: tuple[Untold, ...]

    def require_all(self) -> None:
        """Raise OperationFailed when somebody could not be told."""
        if self.untold:
            raise OperationFailed(
                "; ".join(each.sentence for each in self.untold), hint="See `[tell]` in the settings of vmkeep."
            )


def try_telling(settings: Settings) -> Tried:
    """Tell all whom the settings name that this is a trial; a ping says success. Raises InvalidRequest for nobody."""
    ways = [way for way in (PING, WEBHOOK, MAIL) if _names(settings, way)]
    if not ways:
        raise InvalidRequest(
            "the settings name nobody who is told of runs",
            path=str(settings.settings_path),
            hint='Write a table [tell] into it, with mail_to = "root" for instance.',
        )
    now = moment_text(datetime.now(UTC))
    trial = Run("", Job.BACKUP, now, now, 0, message="this is a trial, and nothing was done")
    teller = Teller(replace(settings, audience=replace(settings.audience or Audience(), of=ALL)), Job.BACKUP)
    untold = tuple(teller.end(trial))
    return Tried(tuple(way for way in ways if way not in [each.way for each in untold]), untold)


def _names(settings: Settings, way: str) -> bool:
    audience = settings.audience or Audience()
    named = {PING: audience.ping_url_file, WEBHOOK: audience.webhook_url_file, MAIL: audience.mail_to}
    return named[way] is not None


def message_of(run: Run, host: str) -> dict[str, Any]:
    """Return what a webhook is sent, with the text of a mail as its ``text``."""
    how = "done" if run.succeeded else f"failed [{run.code or run.status}]"
    lines = [f"vmkeep on {host}: {run.job} {how}"]
    if run.message:
        lines.append(run.message)
    lines += [f"{each.vm}: {each.message} [{each.code}]" for each in run.failures]
    lines += [f"problem: {problem}" for problem in run.problems or ()]
    lines.append(f"begun {run.started[:19]}Z, ended {(run.ended or run.started)[:19]}Z")
    if run.vms:
        lines.append(f"done: {', '.join(run.vms)}")
    return {
        "host": host,
        "job": str(run.job),
        "ok": run.succeeded,
        "status": run.status,
        "code": run.code or None,
        "started": run.started,
        "ended": run.ended,
        "vms": list(run.vms),
        "failed": [{"vm": each.vm, "code": each.code, "message": each.message} for each in run.failures],
        "problems": list(run.problems or ()),
        # What most chats show of a webhook.
        "text": "\n".join(lines),
    }


def read_addresses(path: Path, what: str) -> Mapping[Job, str]:
    """Return the URL for each job in a file of them: a line ``URL``, for the job ``backup``, or ``JOB URL``.

    Raises HomeExposed for a file that others may read or write, HostFileMissing, and InvalidRequest for one that holds
    something else; the message has nothing of its content.
    """
    refuse_exposed_file(path, what, secret=True)
    with file_errors(path, "read"):
        text = path.read_bytes()[:_MOST_BYTES].decode("utf-8", "replace")
    found: dict[Job, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        job, url = (words[0], words[1]) if len(words) == 2 else (str(Job.BACKUP), words[0])
        if len(words) > 2 or job not in list(Job) or not _is_safe(url):
            raise InvalidRequest(
                f"line {number} of {path}, {what}, is no address",
                path=str(path),
                hint="Write https://..., and before it the job when it is not for the backup, as in "
                "`verify https://...`. http:// is for this host itself alone.",
            )
        found[Job(job)] = url
    if not found:
        raise InvalidRequest(f"{path}, {what}, holds no address", path=str(path), hint="Write one into it: https://...")
    return found


def _is_safe(url: str) -> bool:
    """Return whether what is said there is read by nobody on the way."""
    try:
        address = urlsplit(url)
        host, _ = address.hostname, address.port
    except ValueError:
        return False
    if not host or not url.isascii() or not url.isprintable() or address.username is not None:
        return False
    return address.scheme == "https" or (address.scheme == "http" and host in _LOOPBACK)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """What is to be told is told to the address that a person wrote down, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _send(request: urllib.request.Request, answer_seconds: float) -> None:
    """Send a request; raises _Refused in words in which nothing of its address stands but the host."""
    host = urlsplit(request.full_url).hostname or "the server"
    request.add_header("User-Agent", f"vmkeep/{__version__}")
    opener = urllib.request.build_opener(_NoRedirection)
    try:
        with opener.open(request, timeout=answer_seconds) as answer:
            answer.read(1)
    except urllib.error.HTTPError as error:
        error.close()
        final = error.code < 500 and error.code not in _AGAIN
        raise _Refused(f"{host} answered with status {error.code}", final=final) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Refused(f"{host}: {_why(error, answer_seconds)}") from None


def _why(error: Exception, answer_seconds: float) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return f"no answer within {answer_seconds:.0f} s"
    if isinstance(reason, ssl.SSLError):
        return f"TLS failed ({reason.reason or 'no reason was given'})"
    if isinstance(reason, OSError):
        return reason.strerror or type(reason).__name__
    return f"no answer of HTTP ({type(reason).__name__})"


def _beside(call: Callable[[], None], seconds: float) -> Callable[[], str | None]:
    """Do something in a thread; what is returned waits for it, and returns why it failed, None when it did not.

    A name service that hangs has no time-out, and a server may send a byte now and then: what takes longer than
    ``seconds`` is left to its thread, which ends with the process.
    """
    outcome: list[str | None] = []

    def attempt() -> None:
        try:
            call()
        except _Refused as refused:
            outcome.append(str(refused))
        except VmkeepError as error:
            outcome.append(error.message)
        except Exception as error:  # its text may hold an address
            outcome.append(f"it failed ({type(error).__name__})")
        else:
            outcome.append(None)

    thread = threading.Thread(target=attempt, name="telling", daemon=True)
    until = time.monotonic() + seconds
    thread.start()

    def wait() -> str | None:
        thread.join(max(0.0, until - time.monotonic()))
        return outcome[0] if outcome else f"it was given up after {seconds:.0f} s"

    return wait
