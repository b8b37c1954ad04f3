"""What a host is asked to do, and what it answers: plain values, one module a noun."""
