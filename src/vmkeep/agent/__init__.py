"""What runs on a host of a fleet: it dials its server, and nothing dials it."""
