"""What is kept with a snapshot, read without the command: the catalogue's row and the repository's state versions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxml import etree

from tests.rig import Vm
from tests.rig.cli import Vmkeep
from vmkeep.catalog import CatalogSnapshot
from vmkeep.config import load_settings
from vmkeep.flows.installation import Premises


@dataclass(frozen=True, slots=True)
class KeptSnapshot:
    """A row of the catalogue, with the content of its state versions by kind."""

    row: CatalogSnapshot
    states: dict[str, bytes]


def create_snapshot(vmkeep: Vmkeep, *words: str | Path) -> dict[str, Any]:
    """Make a snapshot that must succeed, and return its object."""
    snapshot = vmkeep.json("snapshot", "create", *words)["snapshot"]
    assert isinstance(snapshot, dict)
    return snapshot


def kept_snapshot(vmkeep: Vmkeep, vm: Vm, name: str) -> KeptSnapshot:
    """Return what is kept with a snapshot; fails when there is nothing, or when its versions are not pinned by it."""
    with Premises(load_settings(home=vmkeep.home, environ={})) as premises:
        row = _row(premises, vm, name)
        return KeptSnapshot(row, {state.kind: premises.repository.state(state.id)[1] for state in row.states})


def kinds_kept(vmkeep: Vmkeep, vm: Vm, name: str) -> frozenset[str]:
    """Return which state is kept with a snapshot, by the catalogue: a repository may be mounted for its host only.

    Fails as ``kept_snapshot`` does.
    """
    with Premises(load_settings(home=vmkeep.home, environ={})) as premises:
        return frozenset(state.kind for state in _row(premises, vm, name).states)


def _row(premises: Premises, vm: Vm, name: str) -> CatalogSnapshot:
    row = premises.catalog.snapshot(vm.uuid, name)
    assert row is not None, f"nothing is kept with {name}"
    assert all(row.id in premises.catalog.pins(state.id) for state in row.states)
    return row


def snapshots(vm: Vm) -> dict[str, etree._Element]:
    """Return what libvirt lists, by name."""
    return {each.getName(): etree.fromstring(each.getXMLDesc()) for each in vm.domain.listAllSnapshots()}


def assert_nothing_left(vmkeep: Vmkeep, vm: Vm) -> None:
    """Fail when a snapshot left something of its own on the host, or libvirt lists one that was not made."""
    for name in ("snapshots", "guards"):
        directory = vmkeep.home / name
        assert not directory.exists() or list(directory.iterdir()) == [], name
    assert vm.host.path("/run/vmkeep").exists() is False or list(vm.host.path("/run/vmkeep").iterdir()) == []
