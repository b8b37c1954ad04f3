"""Whether a VM's definition fits a host, and what must change: pure decisions about plain values."""

from __future__ import annotations

from vmkeep.fitting.capabilities import (
    DomainCapabilities,
    Guests,
    firmware_files,
    read_domain_capabilities,
    read_firmware,
    read_guests,
    template_of,
)
from vmkeep.fitting.firmware import has_secure_name
from vmkeep.fitting.fitting import fit
from vmkeep.fitting.hostparts import (
    MOST_PARTS,
    HostOwn,
    HostPart,
    Reaching,
    as_part,
    host_parts,
    reaching,
    strip_host_parts,
)
from vmkeep.fitting.machines import candidates, known_machine, usable_machine
from vmkeep.fitting.model import (
    CpuModel,
    FirmwareBuild,
    Fit,
    HostAbilities,
    MachineType,
    Misfit,
    StoredVariables,
    Wish,
)
from vmkeep.fitting.vocabulary import Vocabulary

__all__ = [
    "MOST_PARTS",
    "CpuModel",
    "DomainCapabilities",
    "FirmwareBuild",
    "Fit",
    "Guests",
    "HostAbilities",
    "HostOwn",
    "HostPart",
    "MachineType",
    "Misfit",
    "Reaching",
    "StoredVariables",
    "Vocabulary",
    "Wish",
    "as_part",
    "candidates",
    "firmware_files",
    "fit",
    "has_secure_name",
    "host_parts",
    "known_machine",
    "reaching",
    "read_domain_capabilities",
    "read_firmware",
    "read_guests",
    "strip_host_parts",
    "template_of",
    "usable_machine",
]
