"""Every flow is found by its stable name, and what is stored of one is read in a process that has not loaded it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vmkeep.flows
from vmkeep.flows.declared import DECLARED, declared_flow
from vmkeep.flows.plan import AfterCrash
from vmkeep.flows.requests import FilesRestored
from vmkeep.flows.values import FlowSerializer, codec
from vmkeep.host.tasks.snapshots import CloseSnapshot


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_flow_is_found_by_its_name(name: str) -> None:
    found = declared_flow(name)
    assert found.name == name
    assert (found.settle is not None) is (found.after_crash is AfterCrash.UNDO)


def test_every_module_that_declares_a_flow_is_named() -> None:
    folder = Path(vmkeep.flows.__path__[0])
    declaring = {path.stem for path in folder.glob("*.py") if "\n@flow(" in path.read_text("utf-8")}
    assert declaring == set(DECLARED.values())


def test_name_of_no_flow_is_refused() -> None:
    with pytest.raises(KeyError):
        declared_flow("nothing")


def test_value_of_a_flow_that_was_not_loaded_is_read_and_one_of_no_class_of_flows_is_not() -> None:
    written = FlowSerializer().serialize((FilesRestored("p", "o", ("f",), 3), CloseSnapshot("s")))
    probe = (
        "import sys; from vmkeep.flows.values import FlowSerializer\n"
        "assert 'vmkeep.host.tasks.snapshots' not in sys.modules\n"
        f"print(FlowSerializer().deserialize({written!r}))"
    )
    told = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.strip() == repr((FilesRestored("p", "o", ("f",), 3), CloseSnapshot("s")))
    with pytest.raises(KeyError):
        FlowSerializer().deserialize(json.dumps({"$value": "Nothing", "fields": {}}))


def test_all_that_may_be_in_a_flow_has_one_name_each() -> None:
    assert codec().decode(json.loads(FlowSerializer().serialize(CloseSnapshot("s")))) == CloseSnapshot("s")
