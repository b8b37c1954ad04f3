"""Who hears of a run, with a real HTTP server: also one that is away, refuses, hangs, or leads elsewhere."""

from __future__ import annotations

import http.server
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmkeep.audience import Audience
from vmkeep.config import Settings, load_settings
from vmkeep.errors import HomeExposed, InvalidRequest, TargetExists
from vmkeep.flows import telling
from vmkeep.flows.scheduled_run import run_job
from vmkeep.flows.telling import Pacing, Teller, read_addresses, try_telling
from vmkeep.planning.schedule import Job, Run, Untold, VmFailure

SECRET = "d9f3b1c0-secret"  # noqa: S105  a path that must be told to nobody
PATIENT = Pacing(answer_seconds=60, pauses_seconds=(0.01, 0.01), given_up_seconds=200)
"""For servers that answer: no busy machine makes them late."""
BEGAN, ENDED = "2026-11-30T02:30:00.000000+00:00", "2026-11-30T02:31:00.000000+00:00"
DONE = Run("a" * 32, Job.BACKUP, BEGAN, ENDED, 0, vms=("win11",))
FAILED = replace(
    DONE,
    status=37,
    code="incomplete",
    message="1 of 2 VMs were not backed up: web",
    failures=(VmFailure("web", "vm-busy", "it is held"),),
)
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Server:
    """A server that notes what it is asked, and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, bytes]] = []
        self.answers: list[Answer] = []
        noted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                noted.asked.append((self.command, self.path, body))
                (noted.answers.pop(0) if noted.answers else status(200))(self)

            do_POST = do_GET  # noqa: N815  its name there

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/{SECRET}"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _ in self.asked]


def status(code: int, **headers: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()

    return answer


def nonsense(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"nonsense\r\n\r\n")


def hang(until: threading.Event) -> Answer:
    def answer(_handler: http.server.BaseHTTPRequestHandler) -> None:
        until.wait()

    return answer


def drip(until: threading.Event) -> Answer:
    """Send a line now and then, each of which comes in time, until the event."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not until.wait(0.05):
            handler.wfile.write(b"X-More: 1\r\n")

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def settings_with(tmp_path: Path, url: str, **named: Any) -> Settings:
    """Return settings that name files with the address for a ping and a webhook, as ``named`` asks."""
    tmp_path.chmod(0o700)
    path = tmp_path / "address"
    path.write_text(f"# of the switch\n{url}\n", encoding="utf-8")
    path.chmod(0o600)
    fields: dict[str, Any] = {name: path if value is True else value for name, value in named.items()}
    return replace(load_settings(home=tmp_path / "home", environ={}), audience=Audience(**fields))


def told(settings: Settings, run: Run, pacing: Pacing = PATIENT, *, begin: bool = False) -> tuple[Untold, ...]:
    teller = Teller(settings, run.job, pacing)
    if begin:
        teller.begin()
    untold = tuple(teller.end(run))
    assert SECRET not in repr(untold)
    return untold


def test_switch_hears_of_the_start_and_of_success(tmp_path: Path, server: Server) -> None:
    assert told(settings_with(tmp_path, server.url, ping_url_file=True), DONE, begin=True) == ()
    assert server.paths == [f"/{SECRET}/start", f"/{SECRET}"]


def test_switch_hears_of_a_failure_with_its_status(tmp_path: Path, server: Server) -> None:
    assert told(settings_with(tmp_path, server.url, ping_url_file=True), FAILED) == ()
    assert server.paths == [f"/{SECRET}/37"]


def test_switch_of_another_job_does_not_hear_of_this_one(tmp_path: Path, server: Server) -> None:
    settings = settings_with(tmp_path, f"verify {server.url}", ping_url_file=True)
    assert told(settings, DONE, begin=True) == ()
    assert told(settings, replace(DONE, job=Job.VERIFY)) == ()
    assert server.paths == [f"/{SECRET}"]


def test_webhook_hears_of_a_failure_and_of_each_vm(tmp_path: Path, server: Server) -> None:
    assert told(settings_with(tmp_path, server.url, webhook_url_file=True), FAILED) == ()
    ((method, _, body),) = server.asked
    document = json.loads(body)
    assert (method, document["job"], document["ok"], document["status"]) == ("POST", "backup", False, 37)
    assert document["failed"] == [{"vm": "web", "code": "vm-busy", "message": "it is held"}]
    assert "web: it is held [vm-busy]" in document["text"]


@pytest.mark.parametrize(("of", "number"), [("failures", 0), ("all", 1)])
def test_webhook_hears_of_success_only_when_asked(tmp_path: Path, server: Server, of: str, number: int) -> None:
    told(settings_with(tmp_path, server.url, webhook_url_file=True, of=of), DONE)
    assert len(server.asked) == number


def test_webhook_hears_of_what_doctor_found_behind_a_success(tmp_path: Path, server: Server) -> None:
    told(settings_with(tmp_path, server.url, webhook_url_file=True), replace(DONE, problems=("guest: gone",)))
    assert json.loads(server.asked[0][2])["problems"] == ["guest: gone"]


def test_server_that_fails_is_asked_again(tmp_path: Path, server: Server) -> None:
    server.answers = [status(503), status(429)]
    assert told(settings_with(tmp_path, server.url, ping_url_file=True), DONE) == ()
    assert len(server.asked) == 3


def test_server_that_refuses_is_not_asked_again(tmp_path: Path, server: Server) -> None:
    server.answers = [status(404)]
    (untold,) = told(settings_with(tmp_path, server.url, ping_url_file=True), DONE)
    assert untold == Untold("ping", "127.0.0.1 answered with status 404")
    assert len(server.asked) == 1


