"""That a guest of this process stands still just now: Ctrl-Z then waits until it goes on.

Ctrl-Z stops a process wherever it is, and a process that is stopped resumes no guest. So the signal is taken by a
handler (``stop_this_process``), which stops the process between two instants.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Reentrant, because a handler runs in the middle of whatever its thread does.
_lock = threading.RLock()
_guests = 0
_stop_waits = False


@contextmanager
def guest_stands_still() -> Iterator[None]:
    """Put off a stop of this process until the block is left."""
    global _guests
    with _lock:
        _guests += 1
    try:
        yield
    finally:
        with _lock:
            _guests -= 1
            if _stop_waits:
                stop_this_process()


def stop_this_process() -> None:
    """Stop as for Ctrl-Z, as soon as no guest stands still. May be called by the handler of a signal."""
    global _stop_waits
    with _lock:
        _stop_waits = _guests > 0
        if not _stop_waits:
            # To this very thread: no other may come to an instant while the signal is on its way.
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def forget_stop() -> None:
    """The process was told to go on before it had stopped."""
    global _stop_waits
    with _lock:
        _stop_waits = False
