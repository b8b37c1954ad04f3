"""libvirt, and only libvirt: connections, domains, checkpoints and backup jobs, with errors translated once."""

from vmkeep.hypervisor.connection import Hypervisor
from vmkeep.hypervisor.domain import Domain, DomainState, RunState

__all__ = ["Domain", "DomainState", "Hypervisor", "RunState"]
