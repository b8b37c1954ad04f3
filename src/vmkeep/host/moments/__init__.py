"""Libvirt's checkpoints and snapshots changed: created, deleted, edited, and defined again."""
