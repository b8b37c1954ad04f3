"""vmkeep keeps the whole state of KVM virtual machines as a tree of points that can be returned to."""

__version__ = "0.1.0"
