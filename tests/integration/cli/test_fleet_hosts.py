"""Hosts of a fleet through the commands, with a real `vmkeep serve`."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import COMMAND, environment, vmkeep


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The home of a server that runs, and where it listens for people."""
    home = tmp_path_factory.mktemp("server")
    free = ("serve", "--json", "--listen=127.0.0.1:0", "--listen-agents=127.0.0.1:0")
    command = [*COMMAND, *free]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(home), text=True) as served:
        assert served.stdout is not None
        yield home, json.loads(served.stdout.readline())["listening"]["people"]
        served.send_signal(signal.SIGTERM)
        assert served.wait(20) == 0


def document(home: Path, *arguments: str, stdin: str = "") -> dict[str, Any]:
    answer = vmkeep(home, *arguments, "--json", stdin=stdin)
    assert answer.status == 0, answer.err
    return answer.document()


def test_host_is_invited_enrols_and_is_shut_out(server: tuple[Path, str], tmp_path: Path) -> None:
    home, people = server
    host = tmp_path / "host"
    host.mkdir(mode=0o700)
    invited = document(home, "host", "invite", "alpha", "--for", "1h", "--server", people)
    assert invited["host"]["status"] == "invited"
    agent = document(host, "agent", "enrol", "-", stdin=f"{invited['token']}\n")["agent"]
    assert (agent["name"], agent["renewed"]) == ("alpha", True)
    assert document(host, "agent", "renew")["agent"]["renewed"] is False
    assert [each["name"] for each in document(home, "host", "list")["fleet"]] == ["alpha"]
    assert "enrolled" in vmkeep(home, "host", "list").out
    document(home, "host", "rename", "alpha", "beta")
    shown = document(home, "host", "show", "beta")["host"]
    assert [each["state"] for each in shown["certificates"]] == ["current"]
    assert [each["what"] for each in shown["events"]][:2] == ["invited", "enrolled"]
    assert "a host at 127.0.0.1" in vmkeep(home, "host", "show", "beta").out
    assert vmkeep(home, "host", "forget", "beta", "--yes").status == 2
    assert document(home, "host", "revoke", "beta", "--yes")["host"]["status"] == "revoked"
    document(home, "host", "forget", "beta", "--yes")
    assert document(home, "host", "list")["fleet"] == []


def test_what_cannot_be_is_said_and_a_token_is_not_logged(server: tuple[Path, str], tmp_path: Path) -> None:
    home, people = server
    host = tmp_path / "host"
    host.mkdir(mode=0o700)
    assert vmkeep(home, "host", "show", "nobody", "--json").error()["code"] == "host-not-found"
    assert "server_address" in vmkeep(home, "host", "invite", "gamma", "--json").error()["hint"]
    assert vmkeep(home, "host", "invite", "gamma", "--for", "1y", "--server", people).status == 2
    assert vmkeep(home, "host", "revoke", "gamma").status != 0
    token = document(home, "host", "invite", "gamma", "--server", people)["token"]
    refused = vmkeep(host, "agent", "enrol", token[:-9], "--debug", "--json").error()
    assert refused["code"] == "invalid-request"
    logs = "".join(path.read_text() for path in (host / "logs").iterdir())
    assert "not logged" in logs
    assert token[:40] not in logs + json.dumps(refused)
    assert vmkeep(host, "agent", "renew", "--json").error()["code"] == "key-missing"


def test_authority_is_shown_rotated_and_retired(tmp_path: Path) -> None:
    first = document(tmp_path, "ca", "show")["authorities"]
    assert [each["signs"] for each in first] == [True]
    assert vmkeep(tmp_path, "ca", "retire", "--yes").status == 2
    both = document(tmp_path, "ca", "rotate", "--yes")["authorities"]
    assert [each["signs"] for each in both] == [True, False]
    assert both[1]["fingerprint"] == first[0]["fingerprint"]
    assert first[0]["fingerprint"] in vmkeep(tmp_path, "ca", "show").out
    assert len(document(tmp_path, "ca", "retire", "--yes")["authorities"]) == 1
    assert (tmp_path / "authority.key").stat().st_mode & 0o077 == 0
    (tmp_path / "authority.key").chmod(0o644)
    assert vmkeep(tmp_path, "ca", "show", "--json").error()["code"] == "home-exposed"
