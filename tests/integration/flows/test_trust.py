"""Which points may say what is defined on this host: those that this installation took, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.catalog.examples import WEB, example_point
from vmkeep.catalog import Catalog, CatalogPoint, OperationState, SqlCatalog
from vmkeep.flows.declared import TAKE_POINT
from vmkeep.flows.trust import is_trusted


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with SqlCatalog.open(tmp_path / "catalog.sqlite") as opened:
        yield opened


def _taken(catalog: Catalog, name: str, state: OperationState = OperationState.DONE) -> CatalogPoint:
    point = example_point(name)
    catalog.begin_operation(point.id, TAKE_POINT, "win11", "me", {})
    catalog.record_point(point)
    catalog.move_operation(point.id, "me", state)
    return point


def test_own_point_is_trusted(catalog: Catalog) -> None:
    assert is_trusted(catalog, _taken(catalog, "own"))


def test_adopted_point_is_not_trusted_whatever_it_says_of_itself(catalog: Catalog) -> None:
    own = _taken(catalog, "own")
    of_the_same_vm = example_point("forged", host=own.host, parent=own.id, minute=1)
    of_another = example_point("foreign", vm=WEB, vm_name="web")
    catalog.adopt([(of_the_same_vm, ()), (of_another, ())])
    assert not is_trusted(catalog, of_the_same_vm)
    assert not is_trusted(catalog, of_another)
    assert is_trusted(catalog, own)


def test_point_with_the_id_of_another_operation_is_not_trusted(catalog: Catalog) -> None:
    """Whoever reads the repository knows the ids of operations that failed; a point of such an id is forged."""
    failed, restore = example_point("failed"), example_point("restore", minute=1)
    catalog.begin_operation(failed.id, TAKE_POINT, "win11", "me", {})
    catalog.move_operation(failed.id, "me", OperationState.FAILED)
    catalog.begin_operation(restore.id, "restore.vm", "win11", "me", {})
    catalog.move_operation(restore.id, "me", OperationState.DONE)
    catalog.adopt([(failed, ()), (restore, ())])
    assert not is_trusted(catalog, failed)
    assert not is_trusted(catalog, restore)
