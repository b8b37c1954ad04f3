"""Hosts that share a repository: met, trusted, shut out, copied, put back, and with keys that are lost.

With real repositories, through the commands.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import Answer, environment, typed, vmkeep
from tests.integration.cli.terminal import answered
from tests.integration.cli.test_catch_up import VM, make, premises
from vmkeep.catalog import Trust
from vmkeep.cli.main import main
from vmkeep.errors import HostDistrusted, PermissionRefused
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.hosts import look_for_hosts, refuse_distrusted, told_of_base
from vmkeep.flows.trust import is_trusted
from vmkeep.keys.signing import SigningKey
from vmkeep.repository.layout import FrameKind, canonical


def inside(home: Path, *arguments: str) -> Answer:
    """Run a command that starts no other process in this one, which takes a twentieth of the time."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("VMKEEP_HOME", str(home))
        status = main(list(arguments))
    return Answer(status, out.getvalue(), err.getvalue())


def host_key(home: Path) -> SigningKey:
    return SigningKey.load(home / "host.key")


def hosts(home: Path) -> dict[str, dict[str, Any]]:
    return {host["fingerprint"]: host for host in inside(home, "host", "list", "--json").document()["hosts"]}


def second_home(first: Path, tmp_path: Path, *options: str, name: str = "second") -> Path:
    """Another installation that has the repository's key, and takes the repository over."""
    home = tmp_path / name
    home.mkdir(mode=0o700)
    shutil.copytree(first / "keys", home / "keys")
    answer = inside(home, "init", "--repository", str(tmp_path / "repository"), "--adopt", *options)
    assert answer.status == 0, answer.err
    return home


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """An installation with a repository of its own and one point of win11."""
    home = tmp_path / "first"
    with premises(home) as place:
        place.initialise(str(tmp_path / "repository"))
    assert not (home / "host.key").exists()
    make(home, b"first")
    return home


def made_by(home: Path) -> list[tuple[str, str]]:
    points = inside(home, "points", "--json").document()["points"]
    return [(point["made_by"]["key"], point["made_by"]["trust"]) for point in points]


def test_key_is_made_with_the_first_point_for_its_owner_only_and_in_nothing_else(first: Path, tmp_path: Path) -> None:
    path = first / "host.key"
    assert path.stat().st_mode & 0o777 == 0o600
    key = host_key(first)
    assert made_by(first) == [(key.fingerprint, "own")]
    make(first, b"again", minute=1)
    assert host_key(first) == key
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse\n")
    vmkeep(first, "key", "export", "--output", str(tmp_path / "export"), "--passphrase-file", str(passphrase))
    inside(first, "points", "--debug")
    secret = (key.seed, key.seed.hex().encode())
    everything = [file for file in tmp_path.rglob("*") if file.is_file() and file != path]
    assert len(everything) > 10
    assert not [file for file in everything if any(form in file.read_bytes() for form in secret)]


def test_key_has_its_mode_under_any_umask(first: Path) -> None:
    before = os.umask(0)
    try:
        (first / "host.key").unlink()
        make(first, b"second", minute=1)
    finally:
        os.umask(before)
    assert (first / "host.key").stat().st_mode & 0o777 == 0o600


def test_host_that_is_met_is_told_and_not_trusted_until_somebody_says_so(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path)
    key = host_key(first)
    assert made_by(second) == [(key.fingerprint, "unknown")]
    assert f"unknown key {key.fingerprint[:8]}" in inside(second, "points").out
    with premises(second) as place:
        (point,) = place.catalog.points()
        assert not place.catalog.is_signed_by_trusted_host(point.id)
        assert not is_trusted(place.catalog, point)
    restored = vmkeep(second, "restore", "win11@latest", "--output", str(tmp_path / "out"))
    assert restored.status == 0
    assert f"vmkeep host trust {key.fingerprint}" in restored.err
    trusted = inside(second, "host", "trust", key.fingerprint[:8], "--json").document()["hosts"]
    assert [(host["fingerprint"], host["trust"], host["points"]) for host in trusted] == [
        (key.fingerprint, "trusted", 1)
    ]
    assert made_by(second) == [(key.fingerprint, "trusted")]
    with premises(second) as place:
        assert place.catalog.is_signed_by_trusted_host(point.id)
        assert is_trusted(place.catalog, point)  # so what it says may reach into this host
        place.catalog.trust_host(key.fingerprint, Trust.DISTRUSTED)
        assert not is_trusted(place.catalog, point)
        place.catalog.trust_host(key.fingerprint, Trust.TRUSTED)
    again = vmkeep(second, "restore", "win11@latest", "--output", str(tmp_path / "out2"))
    assert (again.status, again.err) == (0, "")


