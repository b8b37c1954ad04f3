"""`make demo`: a VM backed up, lost and brought back on a private libvirt host, with proof that every byte is equal."""
