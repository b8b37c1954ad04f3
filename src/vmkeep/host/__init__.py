"""A machine that runs VMs, as flows see it: the Host protocol, the machine at hand, and the guardian."""
