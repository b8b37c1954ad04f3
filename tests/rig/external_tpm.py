"""A TPM of another program than libvirt's: a swtpm that runs beside it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from tests.rig.host import Host


@contextlib.contextmanager
def external_tpm(host: Host) -> Iterator[str]:
    """A swtpm that libvirt did not start; yields the <backend> that speaks to it.

    It ends with the QEMU that used it, and is started again for the next one.
    """
    directory = host.dir / "jobs" / "tpm"
    directory.mkdir()
    socket = directory / "sock"
    control = f"type=unixio,path={socket},mode=0666"
    swtpm = f"swtpm socket --tpm2 --tpmstate dir={directory} --ctrl {control}"
    process = host.popen(["sh", "-c", f"while :; do {swtpm}; done"], start_new_session=True)
    try:
        while not socket.exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield f"<backend type='external'><source type='unix' mode='connect' path='{socket}'/></backend>"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
