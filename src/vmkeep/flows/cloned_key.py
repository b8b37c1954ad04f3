"""A key of its own for a TPM that was copied: until then its state is encrypted with the value of the original's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from vmkeep.custody.identity import told_of_one_value
from vmkeep.errors import Interrupted, VmkeepError
from vmkeep.flows.clone_requests import TpmCloned, VmCloned
from vmkeep.flows.requests import TpmRenewed

C = TypeVar("C", TpmCloned, VmCloned)


def with_own_key(cloned: C, rekey: Callable[[str], TpmRenewed]) -> C:
    """Encrypt the state of a copied TPM anew (``rekey``, by the VM's UUID), and return what is told of the clone then.

    The clone is made: what keeps its TPM from a key of its own is a warning, beside that of the one that it shares.
    """
    shared = told_of_one_value(cloned.secret, cloned.name)
    try:
        renewed = rekey(cloned.uuid)
    except Interrupted:
        raise
    except VmkeepError as error:
        told = f"The TPM of VM {cloned.name!r} was given no key of its own: {error.message}"
        return replace(cloned, warnings=(*cloned.warnings, told))
    warnings = tuple(each for each in cloned.warnings if each != shared)
    return replace(cloned, secret=renewed.secret, warnings=warnings)
