"""UEFI variables in a qcow2 image: what is read of them while QEMU has the image open is what the guest sees.

libvirt 9.0 accepts format='qcow2' and drops it, so QEMU is started here without libvirt, as 9.2 would start it. What
libvirt sends to suspend a VM is QMP's "stop"; what the guest sees is read by NBD from the node of the flash device.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.rig import Host, KiB, assert_images_equal, random_bytes
from tests.rig.cli import Vmkeep
from tests.system.offline import qemu_img
from vmkeep.errors import StateTorn, StateUnsupported
from vmkeep.keys import KeyFile
from vmkeep.repository import PointRecord, Repository
from vmkeep.statefiles.capture import capture

pytestmark = pytest.mark.system

_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_FLASH = "/machine/system.flash1"


class Qemu:
    """QEMU with UEFI variables in qcow2, running, with nothing to boot."""

    def __init__(self, directory: Path, variables: Path) -> None:
        self._monitor = directory / "qmp"
        self._nbd = directory / "nbd"
        nodes = [
            {"driver": "raw", "node-name": "code", "read-only": True, "file": _file(_CODE)},
            {"driver": "qcow2", "node-name": "vars", "file": _file(variables)},
        ]
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "32"]
        command += ["-qmp", f"unix:{self._monitor},server=on,wait=off", "-machine", "q35,pflash0=code,pflash1=vars"]
        for node in nodes:
            command += ["-blockdev", json.dumps(node)]
        # Paused: the firmware would write as well. "stop" does the same whether the processors run or not.
        self._process = subprocess.Popen([*command, "-S"], stdin=subprocess.DEVNULL)

    def __enter__(self) -> Self:
        while not self._monitor.exists():
            assert self._process.poll() is None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(self._monitor))
        self._answers = self._socket.makefile("r")
        self._answers.readline()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def ask(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = json.loads(self._answers.readline())
            if "event" not in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def write(self, start: int, length: int, pattern: int) -> None:
        """Write as the flash device does: through its back end, without a flush."""
        answer = self.ask(
            "human-monitor-command",
            **{"command-line": f'qemu-io -d {_FLASH} "write -P {pattern:#x} {start} {length}"'},
        )
        assert answer == "", answer

    def seen_by_the_guest(self, raw: Path) -> bytes:
        self.ask("nbd-server-start", addr={"type": "unix", "data": {"path": str(self._nbd)}})
        self.ask("block-export-add", type="nbd", id="seen", **{"node-name": "vars"})
        subprocess.run(["nbdcopy", f"nbd+unix:///vars?socket={self._nbd}", str(raw)], check=True)
        return raw.read_bytes()


def _file(path: Path) -> dict[str, str]:
    return {"driver": "file", "filename": str(path)}


def content_of(image: bytes, directory: Path) -> bytes:
    """Return what an image holds whose bytes were read."""
    copy, raw = directory / "copy.qcow2", directory / "copy.raw"
    copy.write_bytes(image)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", copy, raw)
    return raw.read_bytes()


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    """An image with the variables of the firmware's template, as libvirt makes it."""
    image = tmp_path / "vars.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", _VARIABLES, image)
    return image


def test_image_read_after_a_stop_is_what_the_guest_sees(tmp_path: Path) -> None:
    variables = tmp_path / "vars.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", variables, _VARIABLES.stat().st_size)
    with Qemu(tmp_path, variables) as qemu:
        qemu.write(64 * KiB, 256 * KiB, 0x5A)
        qemu.write(8 * KiB, 4 * KiB, 0xA5)
        unflushed = content_of(variables.read_bytes(), tmp_path)
        qemu.ask("stop")
        captured = capture("nvram", variables, file="nvram.fd", vm="guest", qcow2=True)
        seen = qemu.seen_by_the_guest(tmp_path / "seen.raw")
    assert_images_equal(content_of(captured.content, tmp_path), seen, "nvram")
    assert seen[8 * KiB : 12 * KiB] == b"\xa5" * 4 * KiB
    # Why the stop is needed: before it, QEMU had the tables for some of this in memory only.
    assert unflushed != seen, "QEMU wrote its tables before it was stopped, so this test shows nothing"


