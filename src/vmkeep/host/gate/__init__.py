"""The gate: a hook of libvirt's that lets no VM start with TPM state or UEFI variables lost or of an older version."""