@pytest.mark.parametrize("option", ["--yes", "--trust"])
def test_adoption_takes_the_answer_on_the_command_line(first: Path, tmp_path: Path, option: str) -> None:
    key = host_key(first)
    options = [option] if option == "--yes" else [option, key.fingerprint]
    assert made_by(second_home(first, tmp_path, *options)) == [(key.fingerprint, "trusted")]


@pytest.mark.parametrize(("answer", "trust"), [("y", "trusted"), ("n", "unknown")])
def test_adoption_asks_on_a_terminal(first: Path, tmp_path: Path, answer: str, trust: str) -> None:
    second = tmp_path / "second"
    second.mkdir(mode=0o700)
    shutil.copytree(first / "keys", second / "keys")
    shown = answered(second, "init", "--repository", str(tmp_path / "repository"), "--adopt", answer=f"{answer}\n")
    assert f"key {host_key(first).fingerprint}. Trust" in shown
    assert made_by(second) == [(host_key(first).fingerprint, trust)]


def test_answers_go_with_adoption_only_and_name_keys_that_are_there(first: Path) -> None:
    assert inside(first, "init", "--yes").status == 2
    refused = inside(first, "init", "--adopt", "--trust", "0" * 32)
    assert (refused.status, "0" * 32 in refused.err) == (2, True)
    refused = inside(first, "host", "trust", host_key(first).fingerprint)
    assert (refused.status, "itself" in refused.err) == (2, True)
    assert inside(first, "host", "trust", "abc").status == 2


def test_newer_point_of_an_unknown_host_is_neither_taken_nor_passed_over_silently(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path, "--yes")
    own = make(first, b"mine", minute=1)
    theirs = make(second, b"theirs", minute=2)
    key = host_key(second).fingerprint
    answer = vmkeep(first, "restore", "win11@latest", "--output", str(tmp_path / "out"), "--json")
    assert (answer.status, answer.error()["code"]) == (2, "choice-required")
    assert all(word in answer.err for word in (own.id, theirs.id, key))
    assert "new here" in answer.err  # what was met just now is said with the error
    assert not (tmp_path / "out").exists()
    by_time = vmkeep(first, "restore", "win11@2026-03-01T10:01", "--output", str(tmp_path / "by-time"), "--json")
    assert by_time.document()["restored"]["point"] == own.id
    inside(first, "host", "trust", key)
    taken = vmkeep(first, "restore", "win11@latest", "--output", str(tmp_path / "out"), "--json")
    assert taken.document()["restored"]["point"] == theirs.id


def test_distrusted_host_is_passed_over_and_its_points_become_no_vm(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path, "--yes")
    own = make(first, b"mine", minute=1)
    theirs = make(second, b"theirs", minute=2)
    key = host_key(second).fingerprint
    said = inside(first, "host", "distrust", key)
    assert f"{key}: distrusted" in said.out
    latest = vmkeep(first, "restore", "win11@latest", "--output", str(tmp_path / "latest"), "--json")
    assert latest.document()["restored"]["point"] == own.id
    assert theirs.id in latest.err
    data = vmkeep(first, "restore", theirs.id, "--output", str(tmp_path / "data"), "--json")
    assert (data.status, "distrusted" in data.err) == (0, True)
    assert (tmp_path / "data" / "vda.qcow2").exists()
    for options in (["--as", "copy"], ["--in-place", "--yes"]):
        refused = vmkeep(first, "-c", "test:///default", "restore", theirs.id, *options, "--json")
        assert (refused.status, refused.error()["code"]) == (26, "host-distrusted")
    with premises(first) as place, pytest.raises(HostDistrusted):
        refuse_distrusted(place.catalog, theirs.id)
    shown = inside(first, "points").out
    assert "(distrusted)" in shown
    assert "distrusted" in inside(first, "point", "show", theirs.id).out
    logged = inside(first, "log", "--json").document()["operations"]
    assert [entry["made_by"]["trust"] for entry in logged if entry["kind"] == "restore.files"] == ["own", "distrusted"]
    inside(first, "host", "trust", key)
    with premises(first) as place:
        refuse_distrusted(place.catalog, theirs.id)


