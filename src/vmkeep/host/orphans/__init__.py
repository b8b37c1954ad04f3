"""The state files of VMs, captured by themselves: without their disks, and outside of any moment."""
