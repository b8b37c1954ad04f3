"""An undo that fails: the operation waits for a person, is told, blocks what would build upon it, and is taken up.

The real engine, flows, catalogue and repository; the host with the VM is made up (tests/property/flows/tpm_twin.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.command_line import Answer, vmkeep
from tests.property.flows.tpm_twin import NAME, VM, TpmTwin, Truth, element_with, full
from vmkeep.catalog import OperationState
from vmkeep.config import load_settings
from vmkeep.errors import Cancelled, NeedsOperator
from vmkeep.flows.engine import Engine
from vmkeep.flows.installation import Premises
from vmkeep.flows.requests import THIS_HOST, AddTpm, RemoveTpm, RestoreInPlace
from vmkeep.host.tasks.survey import Progress
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.tpms import InstallTpmState, LetTpmGo, TakeTpmOut

CONTENT = b"\x01" * 600


class Bed:
    """A home, and the host with the VM, whose tasks of the kinds ``broken`` fail before they do anything."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = load_settings(home=str(home), environ={})
        self.premises = Premises(self.settings)
        self.premises.ensure()
        self.host = TpmTwin(lambda: self.premises.repository, Truth(element_with(""), CONTENT))
        self.host.fault = self._fault
        self.broken: tuple[type[Task[Any]], ...] = ()

    def _fault(self, task: Task[Any], when: str) -> None:
        if when == "before" and isinstance(task, self.broken):
            raise full(task)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        with Engine(self.premises, {THIS_HOST: self.host}) as engine:
            yield engine

    def fail(self) -> str:
        """Let a removal fail that cannot be undone, as the process of its own that a command is; return its id."""
        self.broken = (LetTpmGo, InstallTpmState)
        with self.engine() as engine, pytest.raises(NeedsOperator):
            engine.remove_tpm(RemoveTpm(NAME), _unwatched)
        return self.premises.catalog.operations()[0].id

    def command(self, *words: str) -> Answer:
        return vmkeep(self.home, *words)

    def shown(self, *words: str) -> Any:
        return self.command("ops", *words, "--json").document()


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path / "home")
    yield made
    made.premises.close()


def _unwatched(_progress: Progress) -> None:
    return


def test_undos_stop_at_the_one_that_fails_and_no_device_is_left_without_its_state(bed: Bed) -> None:
    operation = bed.fail()
    assert (bed.host.truth.element, bed.host.truth.content) == ("", None)
    recorded = bed.premises.catalog.operation(operation)
    assert (recorded.state, recorded.finished) == (OperationState.NEEDS_OPERATOR, None)
    error = recorded.error
    assert error is not None
    assert error["code"] == "needs-operator"
    assert "no room for LetTpmGo" in error["message"]
    assert "no room for InstallTpmState" in error["message"]
    assert error["path"] == "/var/lib/libvirt"
    assert error["left"] == ["look_at_remains", "keep_state", "examine"]
    assert f"`vmkeep ops resume {operation}`" in error["hint"]


def test_it_is_left_alone_by_other_commands_and_blocks_what_changes_the_same_vm(bed: Bed) -> None:
    operation = bed.fail()
    done = len(bed.host.done)
    with bed.engine() as engine:
        assert engine.recovered == ()
        for vm in (NAME, VM):
            with pytest.raises(NeedsOperator, match=operation) as raised:
                engine.add_tpm(AddTpm(vm, VM, "tpm-crb"), _unwatched)
            assert f"`vmkeep ops show {operation}`" in str(raised.value.hint)
        with pytest.raises(NeedsOperator):
            engine.take_safety_point(RestoreInPlace("p", NAME, vm_uuid=VM), _unwatched)
        with pytest.raises(NeedsOperator):
            engine.remove_tpm(RemoveTpm(NAME), _unwatched)
        assert len(bed.host.done) == done
        bed.broken = ()
        other = AddTpm("web", "6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10", "tpm-crb")
        assert engine.add_tpm(other, _unwatched).model == "tpm-crb"


