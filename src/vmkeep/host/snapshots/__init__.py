"""Libvirt's snapshots: planned, made, and the health of those that are there."""
