"""Kept state goes into a file and comes out of it in another home: the versions, and never above a newer one."""

from __future__ import annotations

import base64
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point
from tests.integration.flows.test_kept_versions import owned
from tests.integration.repository.samples import sample_key
from tests.unit.custody.test_differences import tpm
from tests.unit.repository.signed import SIGNER
from vmkeep.catalog import CatalogState, MemoryCatalog
from vmkeep.errors import (
    HostFileMissing,
    ObjectMissing,
    StoreError,
    TargetExists,
    VmNotFound,
)
from vmkeep.flows import export_states as exporting
from vmkeep.flows.export_states import StatesExported, export_states
from vmkeep.flows.import_states import import_states, lay_down, read_bundle_file
from vmkeep.flows.installation import Premises
from vmkeep.flows.settle_pins import found_pin
from vmkeep.flows.state_conflicts import state_conflicts
from vmkeep.flows.vm_states import versions_asked_for
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.gate import HasGate
from vmkeep.host.tasks.locks import HoldVm, LetVmGo
from vmkeep.host.tasks.survey import LookAtStates, StatesOfVm
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import PointSecret, Repository
from vmkeep.repository.statebundle import StateBundle, open_bundle

PLAIN, CRYPT = tpm(b"\1\2" * 400), tpm(b"\3\4" * 400, flags=9)
VARIABLES = b"\5\6" * 4000
SECRET = PointSecret("vtpm", "5e1f2c6a-0000-4000-8000-000000000000", "tpm", "of the TPM", False, b"open \xff sesame")


class Quiet:
    """A host with these VMs and no gate; it notes which VM was held."""

    def __init__(self, vms: dict[str, str]) -> None:
        self.vms = vms
        self.held: list[str] = []

    def ask(self, task: Any) -> Any:
        match task:
            case LookAtStates():
                (vm,) = task.vms
                found = [(name, uuid) for name, uuid in self.vms.items() if vm in (name, uuid)]
                if not found:
                    raise VmNotFound("there is no VM", vm=vm)
                return tuple(StatesOfVm(name, uuid, "off", ()) for name, uuid in found)
            case HoldVm():
                self.held.append(task.vm_uuid)
            case LetVmGo():
                pass
            case HasGate():
                return False
            case _:
                pytest.fail(f"nobody asks for {task}")
        return None


def host_with(**vms: str) -> Host:
    return cast("Host", Quiet(vms))


class Home:
    """A repository and a catalogue."""

    keep_state_versions = KeepRule()

    def __init__(self, directory: Path) -> None:
        self.repository = Repository.create(str(directory), sample_key())
        self.repository.sign_with(lambda: SIGNER)
        self.catalog = MemoryCatalog()
        owned(self.catalog, SIGNER)

    def keep(self, content: bytes, generation: int, kind: str = "tpm", vm: str = WIN11) -> CatalogState:
        file = "nvram.fd" if kind == "nvram" else "tpm2/tpm2-00.permall"
        put = self.repository.put_state(
            content, vm_uuid=vm, kind=kind, generation=generation, file=file, owner="tss", group="root", mode=0o600
        )
        state = CatalogState(put.id, vm, cast("Any", kind), generation, put.sha256, put.size_bytes, put.created)
        self.catalog.see_vm(vm, "win11")
        self.catalog.accept_states([state])
        return state

    def export(self, path: Path, **named: Any) -> StatesExported:
        of = {"vm": "win11", "kind": None, "version": None, **named}
        return export_states(
            self.catalog, lambda: self.repository, of["vm"], of["kind"], of["version"], path, sample_key
        )

    def take(self, bundle: StateBundle, host: Host, vm: str | None = None) -> Any:
        return import_states(cast("Premises", self), host, bundle, vm)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "repository")


@pytest.fixture
def other(tmp_path: Path) -> Home:
    return Home(tmp_path / "another")


def bundle_in(path: Path) -> StateBundle:
    return open_bundle(read_bundle_file(path), sample_key(), str(path))


