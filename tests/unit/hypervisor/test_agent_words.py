"""What a guest agent says is the guest's: no word of it makes an error anything but the agent's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import libvirt
import pytest

from vmkeep.errors import AgentUnavailable, HypervisorUnavailable, VmBusy, VmkeepError, VmNotFound
from vmkeep.hypervisor.domain import Domain


class Handle:
    """A VM at whose agent every call ends with an error of libvirt's, of this number and with these words."""

    def __init__(self, code: int, words: str) -> None:
        error: Any = libvirt.libvirtError("no")
        error.err, error.args = (code, 10, words, 2, "", "", ""), (words,)
        self._error = error
        self.limits: list[int] = []

    def name(self) -> str:
        return "guest"

    def UUIDString(self) -> str:  # noqa: N802  libvirt's name
        return "u"

    def agentSetResponseTimeout(self, seconds: int) -> None:  # noqa: N802  libvirt's name
        self.limits.append(seconds)

    def _fail(self) -> None:
        raise self._error

    fsFreeze = fsThaw = fsInfo = _fail  # noqa: N815  libvirt's names


_ASKED = pytest.mark.parametrize(
    "ask", [Domain.require_agent, Domain.freeze, Domain.thaw], ids=["info", "freeze", "thaw"]
)


@_ASKED
@pytest.mark.parametrize(
    "words",
    [
        "internal error: unable to execute QEMU agent command: No space left on device",
        "Inactive 'x' can't be a backing child of active 'y'",
        "\x1b[2J\u202e" * 5000,
        "Permission denied",
        "",
    ],
)
def test_words_of_an_agent_are_no_error_of_the_host(ask: Callable[[Domain], object], words: str) -> None:
    """Seen before: a guardian ended at a thaw that "no space" was said to, with the job still there."""
    handle = Handle(libvirt.VIR_ERR_INTERNAL_ERROR, words)
    with pytest.raises(AgentUnavailable) as told:
        ask(Domain(cast("Any", handle)))
    assert told.value.refused
    assert told.value.message.isprintable()
    assert len(told.value.message) < 500
    assert handle.limits[-1] == 60
    assert all(seconds > 0 for seconds in handle.limits), "libvirt would wait for ever"


@_ASKED
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, AgentUnavailable),
        (libvirt.VIR_ERR_NO_DOMAIN, VmNotFound),
        (libvirt.VIR_ERR_OPERATION_TIMEOUT, VmBusy),
        (libvirt.VIR_ERR_RPC, HypervisorUnavailable),
    ],
)
def test_libvirts_number_tells_what_is_away(
    ask: Callable[[Domain], object], code: int, kind: type[VmkeepError]
) -> None:
    with pytest.raises(kind) as told:
        ask(Domain(cast("Any", Handle(code, "words"))))
    assert type(told.value) is kind
    assert not getattr(told.value, "refused", False)
