"""The points of one VM with the truth about each, all compared at the end."""

from __future__ import annotations

from typing import Any

from tests.rig import Vm
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
        ours = [point["id"] for point in self._vmkeep.json("points", self._vm.uuid)["points"]]
        assert sorted(ours) == sorted(point["id"] for point in self.points)
        parent = self._vmkeep.host.dir / "work" / "points"
        parent.mkdir()
        outputs = self._vmkeep.restore_all(self.points, parent)
        for (_, truth), output in zip(self._kept, outputs, strict=True):
            truth.assert_files(output)
