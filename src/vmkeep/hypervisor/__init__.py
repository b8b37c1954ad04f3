"""libvirt, and only libvirt: connections, domains, checkpoints, backup jobs, secrets. Errors are translated once."""

from vmkeep.hypervisor.connection import Hypervisor
from vmkeep.hypervisor.domain import Domain, DomainState, RunState
from vmkeep.hypervisor.moments import DomainMoments
from vmkeep.hypervisor.reversion import Reversion
from vmkeep.hypervisor.secrets import Secret, Withheld, secret_xml
from vmkeep.hypervisor.snapshots import DomainSnapshots

__all__ = [
    "Domain",
    "DomainMoments",
    "DomainSnapshots",
    "DomainState",
    "Hypervisor",
    "Reversion",
    "RunState",
    "Secret",
    "Withheld",
    "secret_xml",
]
