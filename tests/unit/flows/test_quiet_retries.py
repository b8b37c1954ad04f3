"""What was left is tried by commands that do other work: a host that hangs costs one wait, and no other its turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from tests.unit.custody.graves import grave
from vmkeep.catalog import MemoryCatalog
from vmkeep.errors import GivenUp, StoreError, VmkeepError
from vmkeep.flows.services import Services
from vmkeep.flows.tombstones import retry_quietly
from vmkeep.host.protocol import TaskState
from vmkeep.host.tasks.survey import HostIdentity, Identify
from vmkeep.host.tasks.tpms import LeftTpmStateDeleted
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import Repository


@dataclass
class _Host:
    """One of the tasks of which never end, if it hangs. ``tried`` counts those that were begun."""

    uuid: str
    hangs: bool = False
    tried: list[str] = field(default_factory=list)

    def ask(self, task: Any) -> Any:
        return HostIdentity(self.uuid, self.uuid) if isinstance(task, Identify) else None

    def start(self, operation: str, task: Any) -> None:  # noqa: ARG002
        self.tried.append(operation)
        if self.hangs:
            raise GivenUp(StoreError(f"{self.uuid} gives no answer"))

    def poll(self, operation: str, wait_seconds: float = 0.0) -> TaskState:  # noqa: ARG002  it has ended already
        return TaskState(ended=True, result=LeftTpmStateDeleted(removed=("/gone",)))

    def cancel(self, operation: str, reason: VmkeepError) -> None:
        raise AssertionError((operation, reason))

    def release_guest(self, operation: str) -> None:
        raise AssertionError(operation)


def _none() -> Repository:
    raise StoreError("the storage is away")


def test_host_that_hangs_costs_one_wait_and_the_others_have_their_turn_with_the_next_commands() -> None:
    hosts = [_Host(str(UUID(int=number)), hangs=number in (0, 3)) for number in range(6)]
    catalog = MemoryCatalog()
    catalog.add_tombstones([grave(id=f"{number:032x}", host_uuid=host.uuid) for number, host in enumerate(hosts)])
    services = Services(
        hosts={host.uuid: host for host in hosts},
        at=hosts[0].uuid,
        catalog=catalog,
        repository=_none,
        stop=lambda: None,
        watch=lambda _progress: None,
        stalled_after_seconds=60,
        keep_state_versions=lambda: KeepRule(last=1),
    )
    tried = []
    for _ in range(3):
        retry_quietly(services)
        tried.append([len(host.tried) for host in hosts])
    assert tried == [[1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    left = {each.host_uuid: each.last_error for each in catalog.open_tombstones()}
    assert left == {host.uuid: f"{host.uuid} gives no answer" for host in hosts if host.hangs}
