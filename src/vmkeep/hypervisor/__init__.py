"""libvirt, and only libvirt: connections, domains, checkpoints, backup jobs, secrets. Errors are translated once."""

from vmkeep.hypervisor.connection import Hypervisor
from vmkeep.hypervisor.domain import Domain, DomainState, RunState
from vmkeep.hypervisor.moments import DomainMoments, snapshots_of
from vmkeep.hypervisor.secrets import Secret, Withheld, secret_xml
from vmkeep.hypervisor.snapshots import DomainSnapshots

__all__ = [
    "Domain",
    "DomainMoments",
    "DomainSnapshots",
    "DomainState",
    "Hypervisor",
    "RunState",
    "Secret",
    "Withheld",
    "secret_xml",
    "snapshots_of",
]
