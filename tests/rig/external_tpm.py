"""A TPM of another program than libvirt's: a swtpm that runs beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from tests.rig.host import Host


@contextlib.contextmanager
def external_tpm(host: Host) -> Iterator[str]:
    """A swtpm that libvirt did not start; yields the <backend> that speaks to it."""
    directory = host.dir / "jobs" / "tpm"
    directory.mkdir()
    socket = directory / "sock"
    control = f"type=unixio,path={socket},mode=0666"
    process = host.popen(["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}", "--ctrl", control])
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield f"<backend type='external'><source type='unix' mode='connect' path='{socket}'/></backend>"
    finally:
        process.kill()
        process.communicate()
