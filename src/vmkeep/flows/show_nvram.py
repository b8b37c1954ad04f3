"""What a VM's UEFI variables say: those on the host, or those of a version or a point. Nothing is changed."""

from __future__ import annotations

from collections.abc import Callable

from vmkeep.catalog import Catalog, CatalogPoint
from vmkeep.commandline import command_line
from vmkeep.custody.nvram import NvramTold, tell_of_nvram
from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import InvalidRequest
from vmkeep.flows.vm_states import chosen_of, require_point_of, versions_asked_for
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.nvram import LookAtNvram, NvramFound
from vmkeep.host.tasks.survey import FindVm
from vmkeep.repository import Repository
from vmkeep.repository.chosen import read_chosen
from vmkeep.values import dataclass


@dataclass(frozen=True, slots=True)
class NvramShown:
    """The variables of a VM. ``version`` is the number of kept ones, ``point`` the one that has them.

    ``running`` and ``path`` are of the host; None and empty for what is kept. ``told`` is None where there are none,
    and ``problem`` says why.
    """

    vm: str
    vm_uuid: str
    sha256: str
    size_bytes: int
    told: NvramTold | None
    problem: str = ""
    path: str = ""
    running: bool | None = None
    version: int | None = None
    point: str | None = None


def nvram_on_host(host: Host, vm: str) -> NvramShown:
    """Return what lies on the host, of a VM that is given by name or UUID. Raises VmNotFound."""
    (found,) = host.ask(LookAtNvram(host.ask(FindVm(vm))))
    return _shown(found)


def nvram_of_all(host: Host) -> tuple[NvramShown, ...]:
    """Return the variables of all VMs of the host that have any, by name."""
    return tuple(_shown(found) for found in host.ask(LookAtNvram()))


def nvram_of_version(catalog: Catalog, repository: Callable[[], Repository], vm: str, version: str) -> NvramShown:
    """Return what a kept version says. Raises as ``versions_asked_for``, and what reading it raises."""
    (kept,) = versions_asked_for(catalog, vm, "nvram", version)
    row = kept.version
    _, content = read_chosen(repository(), row.vm_uuid, chosen_of(row))
    known = catalog.vm(row.vm_uuid)
    name = vm if known is None else known.name
    told = tell_of_nvram(content)
    return NvramShown(name, row.vm_uuid, row.sha256, len(content), told, version=row.generation)


def nvram_of_point(catalog: Catalog, repository: Callable[[], Repository], vm: str, point: CatalogPoint) -> NvramShown:
    """Return what a point of the VM says. Raises InvalidRequest for one of another VM, or without such variables."""
    require_point_of(catalog, point, vm)
    state = next((each for each in point.document.get("states", ()) if each["kind"] == "nvram"), None)
    if state is None:
        raise InvalidRequest(
            f"point {point.id} of VM {point.vm_name!r} holds no UEFI variables",
            vm=point.vm_name,
            hint=f"`{command_line('vmkeep points', point.vm_name)}` lists the VM's points.",
        )
    chosen = ChosenVersion("nvram", str(state["version_id"]), str(state["sha256"]))
    _, content = read_chosen(repository(), point.vm_uuid, chosen)
    told = tell_of_nvram(content)
    return NvramShown(point.vm_name, point.vm_uuid, chosen.sha256, len(content), told, point=point.id)


def _shown(found: NvramFound) -> NvramShown:
    return NvramShown(
        found.vm_name,
        found.vm_uuid,
        found.sha256,
        found.size_bytes,
        found.told,
        found.problem or ("" if found.path else "the VM has no UEFI variables"),
        found.path,
        found.running,
    )