def test_newest_of_each_kind_goes_into_a_private_file_with_owner_and_mode(home: Home, tmp_path: Path) -> None:
    home.keep(CRYPT, 1)
    newest, variables = home.keep(PLAIN, 2), home.keep(VARIABLES, 1, "nvram")
    exported = home.export(tmp_path / "win11.state")
    assert [each.version for each in exported.versions] == [variables, newest]
    assert exported.size_bytes == (tmp_path / "win11.state").stat().st_size
    assert (tmp_path / "win11.state").stat().st_mode & 0o777 == 0o600
    bundle = bundle_in(tmp_path / "win11.state")
    assert (bundle.vm_uuid, bundle.vm_name, bundle.secrets) == (WIN11, "win11", ())
    held = {state.version.kind: state for state in bundle.states}
    assert (held["tpm"].content, held["nvram"].content) == (PLAIN, VARIABLES)
    version = held["tpm"].version
    assert (version.id, version.owner, version.group, version.mode) == (newest.id, "tss", "root", 0o600)
    one = home.export(tmp_path / "one", kind="tpm", version="1")
    assert [state.content for state in bundle_in(tmp_path / "one").states] == [CRYPT]
    assert "kept with no version" in one.warnings[0]


def test_secret_that_opens_the_state_goes_along(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = home.keep(CRYPT, 1)
    point = example_point("point", states=(version,))
    document = {**point.document, "secrets": [{"usage": "vtpm", "uuid": SECRET.uuid}]}
    home.catalog.record_point(dataclasses.replace(point, document=document, signed_by=""), [version])
    monkeypatch.setattr(Repository, "point", lambda _self, point_id: point_id)
    monkeypatch.setattr(Repository, "secrets", lambda _self, record: (SECRET,) if record == point.id else ())
    exported = home.export(tmp_path / "win11.state")
    assert (exported.secrets, exported.warnings) == ((SECRET.uuid,), ())
    bundle = bundle_in(tmp_path / "win11.state")
    assert bundle.secrets == (SECRET,)
    without = lay_down(bundle, tmp_path / "without", secrets=False)
    assert [Path(path).name for path in without] == ["tpm2-00.permall"]
    files = {Path(path).name: Path(path) for path in lay_down(bundle, tmp_path / "files", secrets=True)}
    assert files["tpm2-00.permall"].read_bytes() == CRYPT
    assert base64.b64decode(files[f"secret-{SECRET.uuid}.base64"].read_bytes()) == SECRET.value
    assert "<name>tpm</name>" in files[f"secret-{SECRET.uuid}.xml"].read_text()
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o600}
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700
    with pytest.raises(TargetExists):
        lay_down(bundle, tmp_path / "files", secrets=True)


def test_secret_of_a_bundle_is_kept_with_the_version_that_it_opens(other: Home, home: Home, tmp_path: Path) -> None:
    home.keep(PLAIN, 1)
    home.export(tmp_path / "plain")
    home.keep(CRYPT, 2)
    home.export(tmp_path / "crypt")
    plain, crypt = (dataclasses.replace(bundle_in(tmp_path / name), secrets=(SECRET,)) for name in ("plain", "crypt"))
    other.take(plain, host_with())
    (late,) = other.take(crypt, host_with()).late
    pins = [other.repository.pins.get(pin_id) for pin_id in other.repository.pins.ids()]
    held = {pin.states[0].version_id: other.repository.secrets(pin) for pin in pins}
    assert [secrets for version, secrets in held.items() if version != late.id] == [()]
    assert held[late.id] == (SECRET,)