def test_two_installations_of_one_host_name_are_told_apart(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path, "--yes")
    theirs = make(second, b"theirs", minute=2, host="alpha")
    with premises(first) as place:
        told = catch_up(place.catalog, place.repository).sentences()
    assert [host_key(second).installation in sentence for sentence in told if theirs.id in sentence] == [True]
    lines = inside(first, "points").out.splitlines()
    assert len([line for line in lines if "alpha  " in line or "alpha (" in line]) == 2
    assert f"alpha (unknown key {host_key(second).fingerprint[:8]})" in lines[2]
    assert f"alpha (unknown key {host_key(second).fingerprint[:8]})" in inside(first, "points", "--tree").out


def test_key_that_changed_for_an_installation_is_told_and_not_accepted(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path, "--yes")
    former = host_key(first)
    (first / "host.key").unlink()
    with premises(first) as place:
        told = place.prepare_to_sign()
    key = host_key(first)
    assert key.installation == former.installation
    assert key.fingerprint != former.fingerprint
    assert [former.fingerprint in sentence and key.fingerprint in sentence for sentence in told] == [True]
    new = make(first, b"with another key", minute=5)
    assert made_by(first)[0] == (former.fingerprint, "own")  # what the lost key signed stays proved
    with premises(second) as place:
        said = catch_up(place.catalog, place.repository).sentences()
    assert [former.fingerprint in sentence for sentence in said if "another key than before" in sentence] == [True]
    assert hosts(second)[key.fingerprint]["former"] == former.fingerprint
    assert (hosts(second)[former.fingerprint]["trust"], hosts(second)[key.fingerprint]["trust"]) == (
        "trusted",
        "unknown",
    )
    (finding,) = _findings(second, "host-key-changed")
    assert finding["remedy"] == f"vmkeep host trust {key.fingerprint}"
    answer = vmkeep(second, "restore", "win11@latest", "--output", str(tmp_path / "out"), "--json")
    assert (answer.error()["code"], new.id in answer.err) == ("choice-required", True)


def _findings(home: Path, code: str) -> list[dict[str, Any]]:
    document = inside(home, "-c", "test:///default", "doctor", "--json").document()
    return [finding for finding in document["doctor"]["findings"] if finding["code"] == code]


def test_damaged_key_is_kept_beside_a_new_one(first: Path) -> None:
    (first / "host.key").write_bytes(b"{}")
    with premises(first) as place:
        told = place.prepare_to_sign()
    assert (first / "host.key.damaged").read_bytes() == b"{}"
    assert str(first / "host.key.damaged") in told[0]
    assert host_key(first).fingerprint in told[1]


def test_doctor_tells_a_key_that_is_gone_and_one_that_others_may_read(first: Path) -> None:
    (first / "host.key").chmod(0o644)
    (finding,) = _findings(first, "key-not-private")
    assert finding["path"] == str(first / "host.key")
    (first / "host.key").unlink()
    assert [finding["severity"] for finding in _findings(first, "signing-key-gone")] == ["warning"]


def test_home_that_was_put_back_knows_its_own_points(first: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(first, tmp_path / "older"))
    newer = make(first, b"newer", minute=7)
    with premises(older) as place:
        told = catch_up(place.catalog, place.repository).sentences()
    assert len(told) == 1
    assert newer.id in told[0]
    assert "by this installation, before it was put back" in told[0]
    assert made_by(older) == [(host_key(first).fingerprint, "own")] * 2


