"""A row played whole, phase after phase, and each result compared with what was written."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libvirt

from tests.rig import Host, RigError, Vm, VmState, assert_images_equal, read_offline_image
from tests.rig.cli import NO_LIBVIRT, Vmkeep
from tests.zoo.conditions import CONDITIONS
from tests.zoo.images import PASSPHRASE, Laid
from tests.zoo.row import KEPT, Outcome, Promise, Refused, Row
from tests.zoo.stage import EXTERNAL_TPM, Held, Stage, staged, tpm_files

_SNAPSHOT, _COPY = "zoo-snapshot", "zoo-copy"
_SETTINGS = 'scratch_dir = "{disks}"\nimages_dir = "{disks}"\n'
_BROKEN = (AssertionError, RigError, libvirt.libvirtError, subprocess.SubprocessError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Played:
    """How a row went: what was not as promised, empty when all was."""

    row: Row
    violations: tuple[str, ...]
    seconds: float


@dataclass(slots=True)
class _Play:
    stage: Stage
    vmkeep: Vmkeep
    promise: Promise
    points: list[tuple[dict[str, Any], Held]] = field(default_factory=list)
    snapshot: Held | None = None

    @property
    def vm(self) -> Vm:
        return self.stage.vm

    def expect(self, outcome: Outcome, *words: str | Path, env: dict[str, str] | None = None) -> dict[str, Any] | None:
        """Run a command that must end as promised; return its document when it did what it was asked."""
        before = self.vm.domain.state() if outcome != KEPT else None
        said = self.vmkeep.run("--json", *words, env=env)
        if isinstance(outcome, Refused):
            assert said.returncode != 0, f"{_line(words)}: it should be refused with {outcome.code}, and was done"
            error = json.loads(said.stderr)["error"]
            assert error["code"] == outcome.code, f"{_line(words)}: refused with {error}, not with {outcome.code}"
            text = f"{error['message']} {error['hint']}"
            assert outcome.words in text, f"{_line(words)}: {outcome.words!r} is not in {text!r}"
            assert self.vm.domain.state() == before, "a refused command changed the state of the VM"
            return None
        assert said.returncode == 0, f"{_line(words)}: exit status {said.returncode}: {said.stderr.strip()}"
        document = json.loads(said.stdout)
        assert isinstance(document, dict)
        return document

    def take_point(self, outcome: Outcome, *, job: bool = False) -> None:
        held, state = self.stage.held(), self.vm.state()
        document = self.expect(outcome, "backup", "--", self.vm.name)
        self.stage.assert_left_alone(state, job=job)
        if document is None:
            return
        point = document["point"]
        modes = {disk["target"]: disk["mode"] for disk in point["disks"]}
        expected = {target: self._mode(laid) for target, laid in self.stage.laid.items()}
        wrong = {target: mode for target, mode in modes.items() if mode not in expected[target]}
        assert modes.keys() == expected.keys(), f"the point has {sorted(modes)}, not {sorted(expected)}"
        assert not wrong, f"disks were read as {wrong}, not as {expected}"
        self.points.append((point, held))

    def _mode(self, laid: Laid) -> set[str]:
        """Return how a disk may be read now. What a snapshot lays over an image without bitmaps can have some."""
        self.stage.follow(laid)
        if laid.overlaid and laid.image.mode == "scan":
            return {"full", "incremental"}
        return {laid.image.mode if self.points or laid.image.mode == "scan" else "full"}


def _line(words: tuple[str | Path, ...]) -> str:
    return f"vmkeep {' '.join(str(word) for word in words)}"


def play(row: Row, host: Host, vmkeep: Vmkeep) -> Played:
    """Play a row; after a violation the later phases are played all the same. The host is empty before."""
    begun = time.monotonic()
    promise = row.promised(host.connection.getLibVersion())
    vmkeep.home.mkdir(exist_ok=True)
    (vmkeep.home / "vmkeep.toml").write_text(_SETTINGS.format(disks=host.dir / "disks"))
    violations: list[str] = []
    # Each start asks the gate, which must refuse none.
    vmkeep.json("init")
    vmkeep.json("hook", "install")
    try:
        with staged(row, host) as stage:
            game = _Play(stage, vmkeep, promise)
            for phase in _PHASES:
                try:
                    phase(game)
                except _BROKEN as error:
                    violations.append(f"{phase.__name__.strip('_')}: {_what_it_says(error)}")
    except _BROKEN as error:
        violations.append(f"making the VM: {_what_it_says(error)}")
    finally:
        vmkeep.json("hook", "remove")
    return Played(row, tuple(violations), time.monotonic() - begun)


def _what_it_says(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error}: {error.stderr}"
    return str(error) or type(error).__name__


def _points_of_the_running_vm(game: _Play) -> None:
    if _not_tried(game.promise.running):
        return
    game.stage.start()
    game.stage.change()
    game.take_point(game.promise.running)
    game.stage.change()
    game.take_point(game.promise.running)


def _point_while_its_condition_holds(game: _Play) -> None:
    condition = CONDITIONS.get(game.stage.row.condition)
    if condition is None:
        return
    if condition.off:
        game.vm.destroy()
    with condition.context(game.stage):
        if condition.off:
            held, state = game.stage.held(), game.vm.state()
            if game.expect(game.promise.meanwhile, "backup", "--", game.vm.name) is not None:
                document = game.vmkeep.json("points", "--", game.vm.name)
                game.points.append((document["points"][-1], held))
            game.stage.assert_left_alone(state)
        else:
            game.take_point(game.promise.meanwhile, job=condition.job)
    if condition.off:
        game.stage.start()


def _snapshot_of_the_running_vm(game: _Play) -> None:
    if _not_tried(game.promise.snapshot):
        return
    held, state = game.stage.held(), game.vm.state()
    if game.expect(game.promise.snapshot, "snapshot", "create", "--", game.vm.name, _SNAPSHOT) is not None:
        game.snapshot = held
    game.stage.assert_left_alone(state)
    if game.vm.state() is not VmState.OFF:
        game.stage.change()


def _point_of_the_stopped_vm(game: _Play) -> None:
    game.vm.destroy()
    if _not_tried(game.promise.off):
        return
    game.stage.change()
    game.take_point(game.promise.off)


def _restored_as_files(game: _Play) -> None:
    if _not_tried(game.promise.files):
        return
    for number, (point, held) in enumerate(game.points):
        output = game.stage.host.dir / "work" / f"out-{number}"
        encrypted = any(image.encrypted for image in game.stage.row.images)
        image_format = "raw" if number or encrypted else "qcow2"
        options = ["--format", image_format, *(["--decrypt"] if encrypted else [])]
        words: list[str | Path] = ["restore", str(point["id"]), "--output", output, *options]
        if game.expect(game.promise.files, *words, env=None if encrypted else NO_LIBVIRT) is None:
            continue
        for target, content in held.disks.items():
            path = output / f"{target}.{image_format}"
            read = path.read_bytes() if image_format == "raw" else read_offline_image(path, image_format)
            assert_images_equal(read, content, f"{target} of point {number + 1} as a file")
        nvram = output / "nvram.fd"
        assert (nvram.read_bytes() if nvram.exists() else None) == held.nvram, f"the UEFI variables of point {number}"
        tpm = {str(path.relative_to(output / "tpm")): path.read_bytes() for path in output.glob("tpm/**/*permall")}
        assert tpm == held.tpm, f"the TPM state of point {number + 1}"


def _restored_as_a_vm(game: _Play) -> None:
    if _not_tried(game.promise.as_vm) or not game.points:
        return
    point, held = game.points[-1]
    directory = game.stage.host.dir / "disks" / "copies"
    directory.mkdir()
    row = game.stage.row
    tpm = ["--tpm", "same"] if row.tpm not in (None, EXTERNAL_TPM) and held.tpm else []
    words: list[str | Path] = ["restore", str(point["id"]), "--as", _COPY, "--disks-dir", directory, *tpm]
    if game.expect(game.promise.as_vm, *words) is None:
        return
    copy = game.stage.host.vm(_COPY)
    encrypted = {image.target: image.encrypted for image in row.images}
    for target, content in held.disks.items():
        disk = copy.disk(target)
        assert disk.path is not None
        read = read_offline_image(disk.path, disk.format, PASSPHRASE if encrypted[target] else None)
        assert_images_equal(read, content, f"{target} of the restored VM")
    assert (copy.nvram() if held.nvram is not None else None) == held.nvram, "the UEFI variables of the restored VM"
    assert (tpm_files(copy) if held.tpm else {}) == held.tpm, "the TPM state of the restored VM"
    copy.start(paused=True)
    copy.destroy()
    copy.undefine()
    shutil.rmtree(directory)  # and nothing else: a medium in a drive is the original's too


def _restored_in_place(game: _Play) -> None:
    if _not_tried(game.promise.in_place) or not game.points:
        return
    point, held = game.points[0]
    words = ["restore", str(point["id"]), "--in-place", "--yes"]
    if game.expect(game.promise.in_place, *words) is None:
        return
    now = game.stage.went_back(held)
    game.stage.assert_holds(now)
    _starts_and_holds(game, now)
    game.vm.destroy()
    game.stage.change()
    game.take_point(game.promise.off)


def _reverted_to_the_snapshot(game: _Play) -> None:
    if game.snapshot is None or _not_tried(game.promise.revert):
        return
    if game.expect(game.promise.revert, "snapshot", "revert", "--yes", "--", game.vm.name, _SNAPSHOT) is None:
        return
    now = game.stage.went_back(game.snapshot, by_snapshot=True)
    game.stage.assert_holds(now)
    _starts_and_holds(game, now)


def _tpm_taken_out_and_put_back(game: _Play) -> None:
    """By the command that the removal itself names as the way back."""
    if game.stage.row.tpm is None or _not_tried(game.promise.tpm):
        return
    before, held = _inactive(game.vm), tpm_files(game.vm)
    document = game.expect(game.promise.tpm, "tpm", "remove", "--yes", "--", game.vm.name)
    if document is None:
        return
    assert "<tpm" not in game.vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), "the device is still there"
    assert not tpm_files(game.vm), f"its state is still there: {document['removed']['left']}"
    way_back = document["removed"]["way_back"]
    assert way_back is not None, "no way back is told"
    game.expect(KEPT, *shlex.split(way_back)[1:])
    assert _inactive(game.vm) == before, "the definition is another one than before"
    assert tpm_files(game.vm) == held, "the TPM state is another one than before"
    listed = game.vmkeep.json("state", "list", "--", game.vm.name)["states"]
    standings = {each["standing"] for each in listed if each["kind"] == "tpm"}
    assert standings == {"current"}, f"the TPM state that came back is {standings}"
    if not _not_tried(game.promise.running):
        # The UEFI variables may be those of an earlier point by now, which the gate would refuse.
        game.vmkeep.json("hook", "pass", "--yes", "--", game.vm.name)
        game.vm.start(paused=True)
        game.vm.destroy()


def _tpm_made_new(game: _Play) -> None:
    """Reset, and given another key, and each time what it was comes back by the commands that are named for it."""
    if game.stage.row.tpm is None or game.promise.tpm != KEPT:
        return
    vm, files = game.vm, tpm_files(game.vm)
    before, is_older = _inactive(vm), any(name.startswith("tpm1.2") for name in files)
    for verb in ("reset", "rekey"):
        if verb == "rekey" and is_older:
            game.expect(Refused("state-unsupported", "is a TPM 1.2"), "tpm", "rekey", "--yes", "--", vm.name)
            continue
        document = game.expect(KEPT, "tpm", verb, "--yes", "--", vm.name)
        assert document is not None
        assert tpm_files(vm) != files, f"the TPM state is the same after {verb}"
        if not _not_tried(game.promise.running):
            game.vmkeep.json("hook", "pass", "--yes", "--", vm.name)
            vm.start(paused=True)
            vm.destroy()
        renewed = document["reset" if verb == "reset" else "rekeyed"]
        for command in renewed["way_back"]:
            words = shlex.split(command)[1:]
            game.expect(KEPT, *words[:2], *(["--yes"] if "remove" in words else []), *words[2:])
        assert _inactive(vm) == before, f"after {verb} and back the definition is another one than before"
        assert tpm_files(vm) == files, f"after {verb} and back the TPM state is another one than before"


def _inactive(vm: Vm) -> str:
    return vm.domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)


def _nothing_is_left(game: _Play) -> None:
    assert game.vm.state() is VmState.OFF
    if game.points:
        assert game.vmkeep.run("verify", "--", game.vm.name).returncode == 0, "verify finds a point that is not sound"
    left = [path for path in (game.stage.host.dir / "disks").rglob("*") if "scratch" in path.name]
    assert left == [], "scratch is left"
    for name in ("guards", "locks", "owners"):
        directory = game.vmkeep.home / name
        assert not directory.exists() or list(directory.iterdir()) == [], f"{name} are left"


def _starts_and_holds(game: _Play, held: Held) -> None:
    """Start the VM and compare what its guest sees: a chain that is not the image's shows here only."""
    if _not_tried(game.promise.running):
        return
    game.vm.start(paused=True)
    game.stage.assert_holds(held, state=False)
    game.vm.destroy()


def _not_tried(outcome: Outcome) -> bool:
    return not isinstance(outcome, Refused) and outcome != KEPT


_PHASES: tuple[Callable[[_Play], None], ...] = (
    _points_of_the_running_vm,
    _point_while_its_condition_holds,
    _snapshot_of_the_running_vm,
    _point_of_the_stopped_vm,
    _restored_as_files,
    _restored_as_a_vm,
    _restored_in_place,
    _reverted_to_the_snapshot,
    _tpm_taken_out_and_put_back,
    _tpm_made_new,
    _nothing_is_left,
)
