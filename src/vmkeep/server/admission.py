"""Whether a host may speak, asked of the catalogue at each request; what was heard counts for a second at most."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Final

from starlette.concurrency import run_in_threadpool

from vmkeep.errors import HostRefused
from vmkeep.flows.registrar import Registrar
from vmkeep.identity.certificates import host_id_of
from vmkeep.server.certificates import Presented

FRESH_SECONDS: Final = 1.0
_MOST_KNOWN: Final = 10_000


class Admissions:
    """The ``Admission`` of a server: serial, its state, its term and the status of its host."""

    def __init__(self, registrar: Registrar, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._registrar = registrar
        self._clock = clock
        self._known: dict[Presented, float] = {}
        self._guard = threading.Lock()

    def admit(self, presented: Presented) -> str:
        """Return the id of the host. Raises HostRefused; a refusal is never remembered."""
        host_id = host_id_of(presented.identity)
        asked = self._clock()
        with self._guard:
            heard = self._known.get(presented)
        if heard is not None and asked - heard < FRESH_SECONDS:
            return host_id
        try:
            self._registrar.admit(host_id, presented.serial, "its agent")
        except HostRefused:
            with self._guard:
                self._known.pop(presented, None)
            raise
        with self._guard:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[presented] = asked
        return host_id

    async def until_refused(self, presented: Presented) -> None:
        """Return never, and raise HostRefused as soon as the host may not speak any more.

        For requests that wait: whoever answers them waits for this beside what they wait for.
        """
        while True:
            await run_in_threadpool(self.admit, presented)
            await asyncio.sleep(FRESH_SECONDS)