def test_home_that_was_copied_with_its_host_is_recognised_on_both_sides(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    monkeypatch.setattr("vmkeep.flows.own_key.this_machine", lambda: "e" * 32)
    monkeypatch.setattr("socket.gethostname", lambda: "gamma")
    with premises(copy) as place:
        told = place.prepare_to_sign()
        assert [f"on host {host_key(first).host} before" in sentence for sentence in told] == [True]
    with premises(copy) as place:
        assert place.prepare_to_sign() == ()  # once
    theirs = make(copy, b"of the copy", minute=7, host="gamma")
    monkeypatch.undo()
    with premises(first) as place:
        said = catch_up(place.catalog, place.repository).sentences()
    assert [theirs.id in sentence and "host gamma" in sentence for sentence in said] == [True]
    assert "vmkeep host renew" in said[0]
    (finding,) = _findings(first, "home-copied")
    assert "gamma" in finding["message"]
    assert "gamma" in inside(first, "host", "list").out

    former = host_key(first)
    assert inside(first, "host", "trust", former.fingerprint).status == 0  # it is gone, or has a key of its own
    assert _findings(first, "home-copied") == []
    renewed = inside(first, "host", "renew", "--yes", "--json").document()["host"]
    key = host_key(first)
    assert (renewed["fingerprint"], renewed["trust"]) == (key.fingerprint, "own")
    assert key.installation != former.installation
    assert host_key_at(first / "host.key.former") == former
    assert made_by(first) == [(former.fingerprint, "trusted")] * 2
    make(first, b"on", minute=8)
    assert made_by(first)[-1] == (key.fingerprint, "own")


def test_home_that_was_copied_on_its_machine_is_recognised_once_and_a_moved_one_is_not(
    first: Path, tmp_path: Path
) -> None:
    with premises(first) as place:
        assert place.prepare_to_sign() == ()
    copy = Path(shutil.copytree(first, tmp_path / "copy"))
    with premises(copy) as place:
        (told,) = place.prepare_to_sign()
        assert str(first) in told
        assert "vmkeep host renew" in told
    for home in (copy, first):
        with premises(home) as place:
            assert place.prepare_to_sign() == ()  # once, and by the copy, which is used later
    with premises(copy.rename(tmp_path / "moved")) as place:
        assert place.prepare_to_sign() == ()
    linked = tmp_path / "linked"
    linked.symlink_to(first)
    with premises(linked) as place:
        assert place.prepare_to_sign() == ()
    assert inside(tmp_path / "moved", "host", "renew", "--yes").status == 0
    with premises(tmp_path / "moved") as place:
        assert place.prepare_to_sign() == ()


def host_key_at(path: Path) -> SigningKey:
    return replace(SigningKey.load(path), path=path.with_name("host.key"))


def test_catalogue_that_is_lost_with_the_keys_kept_takes_its_points_over_as_its_own(first: Path) -> None:
    for path in first.glob("catalog.sqlite*"):
        path.unlink()
    adopted = inside(first, "init", "--adopt", "--json").document()["init"]
    assert (adopted["adopted_points"], adopted["hosts"]) == (1, [])
    assert made_by(first) == [(host_key(first).fingerprint, "own")]


def test_hosts_of_a_home_that_cannot_be_written_are_listed(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = second_home(first, tmp_path, "--yes")
    make(second, b"x", minute=3)

    def refused(*_: object) -> None:
        raise PermissionRefused("read-only")

    monkeypatch.setattr("vmkeep.flows.installation.prepare_home", refused)
    with premises(first) as place:
        assert look_for_hosts(place, lambda _: None) is None
        assert [key.trust for key in place.catalog.host_keys()] == [Trust.OWN, Trust.UNKNOWN]


def test_completion_offers_the_keys_of_other_hosts(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path)
    asked = {**environment(second), "_VMKEEP_COMPLETE": "fish", "_VMKEEP_LINE": "vmkeep host trust "}
    offered = typed("{command}", env=asked).out
    assert offered.split("\t")[0] == host_key(first).fingerprint
    assert "unknown" in offered


def test_points_that_were_known_before_there_were_signatures_stay_good(first: Path, tmp_path: Path) -> None:
    """The catalogue of a release before: its points have no signature, and are still bases and the newest ones."""
    _unsign(first, tmp_path, [make(first, b"second", minute=1).id])
    with premises(first) as place:
        newest = place.catalog.find_point("win11@latest")
        assert (newest.trust, newest.is_vouched_for) == (Trust.UNSIGNED, True)
        assert not place.catalog.is_signed_by_trusted_host(newest.id)
    assert vmkeep(first, "restore", "win11@latest", "--output", str(tmp_path / "out")).err == ""
    make(first, b"third", minute=2)
    assert [trust for _, trust in made_by(first)] == ["own", "unsigned", "own"]


def _unsign(home: Path, tmp_path: Path, points: Sequence[str]) -> None:
    """Let points be as a release without signatures made them, and as the migration of its catalogue leaves them."""
    with premises(home) as place:
        repository = place.repository
        for point in points:
            record = repository.point(point)
            value = record.as_json()
            del value["signature"]
            frame = repository._sealer.seal_alone(FrameKind.POINT, point, canonical(value))
            (tmp_path / "repository" / "points" / point).write_bytes(frame)
    with closing(sqlite3.connect(home / "catalog.sqlite")) as database, database:
        for point in points:
            change = "UPDATE points SET signed_by = '', digest = NULL, document = json_remove(document, '$.signature')"
            database.execute(f"{change} WHERE id = ?", (point,))


def test_base_that_is_not_vouched_for_is_told(first: Path, tmp_path: Path) -> None:
    second = second_home(first, tmp_path)
    with premises(second) as place:
        history = place.catalog.points_of_vm(VM)
        told = told_of_base(history)
        assert told is not None
        assert history[0].id in told
        place.catalog.trust_host(host_key(first).fingerprint, Trust.TRUSTED)
        assert told_of_base(place.catalog.points_of_vm(VM)) is None
