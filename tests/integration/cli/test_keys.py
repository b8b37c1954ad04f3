"""`vmkeep key`: keys on paper, several recipients, keys that a KMIP server holds."""

from __future__ import annotations

import json
import re
import shutil
import stat
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import vmkeep
from tests.integration.cli.test_premises import VM, premises, take
from tests.rig.keyservers import kmip_server, private
from vmkeep.keys import KeyFile
from vmkeep.repository import Repository

WORDS = "correct horse battery staple"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    assert vmkeep(home, "init").status == 0
    return home


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    return private(tmp_path / "passphrase", f"{WORDS}\n")


def done(home: Path, *words: str) -> Any:
    answer = vmkeep(home, "--json", *words)
    assert answer.status == 0, answer.err
    (document,) = answer.document().values()
    return document


def key_files(home: Path) -> list[Path]:
    return sorted((home / "keys").glob("*.key"))


def settings(home: Path, text: str) -> None:
    path = home / "vmkeep.toml"
    path.write_text(path.read_text() + text if path.exists() else text)


def test_page_is_typed_again_on_another_host_and_opens_the_repository(
    home: Path, passphrase: str, tmp_path: Path
) -> None:
    paper = tmp_path / "key.html"
    export = ("key", "export", "--paper", str(paper), "--passphrase-file", passphrase)
    assert done(home, *export) == {"path": str(paper)}
    assert stat.S_IMODE(paper.stat().st_mode) == 0o600
    assert vmkeep(home, "--json", *export).error()["code"] == "target-exists"
    assert done(home, "key", "status")["recipients"][0]["exported"] is not None
    (key,) = key_files(home)
    assert json.loads(key.read_text())["secret"] not in paper.read_text()
    found = re.search(r"-----BEGIN VMKEEP PAPER KEY.*END VMKEEP PAPER KEY-----", paper.read_text(), re.DOTALL)
    assert found is not None
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    typed = tmp_path / "typed"
    typed.write_text(found[0].replace("04  ", "04  Q"))
    words = ("key", "import", str(typed), "--passphrase-file", passphrase)
    assert "line 04" in vmkeep(other, "--json", *words).error()["message"]
    lines = found[0].splitlines()
    typed.write_text("\n".join([lines[0], *(line.lower() for line in lines[1:-1]), lines[-1]]))
    assert done(other, *words)["key"] == key.stem
    assert done(other, "init", "--adopt", "--repository", str(home / "repository"))["key"] == key.stem


def test_page_that_cannot_be_written_leaves_nothing(home: Path, passphrase: str, tmp_path: Path) -> None:
    paper = tmp_path / "nowhere" / "key.html"
    answer = vmkeep(home, "--json", "key", "export", "--paper", str(paper), "--passphrase-file", passphrase)
    assert answer.status != 0
    assert str(paper) in answer.error()["path"]
    assert done(home, "key", "status")["recipients"][0]["exported"] is None


def test_second_recipient_opens_alone_and_the_removed_one_does_not(home: Path, tmp_path: Path) -> None:
    (first,) = key_files(home)
    added = done(home, "key", "recipients", "add", "--new-key")
    assert added["generation"] == 2
    kept = tmp_path / first.name
    shutil.move(first, kept)
    assert [each["at_hand"] for each in done(home, "key", "recipients", "list")] == [False, True]
    # The one that is not at hand may go, the one that is must not: nothing would be proved.
    refused = vmkeep(home, "--json", "key", "recipients", "remove", added["added"], "--yes").error()
    assert refused["code"] == "key-missing"
    unsure = vmkeep(home, "--json", "key", "recipients", "remove", first.stem)
    assert unsure.status == 2
    assert "earlier generations" in unsure.error()["message"]
    assert done(home, "key", "recipients", "remove", first.stem[:8], "--yes")["removed"] == first.stem
    last = vmkeep(home, "--json", "key", "recipients", "remove", added["added"], "--yes").error()
    assert "last one" in last["message"]
    Path(added["path"]).rename(tmp_path / "new")
    shutil.move(kept, first)
    assert vmkeep(home, "--json", "key", "status").error()["code"] == "key-missing"


def test_rewrap_puts_a_new_file_in_the_place_of_the_one_in_use(home: Path) -> None:
    (former,) = key_files(home)
    asked = vmkeep(home, "--json", "key", "rewrap")
    assert asked.status == 2
    assert "on paper" in asked.error()["message"]
    changed = done(home, "key", "rewrap", "--new-data-key", "--yes")
    assert changed["removed"] == former.stem
    assert Path(changed["path"]) in key_files(home)
    status = done(home, "key", "status")
    assert [each["key"] for each in status["recipients"]] == [changed["added"]]
    assert (status["generation"], status["data_keys"]) == (2, 2)
    assert len(status["warnings"]) == 1
    providers = {each["key"]: each["recipient"] for each in done(home, "key", "providers")}
    assert providers == {former.stem: False, changed["added"]: True}
    assert vmkeep(home, "verify", "--all").status == 0


def test_imported_key_that_a_rewrap_replaced_is_told_to_open_nothing_new(
    home: Path, passphrase: str, tmp_path: Path
) -> None:
    former = tmp_path / "former.txt"
    done(home, "key", "export", "--output", str(former), "--passphrase-file", passphrase)
    changed = done(home, "key", "rewrap", "--yes")
    again = vmkeep(home, "key", "import", str(former), "--passphrase-file", passphrase)
    assert again.status == 0
    assert f"not opened by this key any more; it is opened by {changed['added']}" in again.err
    present = tmp_path / "present.txt"
    done(home, "key", "export", "--output", str(present), "--passphrase-file", passphrase)
    assert vmkeep(home, "key", "import", str(present), "--passphrase-file", passphrase).err == ""


