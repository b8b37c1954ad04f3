"""Restores to files, and verify: both need the repository and its key, and no hypervisor."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from lxml import etree

from tests.rig import Disk, Host, KiB, MiB, assert_images_equal, read_offline_image
from tests.rig.cli import NO_LIBVIRT, Vmkeep
from tests.system.kept import Kept, packs
from tests.system.truth import PERMALL, Truth, files_below

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def kept(session_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Two points of a VM with two disks; each point added packs that the other does not need."""
    vm = session_host.define("guest", disks=[Disk("vda", 8 * MiB), Disk("vdb", 2 * MiB + 512)])
    vm.start(paused=True)
    vmkeep = Vmkeep(session_host)
    points, truths, names = [], [], [frozenset[str]()]
    for seed in (1, 2):
        vm.write_random("vda", start=seed * 2 * MiB, length=1 * MiB, seed=seed)
        vm.write_random("vdb", start=2 * MiB, length=512, seed=seed)
        vm.change_nvram()
        points.append(vmkeep.backup("guest"))
        truths.append(Truth.of(vm))
        names.append(frozenset(packs(vmkeep.home)) - frozenset().union(*names))
    home = tmp_path_factory.mktemp("kept") / "home"
    home.parent.chmod(0o755)
    shutil.copytree(vmkeep.home, home)
    session_host.clear()
    return Kept(home, tuple(points), tuple(truths), tuple(names[1:]))


@pytest.fixture
def vmkeep(kept: Kept, session_host: Host, tmp_path: Path) -> Vmkeep:
    return kept.copy(session_host, tmp_path)


# -- restore to files ------------------------------------------------------------------------------------------


def test_parts_of_a_point_come_back_as_files(kept: Kept, vmkeep: Vmkeep, tmp_path: Path) -> None:
    point, truth = kept.points[0], kept.truths[0]
    parts: dict[str, tuple[list[str], set[str]]] = {
        "one": (["--only", "vdb"], {"vdb.qcow2"}),
        "disks": (["--only", "disks"], {"vda.qcow2", "vdb.qcow2"}),
        "state": (["--only", "state"], {"nvram.fd", "tpm"}),
        "both": (["--only", "vda", "--only", "state"], {"vda.qcow2", "nvram.fd", "tpm"}),
    }
    for name, (options, files) in parts.items():
        output = vmkeep.restore(point, tmp_path / name, *options)
        assert {path.name for path in output.iterdir()} == files
        for target, image in truth.images.items():
            if f"{target}.qcow2" in files:
                assert_images_equal(read_offline_image(output / f"{target}.qcow2", "qcow2"), image, target)
        if "tpm" in files:
            assert ((output / PERMALL).read_bytes(), (output / "nvram.fd").read_bytes()) == (truth.tpm, truth.nvram)
    output = tmp_path / "none"
    unknown = vmkeep.fails("restore", point["id"], "--output", output, "--only", "vdz", env=NO_LIBVIRT)
    assert (unknown.code, unknown.error["disk"]) == ("invalid-request", "vdz")
    assert not output.exists()


