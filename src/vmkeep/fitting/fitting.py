"""A definition from another host, held against what this one can do, and made to fit it."""

from __future__ import annotations

from vmkeep.definition.reading import read_domain
from vmkeep.fitting.devices import fit_cpu, fit_emulator, fit_kind, fit_tpm
from vmkeep.fitting.draft import Draft
from vmkeep.fitting.firmware import fit_firmware
from vmkeep.fitting.machines import fit_machine
from vmkeep.fitting.model import Fit, HostAbilities, StoredVariables, Wish
from vmkeep.fitting.refusals import Trial, hear_refusals
from vmkeep.fitting.unknown import fit_unknown


def fit(
    xml: str, host: HostAbilities, wish: Wish, *, variables: StoredVariables | None = None, trial: Trial | None = None
) -> Fit:
    """Return all that does not fit, and the definition with it out of the way.

    ``variables`` are those that the VM gets. ``trial`` asks libvirt itself. Raises DefinitionError for XML that is no
    domain. A definition that fits comes back as it was, byte for byte.
    """
    draft = Draft(read_domain(xml), host, wish, variables)
    if fit_kind(draft):
        fit_machine(draft)
        fit_emulator(draft)
        fit_firmware(draft)
        fit_unknown(draft)
        fit_cpu(draft)
        fit_tpm(draft)
        if trial is not None:
            hear_refusals(draft, trial)
    return Fit(definition=draft.text if draft.misfits else xml, misfits=tuple(draft.misfits))
