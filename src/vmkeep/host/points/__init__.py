"""A point of a VM: what is examined before it, its instant, its disks exposed, and their copy."""