def test_redirection_is_not_followed(tmp_path: Path, server: Server) -> None:
    server.answers = [status(302, Location=f"{server.url}/elsewhere")]
    (untold,) = told(settings_with(tmp_path, server.url, ping_url_file=True), DONE)
    assert untold.why == "127.0.0.1 answered with status 302"
    assert len(server.asked) == 1


def test_server_that_is_away_is_told_and_keeps_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/{SECRET}"
        settings = settings_with(tmp_path, url, ping_url_file=True, webhook_url_file=True)
        untold = told(settings, FAILED, begin=True)
    assert {each.way for each in untold} == {"ping", "webhook"}
    assert all("refused" in each.why for each in untold)


def test_server_that_hangs_is_given_up(tmp_path: Path, server: Server) -> None:
    over = threading.Event()
    server.answers = [hang(over)] * 3
    hurried = replace(PATIENT, answer_seconds=0.1)
    (untold,) = told(settings_with(tmp_path, server.url, ping_url_file=True), DONE, hurried)
    over.set()
    assert "no answer within" in untold.why


def test_server_that_sends_a_little_now_and_then_is_given_up(tmp_path: Path, server: Server) -> None:
    over = threading.Event()
    server.answers = [drip(over)] * 3
    hurried = replace(PATIENT, given_up_seconds=0.3)
    (untold,) = told(settings_with(tmp_path, server.url, ping_url_file=True), DONE, hurried)
    over.set()
    assert "given up" in untold.why


def test_what_answers_no_http_is_told(tmp_path: Path, server: Server) -> None:
    server.answers = [nonsense] * 3
    (untold,) = told(settings_with(tmp_path, server.url, ping_url_file=True), DONE)
    assert "no answer of HTTP" in untold.why


@pytest.mark.parametrize(
    "text",
    [
        f"http://example.org/{SECRET}",
        f"ftp://example.org/{SECRET}",
        f"https://user:{SECRET}@example.org/",
        f"https://example.org/{SECRET} and more",
        f"restore https://example.org/{SECRET}",
        f"https://[::1/{SECRET}",
        "",
    ],
)
def test_addresses_that_anybody_could_read_are_refused_without_telling_them(tmp_path: Path, text: str) -> None:
    path = tmp_path / "address"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(InvalidRequest) as raised:
        read_addresses(path, "ping_url_file")
    assert SECRET not in f"{raised.value.message} {raised.value.hint}"


def test_address_that_others_may_read_is_not_used(tmp_path: Path, server: Server) -> None:
    settings = settings_with(tmp_path, server.url, ping_url_file=True)
    (tmp_path / "address").chmod(0o644)
    with pytest.raises(HomeExposed):
        read_addresses(tmp_path / "address", "ping_url_file")
    (untold,) = told(settings, DONE)
    assert "exposed" in untold.why
    assert server.asked == []


def sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> Path:
    """Put a program in the place of the host's sendmail that keeps what it is given."""
    program, mail = tmp_path / "sendmail", tmp_path / "mail"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat > {mail}\n' + "\n".join(lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setattr(telling, "_MAILERS", (str(program),))
    return mail


def test_mail_names_the_failure_in_its_subject_and_each_vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mail = sendmail(tmp_path, monkeypatch)
    hostile = replace(FAILED, failures=(VmFailure("web\nBcc: all@example.org", "vm-busy", "ä"),))
    assert told(settings_with(tmp_path, "-", mail_to="root"), hostile) == ()
    head, _, body = mail.read_text().partition("\n\n")
    assert "To: root" in head
    assert f"Subject: vmkeep on {socket.gethostname()}: backup failed [incomplete]" in head
    assert "Bcc" not in head
    assert body
    assert (tmp_path / "arguments").read_text() == "-i -t\n"  # no address among them


def test_mailer_that_fails_is_told_with_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sendmail(tmp_path, monkeypatch, "echo 'no such relay' >&2", "exit 75")
    (untold,) = told(settings_with(tmp_path, "-", mail_to="root"), FAILED)
    assert untold.why.endswith("ended with status 75: no such relay")


def test_host_without_a_mailer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "_MAILERS", ())
    monkeypatch.setitem(os.environ, "PATH", str(tmp_path))
    (untold,) = told(settings_with(tmp_path, "-", mail_to="root"), FAILED)
    assert "sendmail" in untold.why


def test_trial_tells_all_who_are_named(tmp_path: Path, server: Server) -> None:
    tried = try_telling(settings_with(tmp_path, server.url, ping_url_file=True, webhook_url_file=True))
    assert (tried.told, tried.untold) == (("ping", "webhook"), ())
    assert "trial" in json.loads(next(body for method, _, body in server.asked if method == "POST"))["text"]
    with pytest.raises(InvalidRequest):
        try_telling(replace(load_settings(home=tmp_path / "home", environ={}), audience=None))


def test_home_in_which_nothing_can_be_recorded_is_told_before_the_run_is_refused(
    tmp_path: Path, server: Server
) -> None:
    settings = settings_with(tmp_path, server.url, ping_url_file=True, webhook_url_file=True)
    settings.home.mkdir(mode=0o700)
    settings.schedule_dir.write_text("no folder")
    told_of: list[str] = []
    with pytest.raises(TargetExists) as refused:
        run_job(settings, Job.BACKUP, uri=None, handed=lambda _stop: nullcontext(), warn=told_of.append)
    assert told_of == []
    assert f"/{SECRET}/{refused.value.exit_status}" in server.paths
    (body,) = (body for method, _, body in server.asked if method == "POST")
    assert json.loads(body)["code"] == "target-exists"
