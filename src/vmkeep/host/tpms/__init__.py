"""The TPMs of VMs: taken out of a definition and put in, with their state and the secret that opens it."""
