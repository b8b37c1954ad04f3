"""What the commands do with what the engine answers: documents, exit statuses, and signals.

A stand-in engine, because these tests are about the command line alone; tests/system run the real one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import pytest

from tests.integration.catalog.examples import WIN11, example_point, number
from vmkeep.catalog import SqlCatalog
from vmkeep.cli.main import main
from vmkeep.config import load_settings
from vmkeep.errors import Interrupted, VmBusy
from vmkeep.flows.point_requests import DeletePoint, PointDeleted
from vmkeep.flows.requests import FilesRestored, PointTaken, RestoreFiles, RestoreVm, TakePoint, VmRestored
from vmkeep.host.tasks.survey import LookAtVms, Progress, SurveyedVm

Watch = Callable[[Progress], None]
UNTIL = "2026-12-07T10:00:00.000000+00:00"


@dataclass
class StandIn:
    """Answers as told, and remembers what it was asked for."""

    asked: list[Any] = field(default_factory=list)
    recovered: tuple[str, ...] = ()
    reason: Interrupted | None = None
    needs_home: bool = True

    def __call__(self, _premises: object, _host: object, *, needs_home: bool, last: bool, watch: object) -> Self:
        self.needs_home = needs_home
        assert not last  # the test's process goes on
        assert callable(watch)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def cancel(self, reason: Interrupted) -> None:
        self.reason = reason

    def take_point(self, request: TakePoint, watch: Watch) -> PointTaken:
        self.asked.append(request)
        watch(Progress("copy", "vda", 1, 2))
        if request.vm == "off":
            raise VmBusy("VM off is being started", vm="off")
        if request.vm == "slow":
            os.kill(os.getpid(), signal.SIGTERM)
            assert self.reason is not None
            raise self.reason
        return PointTaken(example_point(request.vm, vm_name=request.vm).summary(), ("a warning",))

    def restore_files(self, request: RestoreFiles, _watch: Watch) -> FilesRestored:
        self.asked.append(request)
        return FilesRestored(request.point, request.output, (f"{request.output}/vda.qcow2",), 2048)

    def restore_vm(self, request: RestoreVm, _watch: Watch) -> VmRestored:
        self.asked.append(request)
        return VmRestored(request.point, request.name, WIN11, "new", "same", ("/images/vda.qcow2",), 2048)

    def delete_point(self, request: DeletePoint, _watch: Watch) -> PointDeleted:
        self.asked.append(request)
        return PointDeleted(request.point, UNTIL if request.grace_seconds else None)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in in the engine's place, and a home with one point."""
    monkeypatch.setenv("VMKEEP_HOME", str(tmp_path / "home"))
    assert main(["init"]) == 0
    with SqlCatalog.open(load_settings().catalog_path) as catalog:
        catalog.record_point(example_point("a"))
    # What the catalogue knows and the repository holds is not opened to find it.
    stored = Path(load_settings().repository) / "points" / number("a")
    stored.parent.mkdir(exist_ok=True)
    stored.touch()
    standing = StandIn()
    module = ModuleType("vmkeep.flows.engine")
    module.Engine = standing  # type: ignore[attr-defined] # a module made by hand declares nothing
    monkeypatch.setitem(sys.modules, "vmkeep.flows.engine", module)
    return standing


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, Any]:
    """Run a command with --json; return status, document and what standard error held."""
    capsys.readouterr()
    status = main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, json.loads(err) if err else None


