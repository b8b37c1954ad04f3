"""Commands that need no VM are killed at each of their effects: all is usable, and the same command does the job.

What is left is judged against an installation in which the command ran undisturbed: the same files, and no others.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.bed import KILLED, Here, Printed, Zygote
from tests.crash.walk import NO_DEATH, Death, deaths, need_effects
from tests.integration.repository.samples import VM, Sample, make_sample
from tests.rig.cli import NO_LIBVIRT
from vmkeep.catalog import OperationState
from vmkeep.config import load_settings
from vmkeep.flows.installation import Premises
from vmkeep.keys import KeyFile

pytestmark = pytest.mark.crash

_NAMES = re.compile(r"(?<=packs/)[0-9a-f]{2}(?=/)|[0-9a-f]{8,}")
# That a key was exported is noted when all is done, for people alone.
_SHORT_LIVED = re.compile(r"\.sqlite-(wal|shm)$|/flows\.sqlite$|/keys/[^/]*\.exported(\..*)?$")
# What every installation without libvirt is told of.
_ALWAYS = {"libvirt-unreachable", "key-place", "space-low", "versions"}
_ENDED, _DEAD = "e" * 32, "d" * 32
# A libvirt that has not the VM of the points: nothing is read against one of them any more.
_WITHOUT_VM = ("--connect", "test:///default")


@dataclass(slots=True)
class Bench:
    """A directory in which a command runs again and again on copies of one state of things."""

    dir: Path
    zygote: Zygote
    sample: Sample

    @property
    def home(self) -> Path:
        return self.dir / "place" / "home"

    @property
    def place(self) -> Path:
        """All that a command may change lies below it."""
        return self.dir / "place"

    def run(self, *words: str | Path, death: Death | None = None) -> Printed:
        return self.zygote.command("--json", *words, death=death, env={**NO_LIBVIRT, "VMKEEP_HOME": str(self.home)})

    def done(self, *words: str | Path) -> dict[str, Any]:
        return self.run(*words).document()

    def clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.home.mkdir(parents=True, mode=0o700)
        (self.home / "vmkeep.toml").write_text(f'run_dir = "{self.place}/run"\nimages_dir = "{self.place}"\n')

    def keep(self) -> None:
        """Make what is there now what each run begins with."""
        shutil.rmtree(self.dir / "kept", ignore_errors=True)
        shutil.copytree(self.place, self.dir / "kept")

    def put_back(self) -> None:
        shutil.rmtree(self.place)
        shutil.copytree(self.dir / "kept", self.place)

    def walk(self, *words: str | Path, most: int, check: Callable[[Death, Printed], None], status: int = 0) -> None:
        """Run a command undisturbed, then kill it at its effects, and check each time; see ``assert_like``."""
        self.keep()
        undisturbed = self.run(*words, death=NO_DEATH)
        assert undisturbed.status == status, undisturbed
        effects = self.zygote.effects
        self.tidy()
        wanted = self.files()
        killed = 0
        places = deaths(effects, most)
        for death in places:
            self.put_back()
            outcome = self.run(*words, death=death)
            killed += outcome.status == KILLED
            assert outcome.status in (KILLED, status), (death, outcome)
            effect = effects[(death.effect or 1) - 1]
            try:
                check(death, outcome)
                if self.files() != wanted:
                    self.tidy()
                assert self.files() == wanted
            except AssertionError as error:
                error.add_note(f"killed at effect {death}: {effect}")
                raise
        # At the end of a run a thread more or less may write to a database.
        assert killed >= 0.9 * len(places)

    def tidy(self) -> None:
        """Let an hour pass, and doctor remove what is left over."""
        for path in self.place.rglob("*"):
            if path.suffix != ".sqlite":
                os.utime(path, (time.time() - 7200, time.time() - 7200), follow_symlinks=False)
        assert self.run("doctor", "--fix").status in (0, 37)

    def files(self) -> list[str]:
        """Return the names of all files, without the ids in them, and who may read them.

        What is in a repository is sealed, and nobody is let into its directory.
        """
        found = []
        for path in self.place.rglob("*"):
            name = str(path.relative_to(self.place))
            if path.is_file() and not _SHORT_LIVED.search(name):
                mode = "sealed" if "repository/" in name else oct(path.stat().st_mode & 0o777)
                found.append(f"{_NAMES.sub('ID', name)} {mode}")
        return sorted(found)

    def found(self) -> set[str]:
        """Return the codes of what doctor finds, but for what it always tells."""
        told = self.run("doctor")
        assert told.status in (0, 37), told
        findings = Printed(0, told.out, "").document()["doctor"]["findings"]
        return {str(finding["code"]) for finding in findings} - _ALWAYS

    def assert_whole(self, *points: str) -> None:
        """Fail unless the installation knows just these points, the repository holds just these, and all are sound."""
        with Premises(load_settings(home=self.home, environ={})) as premises:
            assert set(premises.catalog.point_ids()) == set(points)
            assert set(premises.repository.point_ids()) == set(points)
            assert premises.repository.verify_all().findings == ()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    need_effects()
    directory = tmp_path_factory.mktemp("bench")
    (directory / "work").mkdir()
    (directory / "pass").write_text("a good passphrase\n")
    sample = make_sample(directory / "sample")
    zygote = Zygote(Here(directory), directory / "home")
    yield Bench(directory, zygote, sample)
    zygote.close()


@pytest.fixture
def bare(bench: Bench) -> Bench:
    """Nothing was done yet but that the settings were written."""
    bench.clear()
    return bench


@pytest.fixture
def stocked(bare: Bench) -> Bench:
    """An installation whose repository has two points."""
    shutil.copytree(bare.sample.location, bare.home / "repository")
    _key(bare.sample).save(bare.home / "keys")
    bare.done("init", "--adopt")
    return bare


def _key(sample: Sample) -> KeyFile:
    found = getattr(sample.key, "key", None)
    assert isinstance(found, KeyFile)
    return found


def _points(bench: Bench) -> list[str]:
    return [point.id for point in bench.sample.points]


@pytest.mark.in_turn(4, among="commands")
def test_init_killed_anywhere_is_done_by_the_next_one(bare: Bench) -> None:
    def check(_: Death, __: Printed) -> None:
        made = bare.done("init")["init"]
        (key,) = (bare.home / "keys").glob("*.key")
        assert made["key_path"] == str(key)
        assert bare.found() <= {"home-not-private"}
        bare.assert_whole()

    bare.walk("init", most=14, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_init_elsewhere_killed_anywhere_is_done_by_the_next_one(bare: Bench) -> None:
    def check(_: Death, __: Printed) -> None:
        made = bare.done("init", "--repository", bare.place / "repository")["init"]
        assert made["location"] == str(bare.place / "repository")
        bare.assert_whole()
        assert len(list((bare.home / "keys").iterdir())) == 1

    bare.walk("init", "--repository", bare.place / "repository", most=4, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_adoption_killed_anywhere_is_done_by_the_next_one(bare: Bench) -> None:
    shutil.copytree(bare.sample.location, bare.place / "repository")
    _key(bare.sample).save(bare.home / "keys")
    command = ("init", "--adopt", "--repository", bare.place / "repository")

    def check(_: Death, __: Printed) -> None:
        assert bare.done(*command)["init"]["damaged"] == []
        bare.assert_whole(*_points(bare))

    bare.walk(*command, most=10, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_key_export_killed_anywhere_is_done_by_the_next_one(stocked: Bench) -> None:
    output = stocked.place / "safe" / "key.txt"
    output.parent.mkdir()
    command = ("key", "export", "--output", output, "--passphrase-file", stocked.dir / "pass")

    def check(_: Death, __: Printed) -> None:
        if output.exists():  # then it is whole
            _assert_imports(stocked, output)
            assert stocked.run(*command).status == 6
        else:
            stocked.done(*command)
        _assert_imports(stocked, output)
        assert [path.name for path in output.parent.iterdir()] == ["key.txt"]

    stocked.walk(*command, most=6, check=check)


def test_rewrap_killed_anywhere_leaves_the_former_key_in_force_or_the_new_one(stocked: Bench) -> None:
    former = _key(stocked.sample).key_id
    command = ("key", "rewrap", "--new-data-key", "--yes")

    def check(_: Death, __: Printed) -> None:
        keys = stocked.done("key", "providers")["providers"]
        (recipient,) = (each["key"] for each in keys if each["recipient"])
        if recipient == former:
            for each in keys:
                if each["key"] != former:  # it was made, and nothing came of it
                    Path(each["where"]).unlink()
            stocked.done(*command)
        stocked.assert_whole(*_points(stocked))

    stocked.walk(*command, most=4, check=check)


def _assert_imports(bench: Bench, text: Path) -> None:
    other = bench.dir / "other"
    shutil.rmtree(other, ignore_errors=True)
    words = ("--json", "key", "import", text, "--passphrase-file", bench.dir / "pass")
    imported = bench.zygote.command(*words, env={"VMKEEP_HOME": str(other)}).document()["key"]
    assert KeyFile.load(Path(imported["path"])).secret == _key(bench.sample).secret


@pytest.mark.in_turn(4, among="commands")
def test_key_import_killed_anywhere_is_done_by_the_next_one(stocked: Bench) -> None:
    text = stocked.dir / "exported"
    text.unlink(missing_ok=True)
    stocked.done("key", "export", "--output", text, "--passphrase-file", stocked.dir / "pass")
    shutil.rmtree(stocked.home / "keys")
    command = ("key", "import", text, "--passphrase-file", stocked.dir / "pass")

    def check(_: Death, __: Printed) -> None:
        stocked.done(*command)
        (key,) = (stocked.home / "keys").glob("*.key")
        assert KeyFile.load(key).secret == _key(stocked.sample).secret
        stocked.assert_whole(*_points(stocked))

    stocked.walk(*command, most=6, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_point_deletion_killed_anywhere_is_finished_by_the_next_start(stocked: Bench) -> None:
    gone, kept = _points(stocked)

    def check(_: Death, __: Printed) -> None:
        told = stocked.run("doctor", "--fix", *_WITHOUT_VM)
        assert told.status in (0, 37)
        if gone in {point["id"] for point in stocked.done("points")["points"]}:
            stocked.assert_whole(gone, kept)
            stocked.done("point", "delete", gone, "--yes", "--grace", "0", *_WITHOUT_VM)
        stocked.assert_whole(kept)

    stocked.walk("point", "delete", gone, "--yes", "--grace", "0", *_WITHOUT_VM, most=10, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_removal_killed_anywhere_is_finished_by_the_next_run(stocked: Bench) -> None:
    gone, kept = _points(stocked)
    stocked.done("point", "delete", gone, "--yes")
    mark = stocked.home / "repository" / "removals" / gone
    os.utime(mark, (time.time() - 8 * 24 * 3600,) * 2)  # its grace is over

    def check(_: Death, __: Printed) -> None:
        assert stocked.run("doctor", "--fix", *_WITHOUT_VM).status in (0, 37)
        stocked.done("retain", *_WITHOUT_VM)
        stocked.assert_whole(kept)
        assert list(mark.parent.iterdir()) == []

    stocked.walk("retain", *_WITHOUT_VM, most=6, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_return_of_a_point_killed_anywhere_is_finished_by_the_next_start(stocked: Bench) -> None:
    gone, kept = _points(stocked)
    stocked.done("point", "delete", gone, "--yes")

    def check(_: Death, __: Printed) -> None:
        assert stocked.run("doctor", "--fix").status in (0, 37)
        if gone not in {point["id"] for point in stocked.done("points")["points"]}:
            stocked.done("point", "undelete", gone)
        stocked.assert_whole(gone, kept)

    stocked.walk("point", "undelete", gone, most=6, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_verify_killed_anywhere_tells_the_same_the_next_time(stocked: Bench) -> None:
    pack = max((stocked.home / "repository" / "packs").glob("*/*"), key=lambda path: path.stat().st_size)
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    first = stocked.run("verify", "--all")
    shutil.rmtree(stocked.home / "repository" / "condemned")

    def check(_: Death, __: Printed) -> None:
        again = stocked.run("verify", "--all")
        assert (again.status, again.out) == (20, first.out)
        condemned = [path.name for path in (stocked.home / "repository" / "condemned").iterdir()]
        assert [name for name in condemned if "#" not in name] == [pack.name]

    stocked.walk("verify", "--all", most=5, check=check, status=20)


@pytest.mark.in_turn(4, among="commands")
def test_prune_killed_anywhere_loses_nothing_and_the_next_one_does_it(stocked: Bench) -> None:
    one, two = _points(stocked)
    stocked.done("point", "delete", one, "--yes", "--grace", "0", *_WITHOUT_VM)

    def check(_: Death, __: Printed) -> None:
        stocked.assert_whole(two)
        report = stocked.done("prune", "--young", "0", "--waste", "0")["pruned"]
        assert report["problems"] == []
        assert not list((stocked.home / "repository" / "intents").iterdir())
        stocked.assert_whole(two)
        again = stocked.done("prune", "--young", "0", "--waste", "0", "--dry-run")["pruned"]
        assert (again["unused"]["packs"], again["renewed"]["packs"]) == (0, 0)
        for path in (stocked.home / "repository" / "condemned").iterdir():  # is left for a day
            path.unlink()
        told = (stocked.home / "repository" / "pruned").iterdir()  # for three days, by each that deleted packs
        for path in sorted(told)[1:]:
            path.unlink()

    stocked.walk("prune", "--young", "0", "--waste", "0", most=5, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_repair_killed_anywhere_leaves_no_writer_that_a_prune_would_wait_for(stocked: Bench) -> None:
    points = _points(stocked)

    def check(_: Death, __: Printed) -> None:
        assert stocked.done("repair")["repaired"]["lost"] == []
        intents = (stocked.home / "repository" / "intents").iterdir()
        assert [path.name for path in intents if "#" not in path.name] == []
        stocked.assert_whole(*points)

    stocked.walk("repair", most=5, check=check)


@pytest.mark.in_turn(4, among="commands")
def test_doctor_fix_killed_anywhere_is_done_by_the_next_one(stocked: Bench) -> None:
    _make_a_mess(stocked)
    mess = stocked.found()
    assert mess >= {"key-not-private", "kept-aside", "left-file", "left-intent", "left-socket", "stale-lock"}

    def check(_: Death, __: Printed) -> None:
        assert stocked.run("doctor", "--fix").status in (0, 37)
        assert stocked.found() == {"libvirt-unreachable"} - _ALWAYS
        assert (stocked.place / "out" / "vda.raw").read_bytes() == b"precious"
        assert [path.name for path in (stocked.place / "out").iterdir()] == ["vda.raw"]
        stocked.assert_whole(*_points(stocked))

    stocked.walk("doctor", "--fix", most=8, check=check, status=37)


def _make_a_mess(bench: Bench) -> None:
    """Leave all that doctor mends without libvirt, of operations that ended or whose process is dead."""
    output = bench.place / "out"
    output.mkdir()
    with Premises(load_settings(home=bench.home, environ={})) as premises:
        catalog = premises.catalog
        catalog.begin_operation(_ENDED, "restore.files", None, "me", {"output": str(output)})
        catalog.move_operation(_ENDED, "me", OperationState.FAILED, None)
        catalog.begin_operation(_DEAD, "point.take", "demo", _DEAD, {})
        writer = premises.repository.begin(purpose=f"point {_ENDED}", host="here", cache=bench.home / "cache")
        intents = {path: path.read_bytes() for path in (bench.home / "repository" / "intents").iterdir()}
        writer.abort()
        for path, content in intents.items():
            path.write_bytes(content)
            path.chmod(0o600)
    (output / f".vda.raw.{_ENDED[:12]}.replaced").write_bytes(b"precious")
    (output / f".vda.raw.{_ENDED[:12]}.partial").write_bytes(b"half")
    (bench.place / "run" / _ENDED[:12]).mkdir(parents=True)
    (bench.place / "run" / _ENDED[:12] / "vda.sock").touch()
    for key in (bench.home / "keys").iterdir():
        key.chmod(0o644)
    (bench.home / "locks").mkdir(exist_ok=True)
    lock = bench.home / "locks" / f"{VM}.lock"
    lock.touch()
    os.utime(lock, (0, 0))
