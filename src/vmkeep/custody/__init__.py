"""The state files of VMs, their TPM and UEFI variables: versions, and which of them go together. No I/O."""
