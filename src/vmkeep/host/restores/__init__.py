"""Restores: to files, as a VM, and over the VM itself."""
