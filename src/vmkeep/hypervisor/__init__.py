"""libvirt, and only libvirt: connections, domains, checkpoints, backup jobs, secrets. Errors are translated once."""

from vmkeep.hypervisor.connection import Hypervisor
from vmkeep.hypervisor.domain import Domain, DomainState, RunState
from vmkeep.hypervisor.reversion import Reversion
from vmkeep.hypervisor.secrets import Secret, Withheld, secret_xml

__all__ = ["Domain", "DomainState", "Hypervisor", "Reversion", "RunState", "Secret", "Withheld", "secret_xml"]