def test_it_is_taken_up_when_a_person_says_so_and_ends_undone(bed: Bed) -> None:
    operation = bed.fail()
    bed.broken = (InstallTpmState,)
    with bed.engine() as engine, pytest.raises(NeedsOperator, match="InstallTpmState"):
        engine.resume(bed.premises.catalog.operation(operation), _unwatched)
    assert bed.premises.catalog.operation(operation).state is OperationState.NEEDS_OPERATOR
    bed.broken = ()
    with bed.engine() as engine:
        told = engine.resume(bed.premises.catalog.operation(operation), _unwatched)
    assert "no room for LetTpmGo" in told
    assert bed.host.truth == Truth(element_with(""), CONTENT)
    ended = bed.premises.catalog.operation(operation)
    assert (ended.state, (ended.error or {})["code"]) == (OperationState.FAILED, "no-space")
    with bed.engine() as engine:
        assert engine.remove_tpm(RemoveTpm(NAME), _unwatched).kept == 1


def test_doctor_tells_it_and_its_steps_are_shown_with_what_is_to_be_done(bed: Bed) -> None:
    operation = bed.fail()
    bed.premises.close()
    (listed,) = bed.shown("list")["operations"]
    assert (listed["id"], listed["state"], listed["process"], listed["next"]) == (
        operation,
        "needs-operator",
        None,
        None,
    )
    shown = bed.shown("show", operation[:8])["operation"]
    steps = [(step["name"], step["undo"], step["result"]) for step in shown["steps"]]
    assert steps[0] == ("examine", False, "done")
    assert steps[-1] == ("judge_secret", True, "done")
    assert ("let_go", False, "failed") in steps
    failed = next(step for step in shown["steps"] if step["result"] == "failed")
    assert failed["error"]["code"] == "no-space"
    assert failed["started"] <= failed["ended"]
    text = bed.command("ops", "show", operation).out
    assert "not undone: look_at_remains, keep_state, examine" in text
    assert f"`vmkeep ops cancel {operation}`" in text
    found = bed.command("--json", "doctor", "-c", "test:///default").document()["doctor"]["findings"]
    (finding,) = [each for each in found if each["code"] == "operation-needs-operator"]
    assert (finding["vm"], finding["remedy"]) == (NAME, f"vmkeep ops show {operation}")
    assert [each["state"] for each in bed.command("log", "--json").document()["operations"]] == ["needs-operator"]


def test_record_is_ended_when_a_person_did_the_rest(bed: Bed) -> None:
    operation = bed.fail()
    bed.premises.close()
    assert bed.command("ops", "cancel", operation, "--json").error()["code"] == "invalid-request"  # nobody was asked
    ended = bed.shown("cancel", operation, "--yes")["operation"]
    assert (ended["state"], ended["error"]["code"]) == ("failed", "needs-operator")
    assert bed.shown("list")["operations"] == []
    assert bed.command("ops", "resume", operation, "--json").error()["code"] == "invalid-request"


def test_lost_record_of_its_steps_is_said_and_the_operation_can_be_ended(bed: Bed) -> None:
    operation = bed.fail()
    for path in bed.home.glob("flows.sqlite*"):
        path.unlink()
    with bed.engine() as engine, pytest.raises(NeedsOperator, match="knows nothing"):
        engine.resume(bed.premises.catalog.operation(operation), _unwatched)
    with bed.engine() as engine:
        engine.dismiss(bed.premises.catalog.operation(operation))
    assert bed.premises.catalog.operation(operation).state is OperationState.FAILED


def test_stop_of_another_process_reaches_a_step_and_all_is_undone(bed: Bed) -> None:
    """The other process is the command: it asks as soon as the device is out."""
    asked: list[Answer] = []

    def stop(task: Task[Any], when: str) -> None:
        if isinstance(task, TakeTpmOut) and when == "after" and not asked:
            operation = bed.premises.catalog.operations()[0]
            assert bed.shown("list")["operations"][0]["state"] == "running"
            asked.append(bed.command("ops", "cancel", operation.id, "--yes", "--wait", "0", "--json"))
            time.sleep(1.1)

    bed.host.fault = stop
    with bed.engine() as engine, pytest.raises(Cancelled):
        engine.remove_tpm(RemoveTpm(NAME), _unwatched)
    assert asked[0].error()["code"] == "operation-runs"
    assert bed.host.truth == Truth(element_with(""), CONTENT)
    shown = bed.shown("list", "--all")["operations"][0]
    assert (shown["state"], shown["error"]["code"], shown["cancel"]) == ("failed", "cancelled", True)