@pytest.mark.parametrize("option", ["backing", "data file", "no image"])
def test_image_that_is_not_whole_is_refused(tmp_path: Path, option: str) -> None:
    image = tmp_path / "vars.qcow2"
    match option:
        case "backing":
            shutil.copy(_VARIABLES, tmp_path / "below.fd")
            qemu_img("create", "-q", "-f", "qcow2", "-b", tmp_path / "below.fd", "-F", "raw", image)
        case "data file":
            qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", image, "528k")
        case _:
            image.write_bytes(random_bytes(1, 528 * KiB))
    with pytest.raises((StateUnsupported, StateTorn)) as raised:
        capture("nvram", image, file="nvram.fd", vm="guest", qcow2=True)
    assert raised.type is (StateTorn if option == "no image" else StateUnsupported)


@pytest.fixture
def point_of_newer_libvirt(host: Host, variables: Path) -> Iterator[PointRecord]:
    """A point of a VM whose variables are in qcow2, in a repository that the host adopted."""
    home = host.dir / "home"
    repository = Repository.create(str(home / "repository"), KeyFile.generate(home / "keys"))
    xml = (
        "<domain type='qemu'><name>newer</name><uuid>0f7c2a52-0f9a-4b70-9d62-2b9f5a6f4c11</uuid><memory>65536</memory>"
        "<os><type arch='x86_64' machine='q35'>hvm</type>"
        f"<loader readonly='yes' type='pflash'>{_CODE}</loader><nvram format='qcow2'>/nowhere/vars.qcow2</nvram></os>"
        "<features><acpi/></features><devices/></domain>"
    )
    with repository.begin(purpose="test", host="newer", cache=host.dir / "work" / "cache") as writer:
        state = writer.put_state(
            variables.read_bytes(),
            vm_uuid="0f7c2a52-0f9a-4b70-9d62-2b9f5a6f4c11",
            kind="nvram",
            generation=1,
            file="nvram.fd",
            owner="root",
            group="root",
            mode=0o600,
        )
        yield writer.commit(
            PointRecord(
                id="",
                vm_uuid="0f7c2a52-0f9a-4b70-9d62-2b9f5a6f4c11",
                vm_name="newer",
                kind="full",
                parent=None,
                created="2030-01-01T00:00:00.000000Z",
                host="newer",
                checkpoint=None,
                pause_ms=0.0,
                labels={},
                disks=(),
                excluded=(),
                states=(state.ref(),),
                definition=xml,
            )
        )


def test_libvirt_that_drops_the_format_gets_no_vm_that_cannot_boot(
    host: Host, vmkeep: Vmkeep, point_of_newer_libvirt: PointRecord, variables: Path
) -> None:
    if host.connection.getLibVersion() >= 9_002_000:
        pytest.skip("this libvirt knows UEFI variables in qcow2")
    vmkeep.json("init", "--repository", vmkeep.home / "repository", "--adopt")
    failure = vmkeep.fails("restore", point_of_newer_libvirt.id, "--as", "newer")
    assert (failure.code, failure.status) == ("host-unfit", 13)
    (format_of_variables,) = [each for each in failure.error["misfits"] if each["part"] == "os/nvram@format"]
    assert "format='qcow2'" in format_of_variables["what"]
    assert "qemu-img convert" in format_of_variables["remedy"]
    adapted = vmkeep.fails("restore", point_of_newer_libvirt.id, "--as", "newer", "--adapt")
    assert [each["part"] for each in adapted.error["misfits"]] == ["os/nvram@format"]
    assert host.connection.listAllDomains() == []
    assert list(host.path("/var/lib/libvirt/qemu/nvram").iterdir()) == []
    out = vmkeep.restore({"id": point_of_newer_libvirt.id}, host.dir / "work" / "out")
    assert (out / "nvram.fd").read_bytes() == variables.read_bytes()
