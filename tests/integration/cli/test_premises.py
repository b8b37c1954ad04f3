"""First use, keys, and taking over a repository on another host: with real repositories, through the command."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.cli.command_line import COMMAND, environment, vmkeep
from tests.integration.repository.test_deletions import FACT, REMOVAL
from vmkeep.config import load_settings
from vmkeep.errors import RepositoryForeign, RepositoryNotFound
from vmkeep.flows.installation import Premises, catalog_point, catalog_states
from vmkeep.repository import PointDisk, PointRecord

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


def premises(home: Path) -> Premises:
    return Premises(load_settings(home=home, environ={}))


def take(place: Premises, *, generation: int, parent: str | None = None, content: bytes | None = None) -> PointRecord:
    """Write a point of one small disk with its TPM state, and record it."""
    repository = place.repository
    with repository.begin(purpose="test", host="host1", cache=place.settings.cache_dir, workers=1) as writer:
        disk = writer.disk(size_bytes=200_000)
        disk.record(0, disk.seal(bytes([generation]) * 65536))
        stored = disk.finish()
        state = writer.put_state(
            b"tpm %d" % generation if content is None else content,
            vm_uuid=VM,
            kind="tpm",
            generation=generation,
            file="tpm2/tpm2-00.permall",
            owner="tss",
            group="tss",
            mode=0o600,
        )
        record = writer.commit(
            PointRecord(
                id="",
                vm_uuid=VM,
                vm_name="win11",
                kind="full" if parent is None else "incremental",
                parent=parent,
                created=f"2026-03-01T10:00:{generation:02}.000000+00:00",
                host="host1",
                checkpoint=None,
                pause_ms=100.0,
                labels={},
                disks=(PointDisk("vda", "full", "first point", "/x", "qcow2", 65536, disk.bytes_stored, stored),),
                excluded=(),
                states=(state.ref(),),
                definition="<domain/>",
            )
        )
    # Twice, as a step of a flow may be repeated.
    for _ in range(2):
        place.catalog.record_point(catalog_point(record), catalog_states(record))
    return record


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The home of an installation with a repository of two points beside it."""
    home = tmp_path / "first"
    with premises(home) as place:
        place.initialise(str(tmp_path / "repository"))
        parent = take(place, generation=1)
        take(place, generation=2, parent=parent.id)
    return home


