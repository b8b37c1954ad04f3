"""How fast this process may move data: bytes and requests a second, to and from the repository's storage.

There is one limit for a process, whatever it does at once, as it is the line or the device that is to be spared. What a
guest's disks are read with is limited to as many bytes by itself, because reading and storing go on side by side.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Final

from vmkeep.threads import operation_here
from vmkeep.values import dataclass

RATE_FORMS: Final = "500kB/s, 50MB/s, 50MiB/s or 400Mbit/s"
REQUEST_FORMS: Final = "20/s"
LEAST_RATE: Final = 100_000
"""Bytes a second: at less, one pack takes minutes."""
_UNITS: Final = {
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "Mbit": 125_000,
    "Gbit": 125_000_000,
}
_RATE: Final = re.compile(rf"(\d{{1,6}})({'|'.join(_UNITS)})/s", re.ASCII)
_REQUESTS: Final = re.compile(r"(\d{1,6})/s", re.ASCII)
# What a sleep takes too long is made up for; it is no store for bursts.
_CREDIT_SECONDS: Final = 0.1
_LOOK_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and requests a second; None for no limit."""

    bytes_a_second: int | None = None
    requests_a_second: int | None = None

    @property
    def text(self) -> str:
        """Both as they are shown beside a progress; empty without a limit."""
        parts = []
        if self.bytes_a_second is not None:
            parts.append(f"{self.bytes_a_second / 10**6:g} MB/s")
        if self.requests_a_second is not None:
            parts.append(f"{self.requests_a_second} requests/s")
        return f"at most {', '.join(parts)}" if parts else ""


def rate_bytes(text: str) -> int | None:
    """Return the bytes a second that a text says; None for one that says none, or less than ``LEAST_RATE``."""
    found = _RATE.fullmatch(text.strip())
    rate = int(found[1]) * _UNITS[found[2]] if found else 0
    return rate if rate >= LEAST_RATE else None


def rate_requests(text: str) -> int | None:
    """Return the requests a second that a text says; None for one that says none."""
    found = _REQUESTS.fullmatch(text.strip())
    return (int(found[1]) or None) if found else None


class Rate:
    """A token bucket without a store: in any time, no more passes than the rate allows, and one piece. For threads."""

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        self._lock = threading.Lock()
        self._due = clock()

    def take(self, amount: int) -> float:
        """Count an amount, and return how many seconds it has to wait: until all before it could have passed.

        An amount that does not wait is paid for by those that come after it.
        """
        with self._lock:
            now = self._clock()
            begins = max(self._due, now - _CREDIT_SECONDS)
            self._due = begins + amount / self._per_second
            return max(0.0, begins - now)


class _Process:
    """The limits of this process, and the operations of it that were asked to stop."""

    limits = Limits()
    storage: Rate | None = None
    requests: Rate | None = None
    disks: Rate | None = None
    stopped: frozenset[str] = frozenset()


def limit_process(limits: Limits) -> None:
    """Set what holds of this process from now on."""
    if limits == _Process.limits:
        return
    rate, requests = limits.bytes_a_second, limits.requests_a_second
    _Process.limits = limits
    _Process.storage = None if rate is None else Rate(rate)
    _Process.disks = None if rate is None else Rate(rate)
    _Process.requests = None if requests is None else Rate(requests)


def limits_of_process() -> Limits:
    return _Process.limits


def stop_waiting(operation: str) -> None:
    """Let the threads of an operation that was cancelled wait no more: what they still do is to end it."""
    _Process.stopped |= {operation}


def count_stored(amount: int) -> None:
    """Count bytes of the repository that do not wait: leases, points and states are small, and some are urgent."""
    if _Process.storage is not None:
        _Process.storage.take(amount)


def pass_stored(amount: int) -> None:
    """Return when so many bytes may go to the repository's storage, or come from it."""
    _pass(_Process.storage, amount)


def pass_read(amount: int) -> None:
    """Return when so many bytes of a guest's disks may be read."""
    _pass(_Process.disks, amount)


def count_request() -> None:
    """Count a request that does not wait."""
    if _Process.requests is not None:
        _Process.requests.take(1)


def pass_request() -> None:
    """Return when a request may go to the storage's server."""
    _pass(_Process.requests, 1)


def _pass(rate: Rate | None, amount: int) -> None:
    if rate is None:
        return
    until = time.monotonic() + rate.take(amount)
    while (left := until - time.monotonic()) > 0 and operation_here() not in _Process.stopped:
        time.sleep(min(left, _LOOK_SECONDS))
