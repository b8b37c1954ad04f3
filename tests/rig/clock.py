"""A clock that is wrong for one process and those it starts, by libfaketime. Monotonic time is left alone."""

from __future__ import annotations

from pathlib import Path

from tests.rig.errors import RigError

# Where Python finds a sleep that libfaketime does not end with EINVAL, as 0.9.10 does with its own now and then.
_SLEEPING = Path(__file__).with_name("sleeping")


def clock_off_by(seconds: int) -> dict[str, str]:
    """Return the environment in which the clock is ahead by so many seconds.

    Not behind: with a negative offset libfaketime 0.9.10 lets other waits by monotonic time fail as well (EINVAL).
    """
    assert seconds >= 0
    return {**another_clock(), "FAKETIME": f"+{seconds}s"}


def another_clock() -> dict[str, str]:
    """Return the environment in which libfaketime tells the time of day, but for how far that is off."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise RigError("there is no libfaketime here (make setup)")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "PYTHONPATH": str(_SLEEPING),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # the times of files are what they are
    }
