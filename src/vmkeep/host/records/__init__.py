"""What lies on a host until an operation has ended: locks, sockets, and what recovery needs to know."""
