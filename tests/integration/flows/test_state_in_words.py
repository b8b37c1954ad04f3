"""What is shown and compared of kept state, out of a real repository, and without a host where there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from tests.integration.catalog.examples import WIN11, example_point, number
from tests.integration.repository.samples import sample_key
from tests.unit.custody.stores import Made, make_store
from tests.unit.custody.test_differences import tpm
from vmkeep.catalog import CatalogState, MemoryCatalog
from vmkeep.errors import (
    HypervisorUnavailable,
    IntegrityError,
    InvalidRequest,
    ObjectMissing,
    VmkeepError,
    VmNotFound,
)
from vmkeep.flows.compare_state import compare_kept_state
from vmkeep.flows.show_state import show_state
from vmkeep.flows.state_conflicts import state_conflicts
from vmkeep.host.protocol import Host
from vmkeep.repository import Repository

OLD, NEW = make_store([Made("Old", b"1")]), make_store([Made("New", b"secret content"), Made("PK", b"")])


class Absent:
    """A host that answers everything with an error."""

    def __init__(self, error: VmkeepError) -> None:
        self.error = error

    def ask(self, _task: Any) -> Any:
        raise self.error


GONE = cast("Host", Absent(VmNotFound("there is no VM")))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.create(str(tmp_path / "repository"), sample_key())


@pytest.fixture
def catalog() -> MemoryCatalog:
    return MemoryCatalog()


Keep = Callable[..., CatalogState]


@pytest.fixture
def keep(repository: Repository, catalog: MemoryCatalog) -> Keep:
    """Put a content into the repository, and accept it as a version of a point, or of nothing."""

    def keep(
        content: bytes, generation: int, kind: Literal["tpm", "nvram"] = "nvram", *, point: str = "", **document: Any
    ) -> CatalogState:
        file = "nvram.fd" if kind == "nvram" else "tpm2/tpm2-00.permall"
        put = repository.put_state(
            content, vm_uuid=WIN11, kind=kind, generation=generation, file=file, owner="tss", group="tss", mode=0o600
        )
        state = CatalogState(put.id, WIN11, kind, generation, put.sha256, put.size_bytes, put.created)
        catalog.see_vm(WIN11, "win11")
        if not point:
            catalog.accept_states([state])
        else:
            made = example_point(point, states=(state,))
            made = dataclasses.replace(made, document={**made.document, **document}, signed_by="")
            catalog.record_point(made, [state])
        return state

    return keep


def test_versions_of_a_vm_that_is_gone_are_shown_with_what_they_hold(
    repository: Repository, catalog: MemoryCatalog, keep: Keep
) -> None:
    secret = {"usage": "vtpm", "uuid": "5e1f2c6a-0000-4000-8000-000000000000"}
    keep(OLD, 1, point="first")
    keep(NEW, 2)
    keep(tpm(b"x" * 600, flags=9), 1, "tpm", point="second", secrets=[secret])
    shown = show_state(catalog, lambda: repository, GONE, "win11")
    assert (shown.vm, shown.vm_uuid, shown.on_host) == ("win11", WIN11, False)
    kinds = {kind.kind: kind for kind in shown.kinds}
    assert kinds["tpm"].encrypted is True
    held = kinds["tpm"].secret
    assert held is not None
    assert (held.uuid, held.point) == (secret["uuid"], number("second"))
    variables = kinds["nvram"].variables
    assert variables is not None
    assert (variables.secure_boot, variables.variables) == ("on", 2)
    assert [each.name for each in variables.databases] == ["PK"]
    assert len(kinds["nvram"].versions) == 2
    newest = kinds["nvram"].newest
    assert newest is not None
    assert (newest.version.generation, newest.held_by) == (2, ())
    assert "secret content" not in repr(shown)


def test_what_cannot_be_asked_is_told_and_the_rest_is_shown(
    repository: Repository, catalog: MemoryCatalog, keep: Keep, tmp_path: Path
) -> None:
    version = keep(NEW, 1)
    away = cast("Host", Absent(HypervisorUnavailable("libvirt is away")))
    shown = show_state(catalog, lambda: repository, away, WIN11)
    assert shown.on_host is None
    assert "libvirt is away" in shown.problems[0]
    (tmp_path / "repository" / "states" / version.id).unlink()
    (kind,) = show_state(catalog, lambda: repository, GONE, WIN11).kinds
    assert kind.variables is None
    assert version.id in (kind.unread or "")
    with pytest.raises(VmNotFound):
        show_state(catalog, lambda: repository, GONE, "nobody")


def test_two_versions_are_compared_by_number_or_hash(
    repository: Repository, catalog: MemoryCatalog, keep: Keep
) -> None:
    first, second = keep(OLD, 1), keep(NEW, 2)
    for named in (("1", "2"), (first.sha256[:8], second.sha256)):
        found = compare_kept_state(catalog, lambda: repository, lambda: GONE, "win11", "nvram", named)
        assert (found.before, found.after) == (first, second)
        changes = [(change.name, change.before is None) for change in found.difference.variables]
        assert changes == [("New", True), ("Old", False), ("PK", True)]
    for wrong in ("3", "0", "-1", "abc", "x" * 64, "f" * 8):
        with pytest.raises(InvalidRequest, match="means no version"):
            compare_kept_state(catalog, lambda: repository, lambda: GONE, "win11", "nvram", ("1", wrong))


def test_object_that_is_not_what_was_accepted_is_not_compared(
    repository: Repository, catalog: MemoryCatalog, keep: Keep
) -> None:
    keep(OLD, 1)
    put = repository.put_state(
        NEW, vm_uuid=WIN11, kind="nvram", generation=2, file="nvram.fd", owner="", group="", mode=0o600
    )
    catalog.accept_states([CatalogState(put.id, WIN11, "nvram", 2, "0" * 64, put.size_bytes, put.created)])
    catalog.accept_states([CatalogState("f" * 32, WIN11, "nvram", 3, "1" * 64, 1, put.created)])
    for wrong, error in (("2", IntegrityError), ("3", ObjectMissing)):
        with pytest.raises(error):
            compare_kept_state(catalog, lambda: repository, lambda: GONE, "win11", "nvram", ("1", wrong))


def test_conflict_is_told_with_both_sides_and_what_restores_each(catalog: MemoryCatalog, keep: Keep) -> None:
    ours = keep(OLD, 1, point="ours")
    theirs = dataclasses.replace(ours, id="e" * 32, sha256="2" * 64)
    catalog.adopt([(example_point("theirs", states=(theirs,), host="beta"), [theirs])])
    (found,) = state_conflicts(catalog)
    assert (found.vm, found.kind) == ("win11", "nvram")
    assert found.counts is not None
    assert found.counts.version == ours
    assert found.counts.command == f"vmkeep state restore {WIN11} --kind nvram --version {ours.sha256[:16]}"
    assert found.conflict.version.sha256 == theirs.sha256
    assert [(each.id, each.host) for each in found.conflict.held_by] == [(number("theirs"), "beta")]
    assert found.conflict.command == f"vmkeep state restore {WIN11} --kind nvram --version {theirs.sha256[:16]}"
    assert found.compare == f"vmkeep state diff {WIN11} {ours.sha256[:16]} {'2' * 16} --kind nvram"
    assert state_conflicts(catalog, "win11") == (found,)
    with pytest.raises(VmNotFound):
        state_conflicts(catalog, "nobody")