def test_nothing_is_written_over_and_nothing_is_left_of_what_cannot_be_read_back(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = home.keep(PLAIN, 1)
    path = tmp_path / "win11.state"
    path.symlink_to("nowhere")
    with pytest.raises(TargetExists):
        home.export(path)
    path.unlink()
    with pytest.raises(HostFileMissing):
        home.export(tmp_path / "missing" / "win11.state")
    monkeypatch.setattr(exporting, "_read_from_disk", lambda place: place.read_bytes()[:-1])
    with pytest.raises(StoreError, match="could not be read back"):
        home.export(path)
    assert not path.exists()
    monkeypatch.undo()
    (tmp_path / "repository" / "states" / version.id).unlink()
    with pytest.raises(ObjectMissing):
        home.export(path)
    assert not path.exists()


def test_vm_without_versions_gets_its_first(home: Home, other: Home, tmp_path: Path) -> None:
    home.keep(CRYPT, 6)
    home.keep(PLAIN, 7)
    home.keep(VARIABLES, 3, "nvram")
    home.export(tmp_path / "win11.state")
    bundle = bundle_in(tmp_path / "win11.state")
    found = other.take(bundle, host := host_with(win11=WIN11))
    assert [(each.kind, each.generation) for each in found.new] == [("nvram", 1), ("tpm", 1)]
    assert cast("Any", host).held == [WIN11]
    newest = other.catalog.newest_state(WIN11, "tpm")
    assert newest is not None
    version, content = other.repository.state(newest.id)
    assert (content, version.owner, version.mode, version.vm_uuid) == (PLAIN, "tss", 0o600, WIN11)

    again = other.take(bundle, host)
    assert again.new == ()
    assert {(each.kind, each.generation) for each in again.known} == {("tpm", 1), ("nvram", 1)}
    assert len(other.catalog.states_of_vm(WIN11)) == 2


def test_versions_become_those_of_another_vm_when_that_is_asked_for(home: Home, other: Home, tmp_path: Path) -> None:
    home.keep(PLAIN, 1)
    home.export(tmp_path / "win11.state")
    bundle = bundle_in(tmp_path / "win11.state")
    found = other.take(bundle, host_with(web=WEB), WEB)
    assert other.catalog.vms_named("web") == (WEB,)
    assert (found.vm, found.vm_uuid) == ("web", WEB)
    assert other.catalog.states_of_vm(WIN11) == ()
    (state,) = other.catalog.states_of_vm(WEB)
    assert other.repository.state(state.id)[0].vm_uuid == WEB
    with pytest.raises(VmNotFound):
        other.take(bundle, host_with(), "nobody")
    gone = other.take(bundle, host_with())  # its own VM, which is on no host here
    assert (gone.vm, gone.vm_uuid) == ("win11", WIN11)


def test_version_never_gets_above_one_that_is_kept_already(home: Home, other: Home, tmp_path: Path) -> None:
    home.keep(PLAIN, 5)
    home.keep(VARIABLES, 1, "nvram")
    home.export(tmp_path / "win11.state")
    bundle = bundle_in(tmp_path / "win11.state")
    mine = [other.keep(CRYPT, number) for number in (1, 2)]
    found = other.take(bundle, host_with(win11=WIN11))
    assert [(each.kind, each.generation) for each in found.new] == [("nvram", 1)]
    (late,) = found.late
    assert (late.kind, late.generation, late.conflict) == ("tpm", 2, True)
    assert other.catalog.newest_state(WIN11, "tpm") == mine[1]
    assert other.repository.state(late.id)[1] == PLAIN
    # It has a pin, without which the loss of the catalogue would lose it, and goes back by its hash.
    assert late.id in {version for pin in other.catalog.pins_of_vm(WIN11) for version in pin.versions}
    (asked,) = versions_asked_for(other.catalog, "win11", "tpm", late.sha256[:16])
    assert asked.version == late
    (counts,) = versions_asked_for(other.catalog, "win11", "tpm", "2")
    assert counts.version == mine[1]
    again = other.take(bundle, host_with(win11=WIN11))
    assert (again.new, again.late, len(again.known)) == ((), (), 2)
    (conflict,) = state_conflicts(other.catalog)
    assert conflict.conflict.command == f"vmkeep state restore {WIN11} --kind tpm --version {late.sha256[:16]}"

    rebuilt = MemoryCatalog()
    owned(rebuilt, SIGNER)
    rebuilt.adopt_pins([found_pin(other.repository.pins.get(each)) for each in other.repository.pins.ids()])
    newest = rebuilt.newest_state(WIN11, "tpm")
    assert newest is not None
    assert newest.id == mine[1].id
    assert [each.id for each in rebuilt.states_of_vm(WIN11) if each.conflict] == [late.id]


def test_late_version_keeps_its_number_where_that_is_not_above_the_newest(
    home: Home, other: Home, tmp_path: Path
) -> None:
    home.keep(PLAIN, 2)
    home.export(tmp_path / "win11.state")
    for number in range(1, 5):
        other.keep(tpm(bytes([number]) * 300 + b"x"), number)
    (late,) = other.take(bundle_in(tmp_path / "win11.state"), host_with()).late
    assert late.generation == 2
