"""The points of one VM with the truth about each, all compared at the end."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.crash.bed import Zygote
from tests.rig import Host, Vm
from tests.rig.cli import Vmkeep
from tests.system.truth import Truth

INCREMENTAL = ("incremental", "incremental")


def modes(point: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return mode and reason of each disk."""
    return {disk["target"]: (disk["mode"], disk["reason"]) for disk in point["disks"]}


class History:
    """Takes points of a VM that keeps still (paused, off, or settled), and remembers what each must hold."""

    def __init__(self, vm: Vm, vmkeep: Vmkeep, *, uefi: bool = True, tpm: bool = True) -> None:
        self._vm = vm
        self._vmkeep = vmkeep
        self._uefi = uefi
        self._tpm = tpm
        self._kept: list[tuple[dict[str, Any], Truth]] = []

    @property
    def points(self) -> list[dict[str, Any]]:
        return [point for point, _ in self._kept]

    def keep(self, *options: str) -> dict[str, Any]:
        """Take a point that must succeed, and return it."""
        point = self._vmkeep.backup(self._vm.name, *options)
        self.add(point, self.now())
        return point

    def now(self) -> Truth:
        return Truth.of(self._vm, uefi=self._uefi, tpm=self._tpm)

    def add(self, point: dict[str, Any], truth: Truth) -> None:
        """Remember a point that was taken another way."""
        self._kept.append((point, truth))

    def forget(self, point: dict[str, Any]) -> None:
        """A point that was deleted."""
        self._kept = [(kept, truth) for kept, truth in self._kept if kept["id"] != point["id"]]

    def assert_kept(self) -> None:
        """Fail unless the points are there, no others, and each is exactly what was there at its instant."""
        assert_all_kept(self._vmkeep, [self])

    def pairs(self) -> list[tuple[dict[str, Any], Truth]]:
        return list(self._kept)


def assert_all_kept(vmkeep: Vmkeep, histories: Sequence[History], zygote: Zygote | None = None) -> None:
    """Do so for several VMs: those are all points of the installation. One process restores them, which is faster."""
    kept = {str(point["id"]): truth for history in histories for point, truth in history.pairs()}
    assert {point["id"] for point in vmkeep.json("points")["points"]} == set(kept)
    parent = vmkeep.host.dir / "work" / "points"
    parent.mkdir()
    process = Zygote(vmkeep.host, vmkeep.home) if zygote is None else zygote
    try:
        process.run(["restore_all", str(parent)]).acts  # noqa: B018  raises unless all went well
    finally:
        if zygote is None:
            process.close()
    for point, truth in kept.items():
        truth.assert_files(parent / point, "raw")
    shutil.rmtree(parent)


class Remembering(Vmkeep):
    """The command, with a memory: of each point of a VM that keeps still, what it must hold."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._histories: dict[str, History] = {}

    def backup(self, vm: str, *options: str) -> dict[str, Any]:
        point = super().backup(vm, *options)
        now = self.host.vm(vm)
        if now.uuid not in self._histories:
            xml = now.xml()
            self._histories[now.uuid] = History(now, self, uefi="efi" in xml or "<nvram" in xml, tpm="<tpm" in xml)
        history = self._histories[now.uuid]
        history.add(point, history.now())
        return point

    def remember(self, vm: Vm, point: dict[str, Any], truth: Truth) -> None:
        """Remember a point, of a VM that has one already, which was taken in another way."""
        self._histories[vm.uuid].add(point, truth)

    def delete(self, point: dict[str, Any], *options: str) -> None:
        self.json("point", "delete", str(point["id"]), "--yes", *options)
        for history in self._histories.values():
            history.forget(point)

    def assert_all_kept(self) -> None:
        assert_all_kept(self, list(self._histories.values()))


class Forking(Vmkeep):
    """The command, forked each time from a process that has imported vmkeep: four times as fast."""

    def __init__(self, host: Host, zygote: Zygote) -> None:
        super().__init__(host)
        self._zygote = zygote

    def run(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002
    ) -> subprocess.CompletedProcess[str]:
        assert input is None
        printed = self._zygote.command(*arguments, env=env or {})
        return subprocess.CompletedProcess(list(arguments), printed.status, printed.out, printed.err)


class Forked(Forking, Remembering):
    """The same with a memory of its points, for tests of many commands."""

    def assert_all_kept(self) -> None:
        assert_all_kept(self, list(self._histories.values()), self._zygote)
