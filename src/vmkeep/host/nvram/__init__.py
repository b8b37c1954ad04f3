"""The UEFI variables of VMs: told in words, made anew of their template, changed, and put in place."""
