"""The connection to this machine's libvirt, opened when it is first asked for."""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

from vmkeep.errors import InvalidRequest
from vmkeep.host.vm.grounds import stand_on
from vmkeep.hypervisor import Hypervisor


class LazyConnection:
    """One connection, which several threads may ask for."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._hypervisor: Hypervisor | None = None
        self._connecting = threading.Lock()

    def opened(self) -> Hypervisor:
        """Return the connection, another one after libvirtd was restarted: who undoes what failed by that needs it.

        Raises InvalidRequest for another machine's libvirt, and what connecting raises.
        """
        with self._connecting:
            if self._hypervisor is not None and self._hypervisor.is_lost():
                self.close()
            if self._hypervisor is None:
                refuse_remote(self._uri)
                self._hypervisor = stand_on(Hypervisor.connect(self._uri))
            return self._hypervisor

    def close(self) -> None:
        """Close it if it was opened; what runs on the host goes on."""
        if self._hypervisor is not None:
            self._hypervisor.close()
            self._hypervisor = None


def refuse_remote(uri: str) -> None:
    """Raise InvalidRequest for a libvirt of another machine: its disks, TPM states and sockets are not here."""
    if urlsplit(uri).netloc:
        raise InvalidRequest(
            f"{uri} is the libvirt of another machine, whose disks and TPM states cannot be reached from here",
            path=uri,
            hint="Run vmkeep on that machine.",
        )
