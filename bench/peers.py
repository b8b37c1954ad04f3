"""The other side of every ratio: the tools that others use for the same, as they use them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench.disks import SIZE_BYTES
from bench.measuring import Run, measured, seconds_of, timed, warm_memory
from tests.rig import Host, MiB, Vm

_REQUIRED_COMMANDS = ("time", "virtnbdbackup", "virtnbdrestore", "nbdcopy", "nbdkit", "qemu-img", "qemu-nbd")


def missing_commands() -> list[str]:
    """Return what this machine lacks for the benchmarks."""
    return [name for name in _REQUIRED_COMMANDS if shutil.which(name) is None]


# -- copying what QEMU exports -----------------------------------------------------------------------------------


def nbdcopy(vm: Vm, target: Path | str, *options: str) -> float:
    """Return the seconds that nbdcopy takes from a backup job of the running VM. ``null:`` is a target, too."""
    if isinstance(target, Path):
        target.unlink(missing_ok=True)
    with vm.own_backup_job(["vda"]) as socket:
        warm_memory(vm.host.dir / "work", SIZE_BYTES)
        return seconds_of(["nbdcopy", *options, f"nbd+unix:///vda?socket={socket}", target])


def nbdcopy_offline(vm: Vm, target: Path | str) -> float:
    """Return the seconds that nbdcopy takes from the image of a VM that is off, through qemu-nbd."""
    if isinstance(target, Path):
        target.unlink(missing_ok=True)
    warm_memory(vm.host.dir / "work", SIZE_BYTES)
    disk = vm.disk("vda")
    server = ["[", "qemu-nbd", "--read-only", "-f", disk.format, str(disk.path), "]"]
    return seconds_of(["nbdcopy", "--", *server, target])


# -- copying and reading files -----------------------------------------------------------------------------------


def convert(source: Path, target: Path) -> float:
    """Return the seconds of qemu-img convert to qcow2, made durable as a restore is."""
    target.unlink(missing_ok=True)
    warm_memory(target.parent, SIZE_BYTES)
    script = 'qemu-img convert -O qcow2 "$1" "$2" && sync "$2"'
    return seconds_of(["sh", "-c", script, "sh", source, target])


def convert_to_nothing(image: Path, image_format: str) -> float:
    """Return the seconds that qemu-img convert takes to read an image that QEMU may have open."""
    nothing = f"driver=null-co,size={SIZE_BYTES}"
    return seconds_of(["qemu-img", "convert", "-n", "-U", "-f", image_format, "--target-image-opts", image, nothing])


def read_whole(image: Path) -> float:
    """Return the seconds that Python takes to read a file by the MiB, holes and all."""

    def read() -> None:
        buffer = bytearray(MiB)
        with image.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    return timed(read)


# -- virtnbdbackup -----------------------------------------------------------------------------------------------


def virtnbdbackup(vm: Vm, level: str, directory: Path, *options: str) -> Run:
    """Back a VM up to a directory, which is made new for the levels that read all."""
    if level in ("full", "copy"):
        shutil.rmtree(directory, ignore_errors=True)
        warm_memory(vm.host.dir / "work", SIZE_BYTES)
    return measured(vm.host, ["virtnbdbackup", "-n", "-d", vm.name, "-l", level, "-o", directory, *options])


def virtnbdrestore(host: Host, directory: Path, output: Path) -> Run:
    """Restore all that a directory of virtnbdbackup holds, the last state of it, as qcow2."""
    warm_memory(host.dir / "work", SIZE_BYTES)
    log = host.dir / "work/virtnbdrestore.log"
    return measured(host, ["virtnbdrestore", "-n", "-L", log, "-i", directory, "-o", output])


def seconds_until_durable(output: Path) -> float:
    """Return the seconds until what virtnbdrestore wrote is closed and durable.

    It stops the qemu-nbd that writes the image and does not wait for its end.
    """

    def close_and_sync() -> None:
        image = restored_image(output)
        while subprocess.run(["qemu-img", "info", image], check=False, capture_output=True).returncode != 0:
            time.sleep(0.01)
        subprocess.run(["sync", image], check=True)

    return timed(close_and_sync)


def restored_image(output: Path) -> Path:
    """Return the image that virtnbdrestore wrote."""
    images = list(output.glob("*.qcow2"))
    if len(images) != 1:
        sys.exit(f"virtnbdrestore wrote {len(images)} images to {output}")
    return images[0]
