"""Where settings come from, and what is said about wrong ones."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vmkeep.config import VmSettings, load_settings, save_repository_location
from vmkeep.errors import InvalidRequest


def test_precedence_of_the_uri_is_command_then_file_then_environment_then_default(tmp_path: Path) -> None:
    environ = {"VMKEEP_HOME": str(tmp_path), "LIBVIRT_DEFAULT_URI": "qemu:///env"}
    assert load_settings(environ={"VMKEEP_HOME": str(tmp_path)}).uri == "qemu:///system"
    assert load_settings(environ=environ).uri == "qemu:///env"
    (tmp_path / "vmkeep.toml").write_text('uri = "qemu:///file"\n')
    assert load_settings(environ=environ).uri == "qemu:///file"
    assert load_settings("qemu:///given", environ=environ).uri == "qemu:///given"


def test_paths_follow_the_home_and_nothing_is_made(tmp_path: Path) -> None:
    home = tmp_path / "home"
    settings = load_settings(environ={"VMKEEP_HOME": str(home)})
    assert settings.repository == str(home / "repository")
    assert settings.catalog_path == home / "catalog.sqlite"
    assert not home.exists()


def test_user_without_root_has_the_homes_of_the_xdg_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    given = load_settings(environ={"XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert (given.home, given.run_dir) == (Path("/data/vmkeep"), Path("/run/user/1000/vmkeep"))
    bare = load_settings(environ={"HOME": str(tmp_path), "XDG_DATA_HOME": "relative"})
    assert bare.home == tmp_path / ".local/share/vmkeep"
    assert bare.run_dir == bare.home / "run"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('urii = "x"', "urii"),
        ("uri = 3", "uri"),
        ("workers = true", "workers"),
        ("workers = 0", "workers"),
        ("block_bytes = 1000", "block_bytes"),
        ("points_at_once = 0", "points_at_once"),
        ("points_at_once = 65", "points_at_once"),
        ("stalled_after_seconds = 0", "stalled_after_seconds"),
        ('scratch_dir = "relative"', "scratch_dir"),
        ('repository = "relative"', "repository"),
        ("[uri]\nx = 1", "uri"),
        ("not toml", "vmkeep.toml"),
        ("vm = 3", "'vm'"),
        ("vm = [1]", "'vm'"),
        ("[vm]\nskip = true", "'vm'"),
        ("[vm.x]\nskipp = true", "VM 'x': unknown setting 'skipp'"),
        ("[vm.x]\nskip = 1", "VM 'x': 'skip' must be true or false"),
        ("[vm.x]\nexclude = 'vdb'", "VM 'x': 'exclude' must be a list"),
        ("[vm.x]\nexclude = [1]", "VM 'x': 'exclude' must be a list"),
        ("[vm.x]\nexclude = ['']", "VM 'x': 'exclude' must be a list"),
        ("[vm.x]\nskip = true\nreason = 1", "VM 'x': 'reason' must be text"),
        ("[vm.x]\nreason = 'x'", "VM 'x' has a reason, but neither"),
    ],
)
def test_wrong_setting_is_named_with_its_file(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "vmkeep.toml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as caught:
        load_settings(home=tmp_path, environ={})
    assert caught.value.path == str(path)
    assert str(path) in caught.value.message
    assert named in caught.value.message


def test_saving_the_location_keeps_every_other_line(tmp_path: Path) -> None:
    path = tmp_path / "vmkeep.toml"
    path.write_text('# mine\nworkers = 3 # threads\nrepository = "/old"\nuri = "qemu:///x"')
    location = '/new/"quoted"\\ \x7fü'
    saved = save_repository_location(load_settings(home=tmp_path, environ={}), location)
    assert saved.repository == load_settings(home=tmp_path, environ={}).repository == location
    assert "# mine\nworkers = 3 # threads\n" in path.read_text()
    assert tomllib.loads(path.read_text())["uri"] == "qemu:///x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["vmkeep.toml"]


def test_home_is_made_for_its_owner_only(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    save_repository_location(load_settings(home=home, environ={}), "/repo")
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "vmkeep.toml").stat().st_mode & 0o777 == 0o600


def test_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vmkeep.toml"
    text = 'repository = """\n/old"""\n'
    path.write_text(text)
    with pytest.raises(InvalidRequest):
        save_repository_location(load_settings(home=tmp_path, environ={}), "/new")
    assert path.read_text() == text


def test_settings_of_a_vm_are_found_by_its_name_and_else_by_its_uuid(tmp_path: Path) -> None:
    (tmp_path / "vmkeep.toml").write_text(
        '[vm."win 11"]\nexclude = ["vdb", "vdc", "vdb"]\nreason = """\non the\n  SAN"""\n'
        "[vm.0a]\nskip = true\n[vm.other]\nskip = false\n"
    )
    settings = load_settings(home=tmp_path, environ={})
    assert settings.of_vm("win 11", "0b") == VmSettings(exclude=("vdb", "vdc"), reason="on the SAN")
    assert settings.of_vm("x", "0a") == VmSettings(skip=True)
    assert settings.of_vm("other", "0a") == VmSettings()
    assert settings.of_vm("x", "0b") == VmSettings()


def test_saving_the_location_keeps_the_settings_of_vms(tmp_path: Path) -> None:
    (tmp_path / "vmkeep.toml").write_text('[vm."repository"]\nexclude = ["vdb"]\n')
    saved = save_repository_location(load_settings(home=tmp_path, environ={}), "/new")
    assert saved.of_vm("repository", "").exclude == ("vdb",)
    assert load_settings(home=tmp_path, environ={}).of_vm("repository", "").exclude == ("vdb",)
