"""What it means that two VMs have one TPM, in words."""

from __future__ import annotations

from vmkeep.commandline import command_line


def told_of_one_identity(clone: str, original: str) -> str:
    """Return what a person must know of a TPM whose state was copied.

    What is sealed hangs on the storage key, and who the TPM is on the endorsement key: both are made of seeds in the
    state (TPM 2.0 Library, part 1, on hierarchies).
    """
    return (
        f"VM {clone!r} has a copy of the TPM of VM {original!r}: what is sealed to one opens in both, also without a "
        "recovery key, and who asks a TPM who it is cannot tell them apart (endorsement key, storage key)."
    )


def told_of_one_value(secret: str, clone: str) -> str:
    """Return what a person must know of the secret of such a TPM, whose state is encrypted."""
    return (
        f"Its TPM has libvirt's secret {secret} for itself, with the value of the original's: the state is encrypted "
        f"with that, and was not encrypted anew. `{command_line('vmkeep tpm rekey', clone)}` gives it one of its own."
    )
