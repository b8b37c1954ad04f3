"""The table [tell] of the settings: who hears of runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmkeep.audience import Audience
from vmkeep.config import load_settings
from vmkeep.errors import InvalidRequest


def read(tmp_path: Path, text: str) -> Audience | None:
    (tmp_path / "vmkeep.toml").write_text(text, encoding="utf-8")
    tmp_path.chmod(0o700)
    return load_settings(home=tmp_path, environ={}).audience


def test_nobody_hears_without_the_table(tmp_path: Path) -> None:
    assert read(tmp_path, "workers = 2\n") is None


def test_all_ways_are_read(tmp_path: Path) -> None:
    text = '[tell]\nof = "all"\nmail_to = "root@alpha"\nwebhook_url_file = "/etc/hook"\nping_url_file = "/etc/ping"\n'
    assert read(tmp_path, text) == Audience("all", "root@alpha", Path("/etc/hook"), Path("/etc/ping"))


@pytest.mark.parametrize(
    "text",
    [
        'tell = "root"',
        '[tell]\nof = "some"',
        '[tell]\nmail_to = "a@b, c@d"',
        '[tell]\nmail_to = "-f"',
        '[tell]\nmail_to = "a\\nBcc: b"',
        '[tell]\nmail_to = ""',
        '[tell]\nping_url_file = "ping"',
        '[tell]\nping_url = "https://hc-ping.com/secret"',
        "[tell]\nmail_to = 7",
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read(tmp_path, text)
    assert "tell" in raised.value.message
    assert raised.value.path == str(tmp_path / "vmkeep.toml")


@pytest.mark.parametrize("text", ['objective = "26"', "objective = 26", 'objective = "0h"'])
def test_objective_is_a_length_of_time(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidRequest):
        read(tmp_path, text)
    with pytest.raises(InvalidRequest):
        read(tmp_path, f"[vm.guest]\n{text}")


def test_objective_of_one_vm_counts_for_it(tmp_path: Path) -> None:
    read(tmp_path, 'objective = "26h"\n[vm.guest]\nobjective = "7d"\n')
    settings = load_settings(home=tmp_path, environ={})
    assert settings.objective_seconds == 93600
    assert settings.of_vm("guest", "").objective_seconds == 604800
