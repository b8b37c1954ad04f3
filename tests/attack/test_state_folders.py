"""The folders of UEFI variables and TPM states belong to QEMU's and swtpm's users: what those put there harms nobody.

Played with the rights of these users; each was seen to work on an earlier build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.attack.conftest import QEMU_USER, SWTPM_USER, Ground, as_user
from tests.rig import KiB, random_bytes
from vmkeep.custody.standing import FoundState
from vmkeep.errors import VmkeepError
from vmkeep.host.restores.items import item_at, publish_items, withdraw_items
from vmkeep.host.tasks.restores import PublishItems, WithdrawItems
from vmkeep.host.vm.found_states import found_state
from vmkeep.host.vm.states import StateSource
from vmkeep.paths import give_away, make_directories
from vmkeep.statefiles.capture import capture
from vmkeep.statefiles.installation import make_folder, publish, remove, stage_file, stage_tpm, withdraw

_CONTENT = random_bytes(3, 64 * KiB)
_PROMPT_SECONDS = 3.0
_OPERATION = "0123456789abcdef"


def _nvram(ground: Ground) -> Path:
    """Make the folder of UEFI variables as it is on Debian: its parent belongs to QEMU's user too."""
    folder = ground.folder_of(QEMU_USER) / "nvram"
    as_user(QEMU_USER, "mkdir", "-m", "755", folder, check=True)
    return folder


def _replace_by_link(folder: Path, target: Path) -> None:
    as_user(QEMU_USER, "rmdir", folder)
    as_user(QEMU_USER, "ln", "-sn", target, folder, check=True)


# -- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nvram", "tpm"])
@pytest.mark.parametrize("planted", ["pipe", "folder", "link", "socket", "link in the way"])
def test_what_is_planted_for_a_state_file_is_an_error_at_once(
    ground: Ground, kind: Literal["nvram", "tpm"], planted: str
) -> None:
    folder = _nvram(ground)
    path = folder / "vm_VARS.fd"
    match planted:
        case "pipe":
            as_user(QEMU_USER, "mkfifo", path, check=True)
        case "folder":
            as_user(QEMU_USER, "mkdir", path, check=True)
        case "link":
            as_user(QEMU_USER, "ln", "-s", ground.secret_file, path, check=True)
        case "socket":
            listen = f"import socket; socket.socket(socket.AF_UNIX).bind({str(path)!r})"
            as_user(QEMU_USER, "/usr/bin/python3", "-c", listen, check=True)
        case _:
            _replace_by_link(folder, ground.secret_file.parent)
            path = folder / "secret"
    answers: list[object] = []

    def read() -> None:
        try:
            answers.append(len(capture(kind, path, file="f", vm="vm").content))
        except VmkeepError as error:
            answers.append(error.code)
        answers.append(found_state(StateSource("nvram", path, "nvram.fd")))

    # What waits for a pipe cannot be ended from within.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(_PROMPT_SECONDS)
    about = f"what is read from a {planted} in place of the state"
    assert len(answers) == 2, about
    assert answers[0] == "state-unsupported", about
    assert isinstance(answers[1], FoundState), about
    assert (answers[1].sha256, bool(answers[1].problem)) == (None, True), about


def test_state_that_is_there_is_read_whoever_owns_it(ground: Ground) -> None:
    path = _nvram(ground) / "vm_VARS.fd"
    path.write_bytes(_CONTENT)
    for user in ("root", QEMU_USER):
        shutil.chown(path, user)
        state = capture("nvram", path, file="nvram.fd", vm="vm")
        assert (state.content, state.owner) == (_CONTENT, user)
        found = found_state(StateSource("nvram", path, "nvram.fd"))
        assert (found.sha256, found.problem) == (hashlib.sha256(_CONTENT).hexdigest(), None)


def test_folder_of_libvirt_may_be_roots_link(ground: Ground) -> None:
    (ground.top / "libvirt").symlink_to(_nvram(ground))
    stage_file(ground.top / "libvirt" / "f", _CONTENT)
    assert capture("nvram", ground.top / "libvirt" / "f", file="nvram.fd", vm="vm").content == _CONTENT


# -- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda path: stage_file(path, _CONTENT),
        lambda path: stage_file(path, _CONTENT, owner=QEMU_USER, group="kvm"),
        lambda path: stage_tpm(path, "tpm2/tpm2-00.permall", _CONTENT, owner=(SWTPM_USER, SWTPM_USER)),
        lambda path: make_folder(path / "a" / "b", 0o755),
    ],
)
def test_nothing_is_written_through_a_link(ground: Ground, write: Callable[[Path], None]) -> None:
    folder = _nvram(ground)
    _replace_by_link(folder, ground.secret_file.parent)
    with pytest.raises(VmkeepError) as caught:
        write(folder / "vm_VARS.fd")
    ground.assert_untouched()
    assert caught.value.code == "permission-denied"
    assert str(folder) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("change", ["publish", "withdraw", "remove"])
