"""A VM taken back to one of libvirt's snapshots: choice, check, journal, and the revert itself."""
