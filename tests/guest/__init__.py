"""A small Linux guest for tests that must be judged by the guest itself, built of Debian's packages."""

from tests.guest.guest import Answer, LinuxGuest

__all__ = ["Answer", "LinuxGuest"]