def test_nothing_is_renamed_or_removed_through_a_link(ground: Ground, change: str) -> None:
    """The folder was one when the file was staged, and is a link when it is put in place."""
    folder = _nvram(ground)
    final = folder / "secret"
    staged, aside, marker = (folder / f".secret.{end}" for end in ("partial", "replaced", "published"))
    stage_file(staged, _CONTENT)
    folder.rename(folder.with_name("elsewhere"))
    _replace_by_link(folder, ground.secret_file.parent)
    changes: dict[str, Callable[[], None]] = {
        "publish": lambda: publish(staged, final, aside=aside, marker=marker, force=True),
        "withdraw": lambda: withdraw(staged, final, aside=aside, marker=marker),
        "remove": lambda: remove(final),
    }
    with pytest.raises(VmkeepError):
        changes[change]()
    ground.assert_untouched()


@pytest.mark.parametrize("planted", ["link to nothing", "link to a file", "folder", "file"])
def test_marker_that_is_planted_leads_nowhere(ground: Ground, planted: str) -> None:
    folder = _nvram(ground)
    item = item_at("nvram", "nvram", folder / "vm_VARS.fd", _OPERATION)
    staged, final = Path(item.staged), Path(item.final)
    marker = staged.with_suffix(".published")
    elsewhere = ground.secret_file.parent / "nologin"
    match planted:
        case "link to nothing":
            as_user(QEMU_USER, "ln", "-s", elsewhere, marker, check=True)
        case "link to a file":
            as_user(QEMU_USER, "ln", "-s", ground.secret_file, marker, check=True)
        case "folder":
            as_user(QEMU_USER, "mkdir", marker, check=True)
        case _:
            as_user(QEMU_USER, "touch", marker, check=True)
    stage_file(staged, _CONTENT)
    final.write_bytes(b"old")
    with pytest.raises(VmkeepError):
        publish_items(PublishItems((item,), force=True))
    ground.assert_untouched()
    assert marker.is_symlink() or marker.stat().st_uid != 0
    as_user(QEMU_USER, "sh", "-c", f"rm -rf {marker}", check=True)
    withdraw_items(WithdrawItems((item,)))
    assert [entry.name for entry in folder.iterdir()] == [final.name]
    assert final.read_bytes() == b"old"


def test_swtpms_user_gets_no_file_by_taking_one_away(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner is changed on the file that was written, and swtpm's user cannot come to it before that is done."""
    states = ground.folder_of(SWTPM_USER)
    shutil.chown(states, "root", "root")
    staged = states / ".vm.partial"
    tried: list[int] = []

    def swap() -> None:
        file = staged / "tpm2/tpm2-00.permall"
        script = f"rm -f {file} && ln -s {ground.secret_file} {file}; ln -s {ground.secret_file} {staged}/tpm2/x"
        tried.append(as_user(SWTPM_USER, "sh", "-c", script).returncode)

    def attacked(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*arguments: object, **options: object) -> None:
            swap()
            change(*arguments, **options)
            swap()

        return changed

    # Wherever an owner is changed the attacker had his turn just before.
    monkeypatch.setattr(shutil, "chown", attacked(shutil.chown))
    monkeypatch.setattr(os, "chown", attacked(os.chown))
    monkeypatch.setattr(os, "fchown", attacked(os.fchown))
    stage_tpm(staged, "tpm2/tpm2-00.permall", _CONTENT, owner=(SWTPM_USER, SWTPM_USER))
    ground.assert_untouched()
    assert tried
    monkeypatch.undo()
    file = staged / "tpm2/tpm2-00.permall"
    assert file.read_bytes() == _CONTENT
    modes = {path.name: (path.owner(), path.stat().st_mode & 0o777) for path in (staged, file.parent, file)}
    assert modes == {
        staged.name: ("root", 0o711),
        "tpm2": (SWTPM_USER, 0o700),
        file.name: (SWTPM_USER, 0o600),
    }


@pytest.mark.parametrize("planted", ["link", "file of another", "second name"])
def test_image_that_was_changed_for_something_else_is_not_given_away(ground: Ground, planted: str) -> None:
    folder = ground.folder_of(QEMU_USER)
    image = folder / "overlay.qcow2"
    match planted:
        case "link":
            as_user(QEMU_USER, "ln", "-s", ground.secret_file, image, check=True)
        case "file of another":
            image.write_bytes(b"x")
            shutil.chown(image, "nobody")
        case _:
            image.hardlink_to(ground.secret_file)
    with pytest.raises(OSError, match="place"):
        give_away(image, 64055, 64055, 0o600)
    if planted == "second name":
        image.unlink()
    ground.assert_untouched()


def test_image_that_was_made_gets_its_owner_and_mode(ground: Ground) -> None:
    image = ground.folder_of(QEMU_USER) / "overlay.qcow2"
    image.write_bytes(b"x")
    give_away(image, 1234, 4321, 0o640)
    about = image.stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o7777) == (1234, 4321, 0o640)


def test_state_is_put_in_place_and_taken_back_in_a_folder_of_qemus_user(ground: Ground) -> None:
    folder = _nvram(ground)
    item = item_at("nvram", "nvram", folder / "vm_VARS.fd", _OPERATION)
    final = Path(item.final)
    final.write_bytes(b"old")
    stage_file(Path(item.staged), _CONTENT)
    for _ in range(2):  # again, after a death
        publish_items(PublishItems((item,), force=True))
        assert final.read_bytes() == _CONTENT
    for _ in range(2):
        withdraw_items(WithdrawItems((item,)))
        assert final.read_bytes() == b"old"
    assert [entry.name for entry in folder.iterdir()] == [final.name]
    make_directories(folder / "a" / "b", 0o755)
    assert (folder / "a" / "b").is_dir()