@pytest.mark.parametrize("image_format", ["qcow2", "raw"])
def test_point_comes_back_as_files_without_libvirt(
    kept: Kept, vmkeep: Vmkeep, tmp_path: Path, image_format: str
) -> None:
    output = tmp_path / "restored here"
    point, truth = kept.points[1], kept.truths[1]
    document = vmkeep.json("restore", "guest@latest", "--output", output, "--format", image_format, env=NO_LIBVIRT)

    truth.assert_files(output, image_format)
    restored = document["restored"]
    assert (restored["point"], restored["output"]) == (point["id"], str(output))
    names = {f"vda.{image_format}", f"vdb.{image_format}", "nvram.fd", "tpm", "domain.xml"}
    assert set(restored["files"]) == {str(output / name) for name in names}
    definition = etree.fromstring((output / "domain.xml").read_bytes())
    assert (definition.findtext("name"), definition.findtext("uuid")) == ("guest", point["vm_uuid"])
    for secret in (output / "nvram.fd", output / "tpm/tpm2/tpm2-00.permall"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_files_that_are_there_are_not_touched(kept: Kept, vmkeep: Vmkeep, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "vdb.qcow2").write_bytes(b"precious")
    (output / "unrelated").write_bytes(b"other")
    failure = vmkeep.fails("restore", kept.points[0]["id"], "--output", output, env=NO_LIBVIRT)

    assert (failure.code, failure.status) == ("target-exists", 6)
    assert failure.error["path"] == str(output / "vdb.qcow2")
    assert files_below(output) == {"vdb.qcow2": b"precious", "unrelated": b"other"}
    vmkeep.restore(kept.points[0], output, "--force")
    assert (output / "unrelated").read_bytes() == b"other"
    (output / "unrelated").unlink()
    kept.truths[0].assert_files(output)
    vmkeep.restore(kept.points[1], output, "--force")  # over a restored TPM directory as well
    kept.truths[1].assert_files(output)


def test_restore_into_a_place_that_is_not_there_or_no_directory_is_refused(
    kept: Kept, vmkeep: Vmkeep, tmp_path: Path
) -> None:
    point = kept.points[0]["id"]
    (tmp_path / "file").write_bytes(b"precious")

    assert vmkeep.fails("restore", point, "--output", tmp_path / "no" / "where").code == "host-file-missing"
    assert vmkeep.fails("restore", point, "--output", tmp_path / "file").code == "target-exists"
    assert not (tmp_path / "no").exists()
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert vmkeep.fails("restore", "ffffffff", "--output", tmp_path / "out").code == "point-not-found"
    assert vmkeep.fails("restore", point).code == "invalid-request"
    assert vmkeep.fails("restore", point, "--output", tmp_path / "out", "--as", "guest").code == "invalid-request"
    assert not (tmp_path / "out").exists()


# -- verify ----------------------------------------------------------------------------------------------------


def test_sound_repository_is_verified(kept: Kept, vmkeep: Vmkeep) -> None:
    before = files_below(vmkeep.home / "repository")
    for what in (["--all"], ["guest"], [kept.points[0]["id"][:10]], ["--all", "--sample", "10"]):
        document = vmkeep.json("verify", *what, env=NO_LIBVIRT)
        assert document["ok"] is True
        assert {point["ok"] for point in document["verified"]} == {True}
    assert len(vmkeep.json("verify", "guest")["verified"]) == 2
    assert files_below(vmkeep.home / "repository") == before


def _largest(home: Path, names: frozenset[str]) -> Path:
    """The pack with the blocks; the other one holds manifest nodes."""
    return max((path for name, path in packs(home).items() if name in names), key=lambda path: path.stat().st_size)


def _flip_byte_of_a_block(home: Path, kept: Kept) -> None:
    path = _largest(home, kept.packs[1])
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x01
    path.write_bytes(content)


def _delete_pack(home: Path, kept: Kept) -> None:
    _largest(home, kept.packs[1]).unlink()


def _truncate_pack(home: Path, kept: Kept) -> None:
    path = _largest(home, kept.packs[1])
    path.write_bytes(path.read_bytes()[:-1000])


def _delete_manifest(home: Path, kept: Kept) -> None:
    blocks = _largest(home, kept.packs[1])
    for name in kept.packs[1] - {blocks.name}:
        packs(home)[name].unlink()


def _damage_state(home: Path, _: Kept) -> None:
    """Flip a byte in the newest NVRAM, which only the second point has: the NVRAM is the larger state."""
    states = sorted((home / "repository" / "states").iterdir(), key=lambda path: path.stat().st_mtime)
    content = bytearray(states[-1].read_bytes())
    content[-20] ^= 0x80
    states[-1].write_bytes(content)


def _damage_point(home: Path, kept: Kept) -> None:
    path = home / "repository" / "points" / kept.points[1]["id"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x01
    path.write_bytes(content)


def _delete_point(home: Path, kept: Kept) -> None:
    (home / "repository" / "points" / kept.points[1]["id"]).unlink()


_DAMAGES = [
    _flip_byte_of_a_block,
    _delete_pack,
    _truncate_pack,
    _delete_manifest,
    _damage_state,
    _damage_point,
    _delete_point,
]


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_damage_is_found_named_and_never_restored(
    kept: Kept, vmkeep: Vmkeep, tmp_path: Path, damage: Callable[[Path, Kept], None]
) -> None:
    sound, harmed = kept.points
    damage(vmkeep.home, kept)
    failure = vmkeep.fails("verify", "--all", env=NO_LIBVIRT)

    assert 20 <= failure.status <= 29
    assert failure.document is not None
    verdicts = {point["point"]: point["ok"] for point in failure.document["verified"]}
    assert verdicts == {sound["id"]: True, harmed["id"]: False}
    assert harmed["id"] in {point for finding in failure.document["findings"] for point in finding["harms"]}
    refused = vmkeep.fails("restore", harmed["id"], "--output", tmp_path / "harmed", env=NO_LIBVIRT)
    assert 20 <= refused.status <= 29 or refused.code == "point-not-found"
    assert files_below(tmp_path / "harmed") == {}
    kept.truths[0].assert_files(vmkeep.restore(sound, tmp_path / "sound"))


def test_swapped_packs_are_found_and_never_restored(kept: Kept, vmkeep: Vmkeep, tmp_path: Path) -> None:
    one, other = (_largest(vmkeep.home, names) for names in kept.packs)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    failure = vmkeep.fails("verify", "--all", env=NO_LIBVIRT)

    assert failure.document is not None
    assert {point["ok"] for point in failure.document["verified"]} == {False}
    for number, point in enumerate(kept.points):
        output = tmp_path / str(number)
        assert vmkeep.fails("restore", point["id"], "--output", output, env=NO_LIBVIRT).status in range(20, 30)
        assert files_below(output) == {}


def test_full_point_after_damage_does_not_build_on_it(host: Host) -> None:
    """Blocks that a damaged pack holds are stored anew, once verify has found the damage."""
    fresh = Vmkeep(host)
    vm = host.define("again", disks=[Disk("vda", 4 * MiB)], tpm=False)
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=1 * MiB, seed=1)
    fresh.backup("again")
    for path in packs(fresh.home).values():
        path.write_bytes(path.read_bytes()[:-100])
    assert fresh.fails("verify", "--all").status in range(20, 30)
    vm.write_random("vda", start=64 * KiB, length=64 * KiB, seed=2)
    point = fresh.json("backup", "again", "--full")["point"]

    assert point["disks"][0]["bytes_stored"] >= 1 * MiB
    truth = Truth.of(vm, tpm=False)
    truth.assert_files(fresh.restore(point, host.dir / "work" / "out"))
    assert fresh.json("verify", point["id"])["ok"] is True
