"""The one error of the rig: the test bed itself failed, not what is being tested."""

from __future__ import annotations


class RigError(Exception):
    """The rig could not do what a test asked of it."""
