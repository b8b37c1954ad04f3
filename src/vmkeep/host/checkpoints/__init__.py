"""Bitmaps and checkpoints of a VM: found, changed, bound again, and their health."""
