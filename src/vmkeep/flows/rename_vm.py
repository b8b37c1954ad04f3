"""Give a VM that is off another name, on its host and in the catalogue."""

from __future__ import annotations

from vmkeep.flows.clone_requests import RenameVm, VmRenamed
from vmkeep.flows.gate import renew_gate
from vmkeep.flows.plan import AfterCrash, Plan, flow
from vmkeep.host.tasks.clones import GiveVmName, LetRenamedGo, LookForRename, RenameLooked
from vmkeep.host.tasks.survey import Identify


@flow("vm.rename", after_crash=AfterCrash.FINISH)
def rename_vm(plan: Plan, request: RenameVm) -> VmRenamed:
    """Rename the VM; when a part fails it has its name again. See docs/internals/flows.md."""
    looked = plan.step(look, plan, request, undo=lambda _: let_go(plan))
    # The undo stands before what it undoes: that may fail when its work is done.
    plan.step(begin, undo=lambda _: give_name(plan, looked, back=True))
    plan.step(rename, plan, looked)
    plan.step(note, plan, looked)
    plan.step(let_go, plan, heeds_stop=False)
    return VmRenamed(before=looked.before, name=looked.after, uuid=looked.uuid, warnings=looked.warnings)


def look(plan: Plan, request: RenameVm) -> RenameLooked:
    """Hold the VM, and note what depends on its name. When this raises, it is not held."""
    return plan.services.on_host(plan.operation, LookForRename(plan.operation, request.vm, request.name))


def begin() -> None:
    """From here on the VM may have the other name."""


def rename(plan: Plan, looked: RenameLooked) -> None:
    """Give it the other name."""
    give_name(plan, looked, back=False)


def give_name(plan: Plan, looked: RenameLooked, *, back: bool) -> None:
    """Give it the one name or the other."""
    plan.services.on_host(plan.operation, GiveVmName(plan.operation, looked, back=back))


def note(plan: Plan, looked: RenameLooked) -> None:
    """Let catalogue and gate know the name. Points and versions are the VM's by its UUID."""
    services = plan.services
    if services.catalog.vm(looked.uuid) is None:
        return  # nothing of it is kept, so nothing is known by its name
    host = services.host.ask(Identify())
    services.catalog.see_host(host.uuid, host.name)
    services.catalog.see_vm(looked.uuid, looked.after, host.uuid)
    renew_gate(services, looked.uuid)


def let_go(plan: Plan) -> None:
    """Let go of the VM."""
    plan.services.on_host(plan.operation, LetRenamedGo(plan.operation))
