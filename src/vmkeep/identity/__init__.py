"""Who a host of a fleet is: the server's authority, certificates, invites, and the states of both. No I/O."""
