"""How long the watch waits: never without an end of it, and never not at all when there is nothing to do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vmkeep.catalog import MemoryCatalog
from vmkeep.errors import StateTorn
from vmkeep.flows import watch_states
from vmkeep.flows.watch_states import StateWatch
from vmkeep.host.tasks.states import AwaitStates, SeenState

VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"


class _Host:
    """A host that tells at once what state files it has, and notes for how long it was to wait."""

    def __init__(self) -> None:
        self.files: tuple[SeenState, ...] = ()
        self.waits: list[float] = []

    def ask(self, task: Any) -> Any:
        assert isinstance(task, AwaitStates)
        self.waits.append(task.seconds)
        return self.files


def _premises() -> Any:
    return SimpleNamespace(catalog=MemoryCatalog())


def _look(watch: StateWatch, host: _Host) -> list[str]:
    return [uuid for uuid, _ in watch.look(host, 60.0).failed]  # type: ignore[arg-type]


def test_host_without_state_files_is_not_asked_again_and_again() -> None:
    watch, host = StateWatch(_premises()), _Host()
    for _ in range(3):
        _look(watch, host)
    assert host.waits == [60.0, 60.0, 60.0]


def test_vm_that_failed_is_tried_again_after_a_while_and_is_forgotten_when_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_of: object, **_how: object) -> None:
        raise StateTorn("the tpm state is torn", vm="win11")

    now = 1000.0
    monkeypatch.setattr(watch_states, "capture_states", fail)
    monkeypatch.setattr("vmkeep.flows.watch_states.time.monotonic", lambda: now)
    watch, host = StateWatch(_premises()), _Host()
    host.files = (SeenState(VM, "tpm", "1"),)
    assert _look(watch, host) == [VM]
    now += 20.0
    assert _look(watch, host) == []  # told once
    assert host.waits[-1] == 40.0

    host.files = ()
    now += 50.0
    _look(watch, host)
    _look(watch, host)
    assert host.waits[-1] == 60.0
