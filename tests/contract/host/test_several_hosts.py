"""Several hosts beside each other: a step works on the one it names, and what was left over is asked of each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.contract.host import made_up
from tests.contract.host.made_up import Answer, begun
from vmkeep.catalog import MemoryCatalog, OperationState
from vmkeep.config import load_settings
from vmkeep.errors import InvalidRequest, VmBusy, VmNotFound
from vmkeep.flows import recovery
from vmkeep.flows.declared import TAKE_POINT
from vmkeep.flows.engine import Engine
from vmkeep.flows.installation import Premises
from vmkeep.flows.plan import Settled
from vmkeep.flows.recovery import Recovery
from vmkeep.flows.requests import TakePoint
from vmkeep.flows.services import Services, held_vm
from vmkeep.host import local
from vmkeep.host.local import LocalHost
from vmkeep.host.operation import Operation
from vmkeep.host.tasks.locks import WhoHoldsVm
from vmkeep.host.tasks.survey import FindVm
from vmkeep.host.tasks.unfinished import (
    ListUnfinished,
    RequireUnneeded,
    RescueGuests,
    RestoreSettled,
    Unfinished,
)
from vmkeep.planning.retention import KeepRule

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


class Leaving(LocalHost):
    """A host that has something left over."""

    def __init__(self, home: Path, left: str) -> None:
        super().__init__(load_settings(home=str(home), environ={}), lambda: None)  # type: ignore[arg-type, return-value]
        self.left = left

    def ask(self, task: Any) -> Any:
        match task:
            case RescueGuests():
                return (f"rescued a guest of {self.left}",)
            case ListUnfinished():
                return Unfinished((self.left,), ())
            case RequireUnneeded():
                return None
            case FindVm():
                raise VmNotFound(f"there is no VM {task.vm!r} beside what was {self.left}")
        return super().ask(task)


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Leaving]:
    rooms = local._desk

    def settle(task: Any, _operation: Operation) -> Any:
        return RestoreSettled(f"settled {task.operation}", VM, None)

    def desk(noun: str) -> Any:
        return {"made_up": made_up.carry_out, "unfinished": settle}.get(noun) or rooms(noun)

    monkeypatch.setattr(local, "_desk", desk)
    begun.clear()
    return {"one": Leaving(tmp_path / "one", "left at one"), "two": Leaving(tmp_path / "two", "left at two")}


@pytest.fixture
def services(hosts: dict[str, Leaving]) -> Services:
    repository: Callable[[], Any] = lambda: None  # noqa: E731
    return Services(
        hosts=hosts,
        at="one",
        catalog=MemoryCatalog(),
        repository=repository,
        stop=lambda: None,
        watch=lambda _: None,
        stalled_after_seconds=60,
        keep_state_versions=KeepRule,
    )


def test_step_works_on_the_host_that_it_names_and_on_no_other(services: Services, hosts: dict[str, Leaving]) -> None:
    two = services.on("two")
    assert two.on_host("operation", Answer("yes")) == "yes"
    with held_vm(two.host, VM, "win11", "a step"):
        assert hosts["two"].ask(WhoHoldsVm(VM)) is not None
        assert hosts["one"].ask(WhoHoldsVm(VM)) is None
        with held_vm(services.host, VM, "win11", "a step on the other"):
            pass
        with pytest.raises(VmBusy), held_vm(two.host, VM, "win11", "another", wait=False):
            pass
    assert (services.host, two.host) == (hosts["one"], hosts["two"])
    assert hosts["two"].poll("operation").result == "yes"
    with pytest.raises(KeyError):
        hosts["one"].poll("operation")  # it was never asked


def test_host_that_is_not_known_is_refused_by_name(services: Services) -> None:
    with pytest.raises(InvalidRequest, match="three"):
        services.on("three")


def test_what_was_left_over_is_settled_on_the_host_that_has_it(
    services: Services, hosts: dict[str, Leaving], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        recovery, "DBOS", SimpleNamespace(get_workflow_status=lambda _: None, list_workflows=lambda **_: [])
    )
    settings = load_settings(home=str(tmp_path), environ={})
    settling = Recovery(settings, "me", {}, lambda: services)
    assert settling.recover() == (
        *("rescued a guest of left at one", "rescued a guest of left at two"),
        *("settled left at one", "settled left at two"),
    )
    for name, host in hosts.items():
        assert host.poll(f"left at {name}").result == RestoreSettled(f"settled left at {name}", VM, None)


def test_flow_works_on_the_host_that_its_request_names(hosts: dict[str, Leaving], tmp_path: Path) -> None:
    settings = load_settings(home=str(tmp_path / "home"), environ={})
    with Premises(settings) as premises:
        premises.ensure()
        with Engine(premises, {"this": hosts["one"], **hosts}) as engine:
            with pytest.raises(VmNotFound, match="left at two"):
                engine.take_point(TakePoint("win11", host="two"), lambda _: None)
            with pytest.raises(VmNotFound, match="left at one"):
                engine.take_point(TakePoint("win11"), lambda _: None)
            with pytest.raises(InvalidRequest, match="three"):
                engine.take_point(TakePoint("win11", host="three"), lambda _: None)
        recorded = premises.catalog.operations()
    assert {str(operation.request["host"]) for operation in recorded} == {"this", "two", "three"}
    assert {operation.state for operation in recorded} == {OperationState.FAILED}


def test_flow_of_a_dead_process_is_settled_on_its_host(
    services: Services, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services.catalog.begin_operation("killed", TAKE_POINT, "win11", "dead", {"vm": "win11", "host": "two"})
    dead = [
        SimpleNamespace(workflow_id=each, name=TAKE_POINT, executor_id="dead") for each in ("killed", "of no record")
    ]
    ended: list[str] = []
    dbos = SimpleNamespace(
        get_workflow_status=lambda _: None, list_workflows=lambda **_: dead, cancel_workflow=ended.append
    )
    monkeypatch.setattr(recovery, "DBOS", dbos)
    settled: list[tuple[str, str]] = []

    def settle(services: Services, operation: str) -> Settled:
        settled.append((services.at, operation))
        return Settled(f"settled {operation}", whole=True)

    monkeypatch.setattr(recovery, "declared_flow", lambda _: SimpleNamespace(settle=settle))
    settings = load_settings(home=str(tmp_path), environ={})
    settings.owners_dir.mkdir(parents=True)
    told = Recovery(settings, "me", {}, lambda: services).recover()
    assert settled == [("two", "killed"), ("one", "of no record")]
    assert ended == ["killed", "of no record"]
    assert services.catalog.operation("killed").state is OperationState.DONE
    assert "settled killed" in told
