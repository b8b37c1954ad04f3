"""Snapshots of libvirt in tests, and what vmkeep keeps with those that it made.

Run as a script inside a host, it records one: the command that does so with the VM suspended is another one.
"""

from __future__ import annotations

import json
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lxml import etree

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.rig import Vm, VmState
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, and what the VM was at its instant."""

    name: str
    truth: Truth
    images: dict[str, Path]
    memory: Path | None = None


def take(
    vm: Vm, vmkeep: Vmkeep | None, name: str, *options: str, memory: bool = False, uefi: bool = True, tpm: bool = True
) -> Taken:
    """Make an external snapshot of a VM that keeps still, and with ``vmkeep`` record its state files.

    With ``memory`` the VM must run or be paused; it is as before afterwards.
    """
    running = vm.state() is VmState.RUNNING
    if running:
        vm.suspend()
    truth = Truth.of(vm, uefi=uefi, tpm=tpm)
    images = {disk.target: disk.path for disk in vm.disks() if disk.path is not None}
    file = vm.host.dir / "disks" / f"{name}.memory" if memory else None
    how = ["--memspec", f"file={file},snapshot=external"] if memory else ["--disk-only"]
    vm.host.run(["virsh", "snapshot-create-as", vm.name, name, *how, *options], check=True)
    if vmkeep is not None:
        record(vm, vmkeep, name)
    if running:
        vm.resume()
    return Taken(name, truth, images, file)


def record(vm: Vm, vmkeep: Vmkeep, name: str) -> None:
    """Keep the state files of a VM that stands still with its snapshot."""
    words = {
        "vm": vm.uuid,
        "name": name,
        "creation_time": int(str(etree.fromstring(snapshot_xml(vm, name)).findtext("creationTime"))),
        "tpm": str(vm.tpm_directory / "tpm2" / "tpm2-00.permall"),
        "nvram": str(vm.nvram_path) if "nvram" in vm.xml() or "efi" in vm.xml() else "",
    }
    vm.host.run([sys.executable, __file__, json.dumps(words)], env=vmkeep.environment, check=True)


def snapshot_xml(vm: Vm, name: str) -> str:
    return str(vm.domain.snapshotLookupByName(name).getXMLDesc())


def names(vm: Vm) -> list[str]:
    return sorted(snapshot.getName() for snapshot in vm.domain.listAllSnapshots())


def current(vm: Vm) -> str:
    return str(vm.domain.snapshotCurrent().getName())


def _record(words: dict[str, Any]) -> None:
    from vmkeep.catalog import CatalogSnapshot, CatalogState
    from vmkeep.config import load_settings
    from vmkeep.flows.premises import Premises

    created = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    with Premises(load_settings()) as premises:
        premises.ensure()
        catalog, states = premises.catalog, []
        if catalog.vm(words["vm"]) is None:
            catalog.see_vm(words["vm"], words["vm"])
        kinds: tuple[tuple[Literal["tpm", "nvram"], str], ...] = (
            ("tpm", "tpm2/tpm2-00.permall"),
            ("nvram", "nvram.fd"),
        )
        for kind, file in kinds:
            path = Path(words[kind])
            if not words[kind] or not path.exists():
                continue
            newest = catalog.newest_state(words["vm"], kind)
            version = premises.repository.put_state(
                path.read_bytes(),
                vm_uuid=words["vm"],
                kind=kind,
                generation=1 if newest is None else newest.generation + 1,
                file=file,
                owner="tss" if kind == "tpm" else "root",
                group="tss" if kind == "tpm" else "root",
                mode=0o600,
            )
            states.append(
                CatalogState(
                    version.id, words["vm"], kind, version.generation, version.sha256, version.size_bytes, created
                )
            )
        vm = catalog.vm(words["vm"])
        point = None if vm is None else vm.current_point
        catalog.record_snapshot(
            CatalogSnapshot(
                uuid.uuid4().hex, words["vm"], words["name"], words["creation_time"], point, created, tuple(states)
            )
        )


if __name__ == "__main__":
    _record(json.loads(sys.argv[1]))
