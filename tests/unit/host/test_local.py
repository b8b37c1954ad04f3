"""Which libvirt this host may speak to."""

from __future__ import annotations

import pytest

from vmkeep.errors import InvalidRequest
from vmkeep.host.connection import refuse_remote


@pytest.mark.parametrize("uri", ["qemu+ssh://root@other/system", "qemu+tcp://10.0.0.1/system", "qemu://other/system"])
def test_libvirt_of_another_machine_is_refused(uri: str) -> None:
    with pytest.raises(InvalidRequest, match="another machine"):
        refuse_remote(uri)


@pytest.mark.parametrize(
    "uri", ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/run/other", "test:///default"]
)
def test_libvirt_of_this_machine_is_accepted(uri: str) -> None:
    refuse_remote(uri)
