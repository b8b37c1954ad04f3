"""What is asked of a host and of its VMs, answered. Nothing is changed."""

from __future__ import annotations

from typing import Any

from vmkeep.host.operation import Operation
from vmkeep.host.tasks.survey import (
    FindVm,
    HostIdentity,
    Identify,
    ListedVm,
    ListVms,
    LookAtStates,
    LookAtVm,
    LookAtVms,
    RequireRights,
)
from vmkeep.host.tasks.task import Task


def carry_out(task: Task[Any], operation: Operation) -> Any:
    """Return the answer to a task."""
    hypervisor, settings = operation.connected(), operation.settings
    match task:
        case Identify():
            return HostIdentity(*hypervisor.identity())
        case FindVm():
            return hypervisor.domain(task.vm).uuid
        case ListVms():
            listed = (ListedVm(each.name, each.uuid, str(each.state().run)) for each in hypervisor.domains())
            return tuple(sorted(listed, key=lambda vm: vm.name))
        case LookAtVms():
            from vmkeep.host.vm.survey import survey

            return tuple(survey(domain, hypervisor, settings) for domain in hypervisor.domains())
        case LookAtVm():
            from vmkeep.host.vm.survey import survey

            return survey(hypervisor.domain(task.vm), hypervisor, settings)
        case LookAtStates():
            from vmkeep.host.vm.found_states import look_at_states

            return look_at_states(hypervisor, task.vms)
        case RequireRights():
            from vmkeep.host.vm.rights import refuse_without_rights

            return refuse_without_rights(hypervisor.domain(task.vm), hypervisor, settings)
    raise AssertionError(f"not a task of a survey: {task}")
