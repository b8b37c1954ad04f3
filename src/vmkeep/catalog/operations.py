"""Operations: one request and its record. An enum, one table of allowed transitions, compare-and-set in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import StrEnum
from typing import Any

from vmkeep.values import dataclass


class OperationState(StrEnum):
    """Where an operation stands. FAILED means failed and undone: nothing of it is left on the host.

    NEEDS_OPERATOR means that undoing it stopped, and that nobody tries again before a person says so.
    """

    QUEUED = "queued"
    RUNNING = "running"
    UNDOING = "undoing"
    NEEDS_OPERATOR = "needs-operator"
    DONE = "done"
    FAILED = "failed"


TRANSITIONS: Mapping[OperationState, frozenset[OperationState]] = {
    OperationState.QUEUED: frozenset({OperationState.RUNNING, OperationState.FAILED}),
    OperationState.RUNNING: frozenset(
        {OperationState.DONE, OperationState.UNDOING, OperationState.NEEDS_OPERATOR, OperationState.FAILED}
    ),
    OperationState.UNDOING: frozenset({OperationState.FAILED}),
    OperationState.NEEDS_OPERATOR: frozenset({OperationState.RUNNING, OperationState.FAILED}),
    OperationState.DONE: frozenset(),
    OperationState.FAILED: frozenset(),
}
"""From each state, the states that may follow."""

FINISHED = frozenset(state for state, following in TRANSITIONS.items() if not following)


def sources(target: OperationState) -> frozenset[OperationState]:
    """Return the states from which an operation may go to ``target``."""
    return frozenset(state for state, following in TRANSITIONS.items() if target in following)


@dataclass(frozen=True, slots=True)
class Operation:
    """One request and its record. ``owner`` is the executor id of the process that carries it out."""

    id: str
    kind: str
    vm: str | None
    owner: str
    state: OperationState
    started: str
    updated: str
    finished: str | None = None
    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    cancel: bool = False
    error: Mapping[str, Any] | None = None
    request: Mapping[str, Any] = field(default_factory=dict)
