"""The configurations that users of libvirt have, a row each, and what vmkeep promises for each.

A row (``row.Row``) is a value: what the VM is made of, and the promise. ``playing.play`` plays it whole: points of the
running VM and of the stopped one, full and incremental, restores in all three ways, a snapshot and the way back, and
compares each with what was written. ``document`` makes docs/guide/configurations.md of the same rows.

A new feature adds its row, or changes the promise of one.
"""