def test_keyring_of_an_earlier_time_is_refused_by_name_until_it_is_adopted(home: Path) -> None:
    (former,) = (KeyFile.load(path) for path in key_files(home))
    done(home, "key", "rewrap", "--new-data-key", "--yes")
    assert vmkeep(home, "--json", "verify", "--all").status == 0
    second = home / "repository" / "keyring" / "0000000002"
    content = second.read_bytes()
    second.unlink()  # by who has the former key, which is still in the home's `keys`, and writes to the storage

    def refused(*words: str) -> str:
        error = vmkeep(home, "--json", *words).error()
        assert error["code"] == "keyring-replaced"
        assert "vmkeep init --adopt" in error["hint"]
        return str(error["message"])

    assert "it is generation 1, and generation 2 was in force" in refused("verify", "--all")
    assert "generation 1" in refused("init")
    assert "keyring-replaced" in vmkeep(home, "--json", "doctor").out
    forged = Repository.open(str(home / "repository"), lambda _recipients: former)
    for told in ("its generation 2 was another one", "generation 3 lacks a data key"):
        forged.rewrite_keyring(proof=former, add=KeyFile.draw())
        assert told in refused("verify", "--all")
    for made in ("0000000002", "0000000003"):
        (second.parent / made).unlink()
    second.write_bytes(content)
    assert vmkeep(home, "--json", "verify", "--all").status == 0
    second.unlink()
    assert "generation 1" in done(home, "init", "--adopt")["warnings"][0]
    assert vmkeep(home, "--json", "verify", "--all").status == 0


def test_new_key_that_came_to_nothing_leaves_no_file(home: Path) -> None:
    assert done(home, "key", "recipients", "add", "--new-key")["generation"] == 2
    before = key_files(home)
    before[0].rename(home / "aside")
    # The data key would have to be wrapped for the other recipient, whose key is gone.
    answer = vmkeep(home, "--json", "key", "rewrap", "--new-data-key", "--yes")
    assert answer.error()["code"] == "key-missing"
    (home / "aside").rename(before[0])
    assert key_files(home) == before
    assert done(home, "key", "status")["generation"] == 2


def test_key_file_with_a_passphrase_opens_with_the_file_of_the_settings_alone(home: Path, passphrase: str) -> None:
    (key,) = key_files(home)
    plain = key.read_text()
    assert vmkeep(home, "--json", "key", "passphrase").error()["code"] == "invalid-request"
    settings(home, f'key_passphrase_file = "{passphrase}"\n')
    assert done(home, "key", "passphrase") == {"key": key.stem, "path": str(key), "passphrase": True}
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert json.loads(plain)["secret"] not in key.read_text()
    assert done(home, "key", "status")["recipients"][0]["passphrase"]
    Path(passphrase).write_text("another\n")
    assert vmkeep(home, "--json", "key", "status").error()["code"] == "wrong-key"
    Path(passphrase).chmod(0o644)  # told before any work is done
    assert vmkeep(home, "--json", "key", "status").error()["code"] == "home-exposed"
    private(Path(passphrase), f"{WORDS}\n")
    done(home, "key", "passphrase", "--remove")
    assert key.read_text() == plain


def test_status_tells_what_would_be_lost_and_which_states_nothing_opens(home: Path) -> None:
    header = struct.pack(">BBHHI", 2, 1, 10, 1, 2048)  # as swtpm writes it before an encrypted state
    with premises(home) as place:
        first = take(place, generation=1)
        take(place, generation=2, parent=first.id, content=header + bytes(2038))
    status = done(home, "key", "status")
    assert (status["points"], status["vms"], status["state_versions"]) == (2, 1, 2)
    assert status["secrets_not_kept"] == [{"vm": "win11", "vm_uuid": VM, "versions": 1, "newest": 2}]
    shown = vmkeep(home, "key", "status").out
    assert "version 2, is in no envelope" in shown
    assert "never exported" in shown


@pytest.mark.filterwarnings("ignore")  # PyKMIP's own, of what it builds upon
def test_key_of_a_server_opens_the_repository_as_long_as_the_server_answers(home: Path, passphrase: str) -> None:
    server = kmip_server()
    (first,) = key_files(home)
    settings(home, server.toml("kms").replace("timeout_seconds = 5", "timeout_seconds = 1"))
    (held,) = [each for each in done(home, "key", "providers") if each["name"] == "kms"]
    assert (held["state"], held["recipient"]) == ("answers", False)
    assert done(home, "key", "rewrap", "--to", "kms", "--yes")["removed"] == first.stem
    first.rename(home / "aside")
    assert done(home, "key", "status")["recipients"][0]["key"] == held["key"]
    refused = vmkeep(home, "--json", "key", "export", "--passphrase-file", passphrase).error()
    assert "--new-key" in refused["hint"]
    server.stop()
    try:
        away = vmkeep(home, "--json", "key", "status")
        assert (away.status, away.error()["code"]) == (45, "provider-unreachable")
        assert away.error()["hint"]
        assert "Traceback" not in away.err
        (told,) = done(home, "key", "providers")
        assert (told["state"], told["recipient"]) == ("provider-unreachable", True)
        assert vmkeep(home, "points").status == 0  # it needs no key
    finally:
        server.start()
    assert done(home, "key", "rewrap", "--yes")["removed"] == held["key"]
    assert not re.search(r"Warning", vmkeep(home, "key", "providers").err)
