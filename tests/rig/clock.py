"""A clock that is wrong for one process and those it starts, by libfaketime. Monotonic time is left alone."""

from __future__ import annotations

from pathlib import Path

from tests.rig.errors import RigError


def clock_off_by(seconds: int) -> dict[str, str]:
    """Return the environment in which the clock is ahead by so many seconds.

    Not behind: with a negative offset libfaketime 0.9.10 lets some sleeps by monotonic time fail (EINVAL).
    """
    assert seconds >= 0
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        raise RigError("there is no libfaketime here (make setup)")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": f"+{seconds}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # the times of files are what they are
    }