def test_moved_repository_is_gone_on_with_at_its_new_place(first: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "repository", tmp_path / "moved"
    old.rename(new)
    gone = vmkeep(first, "verify", "--all")
    assert gone.status == 5
    assert "`vmkeep init --repository DIR`" in gone.err
    assert "new one" not in gone.err
    (finding,) = [
        each
        for each in vmkeep(first, "-c", "test:///default", "doctor", "--json").document()["doctor"]["findings"]
        if each["code"] == "repository-missing"
    ]
    assert "vmkeep init --repository" in finding["remedy"]
    told = vmkeep(first, "init", "--repository", str(new))
    assert (told.status, told.err) == (0, "")
    assert told.out.splitlines()[0] == f"repository moved: {old} is now {new}"
    assert vmkeep(first, "verify", "--all").status == 0
    again = vmkeep(first, "init", "--repository", str(new), "--json").document()["init"]
    assert (again["created"], again["moved_from"]) == (False, None)


def test_place_without_the_repository_is_no_new_place_of_it(first: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "moved")
    refused = vmkeep(first, "init", "--repository", str(tmp_path / "empty"))
    assert refused.status == 2
    assert str(tmp_path / "repository") in refused.err
    assert not (tmp_path / "empty").exists()


@pytest.fixture
def passphrase(tmp_path: Path) -> str:
    path = tmp_path / "passphrase"
    path.write_text("correct horse\n")
    return str(path)


def test_init_makes_all_says_where_the_key_is_and_may_be_repeated(tmp_path: Path) -> None:
    home, place = tmp_path / "home", tmp_path / "elsewhere"
    answer = vmkeep(home, "init", "--repository", str(place), "--json")
    assert answer.status == 0
    report = answer.document()["init"]
    assert (report["created"], report["location"]) == (True, str(place))
    assert Path(report["key_path"]).stat().st_mode & 0o777 == 0o600
    assert home.stat().st_mode & 0o777 == 0o700
    again = vmkeep(home, "init")
    assert again.status == 0
    assert report["key_path"] in again.out
    assert load_settings(home=home, environ={}).repository == str(place)


def test_relative_directory_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with premises(tmp_path / "home") as place:
        assert place.initialise("here").location == str(tmp_path / "here")


def test_two_first_uses_at_once_make_one_repository(tmp_path: Path) -> None:
    home = tmp_path / "home"
    running = [subprocess.Popen([*COMMAND, "init"], env=environment(home), stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(list((home / "keys").iterdir())) == 1


def test_directory_with_other_things_is_refused_and_no_key_is_left(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("mine")
    answer = vmkeep(tmp_path / "home", "init", "--repository", str(other), "--json")
    assert (answer.status, answer.error()["code"]) == (22, "repository-foreign")
    assert list((tmp_path / "home" / "keys").glob("*")) == []
    assert [path.name for path in other.iterdir()] == ["file"]


def test_first_use_initialises_once(tmp_path: Path) -> None:
    with premises(tmp_path / "home") as place:
        report = place.ensure()
        assert report is not None
        assert report.created
        assert place.ensure() is None


def test_missing_mount_never_gets_a_new_repository(first: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "away")
    (tmp_path / "repository").mkdir()
    with premises(first) as place:
        assert place.ensure() is None
        with pytest.raises(RepositoryNotFound):
            _ = place.repository
    answer = vmkeep(first, "init", "--json")
    assert answer.error()["code"] == "invalid-request"
    assert list((tmp_path / "repository").iterdir()) == []


def test_another_repository_at_the_place_is_noticed(first: Path, tmp_path: Path) -> None:
    (tmp_path / "repository").rename(tmp_path / "away")
    with premises(tmp_path / "second") as second:
        second.initialise(str(tmp_path / "repository"))
        key = next(second.settings.keys_dir.iterdir())
    shutil.copy(key, first / "keys")
    with premises(first) as place, pytest.raises(RepositoryForeign):
        _ = place.repository


def test_other_host_takes_over_with_the_exported_key(first: Path, tmp_path: Path, passphrase: str) -> None:
    exported, second, place = tmp_path / "key.txt", tmp_path / "second", str(tmp_path / "repository")
    without_key = vmkeep(second, "init", "--repository", place, "--adopt", "--json")
    assert without_key.error()["code"] == "key-missing"
    assert vmkeep(first, "key", "export", "-o", str(exported), "--passphrase-file", passphrase).status == 0
    imported = vmkeep(second, "key", "import", str(exported), "--passphrase-file", passphrase, "--json")
    assert imported.document()["key"]["new"]
    refused = vmkeep(second, "init", "--repository", place, "--json")
    assert refused.error()["code"] == "target-exists"
    assert "--adopt" in refused.error()["hint"]
    adopted = vmkeep(second, "init", "--repository", place, "--adopt", "--json").document()["init"]
    assert (adopted["adopted_points"], adopted["adopted_vms"], adopted["created"]) == (2, 1, False)
    there, here = (vmkeep(home, "points", "--json").document()["points"] for home in (first, second))
    made_by = [(one.pop("made_by"), other.pop("made_by")) for one, other in zip(there, here, strict=True)]
    assert there == here
    (host,) = adopted["hosts"]
    assert host["trust"] == "unknown"
    for one, other in made_by:
        assert (one["trust"], other["trust"]) == ("own", "unknown")
        assert one["key"] == other["key"] == host["fingerprint"]
    with premises(second) as taken:
        newest = taken.catalog.newest_state(VM, "tpm")
        assert newest is not None
        assert newest.generation == 2
        vm = taken.catalog.vm(VM)
        assert vm is not None
        assert vm.adopted


def test_lost_catalogue_is_rebuilt(first: Path) -> None:
    before = vmkeep(first, "points", "--json").document()
    for path in first.glob("catalog.sqlite*"):
        path.unlink()
    assert vmkeep(first, "init", "--adopt").status == 0
    assert vmkeep(first, "points", "--json").document() == before


def test_lost_catalogue_is_not_begun_anew_by_the_next_backup(first: Path) -> None:
    """Generations would start again at 1, and contradict those in the repository."""
    for path in first.glob("catalog.sqlite*"):
        path.unlink()
    answer = vmkeep(first, "init", "--json")
    assert answer.error()["code"] == "target-exists"


def test_damaged_point_is_named_and_the_others_are_adopted(first: Path, tmp_path: Path) -> None:
    harmed, whole = sorted((tmp_path / "repository" / "points").iterdir())
    harmed.write_bytes(b"\0" * 100)
    for path in first.glob("catalog.sqlite*"):
        path.unlink()
    answer = vmkeep(first, "init", "--adopt", "--json")
    assert answer.status == 20
    assert [point["point"] for point in answer.document()["init"]["damaged"]] == [harmed.name]
    assert [point["id"] for point in vmkeep(first, "points", "--json").document()["points"]] == [whole.name]


def test_wrong_passphrase_is_told_and_nothing_is_stored(first: Path, tmp_path: Path, passphrase: str) -> None:
    text = vmkeep(first, "key", "export", "--passphrase-file", passphrase).out
    wrong = tmp_path / "wrong"
    wrong.write_text("battery staple")
    answer = vmkeep(tmp_path / "second", "key", "import", "-", "--passphrase-file", str(wrong), "--json", stdin=text)
    assert (answer.status, answer.error()["code"]) == (41, "wrong-key")
    assert not list((tmp_path / "second").glob("keys/*"))


def test_exported_key_never_replaces_a_file(first: Path, tmp_path: Path, passphrase: str) -> None:
    path = tmp_path / "mine"
    path.write_text("mine")
    answer = vmkeep(first, "key", "export", "-o", str(path), "--passphrase-file", passphrase, "--json")
    assert answer.error()["code"] == "target-exists"
    assert path.read_text() == "mine"


def test_debug_log_has_no_secret(first: Path, tmp_path: Path, passphrase: str) -> None:
    answer = vmkeep(first, "--debug", "key", "export", "--passphrase-file", passphrase, "-o", str(tmp_path / "out"))
    assert "debug log:" in answer.err
    (log,) = (first / "logs").iterdir()
    (key,) = (first / "keys").glob("*.key")
    with premises(first) as place:
        secret = place.key_to_export().secret.hex()
    assert secret in key.read_text()
    assert secret not in log.read_text()
    assert "correct horse" not in log.read_text()


def test_verify_proves_sound_points_and_names_harmed_ones(first: Path, tmp_path: Path) -> None:
    whole = vmkeep(first, "verify", "--all", "--json")
    assert (whole.status, whole.document()["ok"]) == (0, True)
    assert [(point["ok"], point["vm"]) for point in whole.document()["verified"]] == [(True, "win11")] * 2
    told = vmkeep(first, "verify", "--all").out.splitlines()
    assert all(re.fullmatch(r"point \w{32} of win11, 2026-03-01 \d\d:00:0\d: sound", line) for line in told[:2]), told
    one = vmkeep(first, "verify", "win11@latest", "--json").document()
    assert one["verified"][0]["blocks"] == 1
    for pack in (tmp_path / "repository" / "packs").glob("*/*"):
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
    for what in ("--all", "win11"):
        answer = vmkeep(first, "verify", what, "--json")
        assert answer.status == 20
        assert not answer.document()["ok"]
        assert any(not point["ok"] and point["findings"] for point in answer.document()["verified"])
        assert "damaged" in answer.err


def test_verify_by_a_budget_goes_on_where_it_ended_and_status_tells(first: Path, tmp_path: Path) -> None:
    assert vmkeep(first, "verify", "--budget", "1").status == 2
    assert vmkeep(first, "verify", "--budget", "1G", "--all").status == 2
    packs = list((tmp_path / "repository" / "packs").glob("*/*"))
    proved = 0
    while proved < len(packs):
        read = vmkeep(first, "verify", "--budget", "1K", "--json").document()
        assert (read["ok"], read["verified"], read["sample"], read["rota"]["packs"]) == (True, [], None, len(packs))
        assert read["rota"]["proved"] == min(len(packs), proved + read["packs"]) > proved
        proved = read["rota"]["proved"]
    told = vmkeep(first, "verify", "--budget", "2h").out.splitlines()
    assert told[0].startswith(f"{len(packs)} of {len(packs)} packs read, ")
    assert re.fullmatch(r"100 % of the bytes in packs proved within 30 days; the oldest proof is of [-0-9: ]+", told[1])
    assert re.search(r"verified +100 % of the bytes within 30 days", vmkeep(first, "status").out)
    for pack in packs:
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 1
        pack.write_bytes(content)
    answer = vmkeep(first, "verify", "--budget", "2h", "--json")
    assert answer.status == 20
    assert [point["ok"] for point in answer.document()["verified"]] == [False, False]


def test_point_that_vanished_from_the_repository_is_found_by_verify(first: Path, tmp_path: Path) -> None:
    gone = min((tmp_path / "repository" / "points").iterdir())
    gone.unlink()
    for what in ("--all", "win11", gone.name):
        answer = vmkeep(first, "verify", what, "--json")
        assert answer.status == 20
        assert [point["point"] for point in answer.document()["verified"] if not point["ok"]] == [gone.name]


def test_imported_key_is_not_taken_for_a_new_repository(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    passphrase, exported = tmp_path / "passphrase", tmp_path / "key.txt"
    passphrase.write_text("words\n")
    for home, words in (
        (first, ("init",)),
        (first, ("key", "export", "-o", str(exported), "--passphrase-file", str(passphrase))),
        (second, ("key", "import", str(exported), "--passphrase-file", str(passphrase))),
        (second, ("init",)),
    ):
        assert vmkeep(home, *words).status == 0
    (imported,) = (path.name for path in (first / "keys").glob("*.key"))
    assert len(list((second / "keys").iterdir())) == 2
    with premises(second) as place:
        assert str(place.key_to_export().path) != str(second / "keys" / imported)


@pytest.mark.parametrize("lost", ["format", "format, of one with points"])
def test_repository_that_lost_its_format_is_not_made_anew(tmp_path: Path, lost: str) -> None:
    """It looks like one that was never finished, but its key is not one that an initialisation was killed with."""
    first, second, location = tmp_path / "first", tmp_path / "second", tmp_path / "repository"
    assert vmkeep(first, "init", "--repository", str(location)).status == 0
    if lost != "format":
        with premises(first) as place:
            take(place, generation=1)
    (location / "format").unlink()
    before = files(location)
    for home in (first, second):
        answer = vmkeep(home, "init", "--repository", str(location), "--json")
        assert answer.error()["code"] in ("repository-foreign", "invalid-request")
        assert files(location) == before
    assert len(list((first / "keys").iterdir())) == 1
    assert not (second / "keys").exists() or list((second / "keys").iterdir()) == []


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_proofs_of_deletion_are_found_again_and_shown_with_who_signed_them(first: Path, tmp_path: Path) -> None:
    with premises(first) as place:
        place.repository.deletions.put(REMOVAL)
        place.repository.deletions.put(FACT)
    for path in first.glob("catalog.sqlite*"):
        path.unlink()
    assert vmkeep(first, "init", "--adopt", "--json").status == 0
    (listed,) = vmkeep(first, "tpm", "removal", "list", "--json").document()["removals"]
    assert (listed["id"], listed["outcome"], listed["open"], listed["trust"]) == (REMOVAL.id, "deleted", [], "own")
    (shown,) = vmkeep(first, "tpm", "removal", "show", "win11", "--json").document()["removals"]
    assert (shown["trusted"], shown["files"][1]["outcome"], shown["facts"][0]["event"]) == (True, "failed", "settled")
    text = vmkeep(first, "tpm", "removal", "show", REMOVAL.id[:8], "--text", str(tmp_path / "proof.txt")).out
    assert (tmp_path / "proof.txt").read_text("utf-8") == text
    assert "its value is in point" in text
    assert vmkeep(first, "tpm", "removal", "show", "nobody", "--json").error()["code"] == "invalid-request"
    assert vmkeep(first, "verify", "--all", "--json").status == 0
    assert vmkeep(first, "tombstones", "list").out == "nothing is left to be deleted\n"
    assert vmkeep(first, "tombstones", "waive", "0" * 8, "--reason", "x", "--yes", "--json").status == 2