def test_backup_of_one_vm_prints_its_point(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    engine.recovered = ("an interrupted point of web was undone",)
    arguments = ("backup", "win11", "--full", "--exclude", "vdb", "--label", "a=b=c", "--label", "d=")
    status, document, said = answer(capsys, *arguments)
    assert status == 0
    assert set(document) == {"point"}
    assert {"id", "vm", "kind", "parent", "created", "pause_ms", "disks", "state"} <= set(document["point"])
    assert said == {"notices": ["an interrupted point of web was undone", "warning: a warning"]}
    assert engine.asked == [TakePoint("win11", True, ("vdb",), {"a": "b=c", "d": ""})]


def test_failed_backup_of_one_vm_is_its_own_error(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    status, document, said = answer(capsys, "backup", "off")
    assert (status, document) == (11, None)
    assert said["error"]["vm"] == "off"
    assert len(engine.asked) == 1


def test_one_failure_of_several_does_not_stop_the_others(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    status, document, said = answer(capsys, "backup", "one", "off", "two")
    assert status == 37
    assert [point["vm"] for point in document["points"]] == ["one", "two"]
    assert [(each["vm"], each["error"]["code"]) for each in document["failed"]] == [("off", "vm-busy")]
    assert said["error"]["code"] == "incomplete"
    assert len(engine.asked) == 3


def test_all_asks_the_host_for_its_vms(
    engine: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Host:
        def __init__(self, _settings: object, _repository: object) -> None:
            pass

        def close(self) -> None:
            pass

        def ask(self, task: object) -> tuple[SurveyedVm, ...]:
            assert task == LookAtVms()
            return (SurveyedVm("win11", WIN11, "running", (), "uefi", None, None, True, ()),)

    module = ModuleType("vmkeep.host.local")
    module.LocalHost = Host  # type: ignore[attr-defined] # a module made by hand declares nothing
    monkeypatch.setitem(sys.modules, "vmkeep.host.local", module)
    status, document, _ = answer(capsys, "backup", "--all")
    assert (status, set(document), document["failed"]) == (0, {"points", "failed", "skipped"}, [])
    assert [request.vm for request in engine.asked] == [WIN11]
    status, document, _ = answer(capsys, "vm", "list")
    assert (status, document["vms"][0]["last_point"]["id"]) == (0, number("a"))


def test_signal_stops_the_operation_and_begins_no_other(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    status, document, said = answer(capsys, "backup", "one", "slow", "two")
    assert status == 143
    assert [point["vm"] for point in document["points"]] == ["one"]
    assert [each["vm"] for each in document["failed"]] == ["slow", "two"]
    assert said["error"]["code"] == "terminated"
    assert [request.vm for request in engine.asked] == ["one", "slow"]
    status, document, said = answer(capsys, "backup", "slow")
    assert (status, document, said["error"]["code"]) == (143, None, "terminated")


def test_restore_gives_the_engine_the_full_id_and_absolute_paths(
    engine: StandIn, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, document, _ = answer(capsys, "restore", "win11@latest", "--output", "out", "--format", "raw")
    assert status == 0
    assert document["restored"]["files"] == [f"{tmp_path}/out/vda.qcow2"]
    status, document, _ = answer(capsys, "restore", number("a")[:5], "--as", "x", "--tpm", "same", "--disks-dir", "d")
    assert status == 0
    assert document["restored"]["uuid"] == WIN11
    files, vm = engine.asked
    assert (files.point, files.output, files.image_format) == (number("a"), f"{tmp_path}/out", "raw")
    assert (vm.point, vm.name, vm.tpm, vm.disks_dir) == (number("a"), "x", "same", f"{tmp_path}/d")


def test_point_is_deleted_with_yes_only(engine: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "point", "delete", "win11@latest")[0] == 2
    assert engine.asked == []
    status, document, _ = answer(capsys, "point", "delete", "win11@latest", "--yes")
    assert (status, document) == (0, {"deleted": {"point": number("a"), "vm": "win11", "until": UNTIL}})
    status, document, _ = answer(capsys, "point", "delete", "win11@latest", "--yes", "--grace", "0", "--why", "mistake")
    assert (status, document["deleted"]["until"]) == (0, None)
    assert [(each.point, each.grace_seconds, each.why) for each in engine.asked] == [
        (number("a"), 7 * 24 * 3600, ""),
        (number("a"), 0, "mistake"),
    ]


@pytest.mark.parametrize("grace", ["", "1", "0d", "-7d", "11y", "a week"])
def test_grace_that_is_none_is_refused(engine: StandIn, capsys: pytest.CaptureFixture[str], grace: str) -> None:
    assert answer(capsys, "point", "delete", "win11@latest", "--yes", f"--grace={grace}")[0] == 2
    assert engine.asked == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("backup", "win11"), ["full", "vda", "3.0 MiB", "1.0 MiB", "104 ms"]),
        (("backup", "one", "two"), ["of one", "of two"]),
        (("restore", "win11@latest", "--output", "/out"), ["/out/vda.qcow2", "2.0 KiB"]),
        (("restore", "win11@latest", "--as", "x"), ["VM x", "TPM: same"]),
        (("point", "delete", "win11@latest", "--yes"), ["deleted", "vmkeep retain", "vmkeep point undelete"]),
        (("point", "delete", "win11@latest", "--yes", "--grace", "0"), ["deleted", "prune"]),
    ],
)
@pytest.mark.usefixtures("engine")
def test_people_are_told_what_was_done(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], shown: list[str]
) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in shown), out


def test_first_backup_says_where_the_key_is(
    engine: StandIn, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMKEEP_HOME", str(tmp_path / "new"))
    # libvirt's own test driver, whose one VM is "test": the name is looked up before anything is made.
    _, _, said = answer(capsys, "backup", "test", "--connect", "test:///default")
    assert any(str(tmp_path / "new" / "keys") in notice for notice in said["notices"])
    assert len(engine.asked) == 1
