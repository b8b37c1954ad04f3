"""An agent that its guest controls: whatever it answers, the guest is thawed, and the command ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.guest import LinuxGuest
from tests.rig import Disk, Host, MiB, VmState
from tests.rig.cli import Vmkeep
from tests.system.truth import assert_left_alone, checkpoints

pytestmark = pytest.mark.system

_PROMPT_SECONDS = 30.0
# It speaks as qemu-ga does, notes what it is asked, and answers a freeze and a thaw as two files say.
_AGENT = r"""
exec 4<> "$1"
while read -r line <&4; do
    case $line in
        *guest-sync*) id=${line##*\"id\":}; echo "{\"return\": ${id%%\}*}" >&4 ;;
        *fsfreeze-freeze*) echo freeze >> /run/asked; sh /run/on-freeze >&4 ;;
        *fsfreeze-thaw*) echo thaw >> /run/asked; sh /run/on-thaw >&4 ;;
        *get-fsinfo*) echo '{"return": []}' >&4 ;;
        *) echo '{"return": {}}' >&4 ;;
    esac
done
"""
_FROZE = "echo '{\"return\": 1}'"
_HUGE = "yes '\\u001b[31mhuge' | tr -d '\\n' | head -c 2000000"


@pytest.fixture(scope="module")
def guest(session_host: Host) -> Iterator[LinuxGuest]:
    session_host.clear()
    with LinuxGuest.define(session_host, "linux", disks=[Disk("vda", 16 * MiB)], agent=True).boot() as guest:
        yield guest
    session_host.clear()


@pytest.fixture
def agent(guest: LinuxGuest) -> LinuxGuest:
    """The guest with an agent that does what a test says; its port is opened anew, so libvirt begins anew with it."""
    guest.run(f"cat > /run/agent <<'END'\n{_AGENT}\nEND")
    guest.run(
        "killall qemu-ga; for pid in $(cat /run/agent.pid); do kill -9 $pid; done 2> /dev/null; sleep 0.3; "
        "port=$(grep -l guest_agent /sys/class/virtio-ports/*/name); port=/dev/$(basename $(dirname $port)); "
        "(sh /run/agent $port < /dev/null > /dev/null 2>&1 & echo $! > /run/agent.pid); rm -f /run/asked; true"
    )
    return guest


def _answers(guest: LinuxGuest, freeze: str, thaw: str) -> None:
    guest.run(f"cat > /run/on-freeze <<'END'\n{freeze}\nEND\ncat > /run/on-thaw <<'END'\n{thaw}\nEND")


def _asked(guest: LinuxGuest) -> list[str]:
    return guest.run("cat /run/asked 2> /dev/null; true").split()


def test_agent_that_answers_as_it_should_is_the_control(agent: LinuxGuest) -> None:
    _answers(agent, _FROZE, _FROZE)
    Vmkeep(agent.vm.host).backup("linux", "--quiesce")
    assert _asked(agent) == ["freeze", "thaw"]


@pytest.mark.parametrize(
    "freeze",
    [
        'echo \'{"error": {"class": "GenericError", "desc": "some are frozen"}}\'',
        f'printf \'{{"error": {{"class": "GenericError", "desc": "\'; {_HUGE}; echo \'"}}}}\'',
        'echo \'{"return": "all of them"}\'',
        "echo '{\"return\": 99999999999999999999999}'",
        "echo '{\"return\": {}}'",
    ],
    ids=["error", "huge", "text", "number", "object"],
)
def test_guest_is_thawed_whatever_the_agent_says_to_a_freeze(agent: LinuxGuest, freeze: str) -> None:
    before = checkpoints(agent.vm)
    _answers(agent, freeze, _FROZE)
    begun = time.monotonic()
    failure = Vmkeep(agent.vm.host).fails("backup", "linux", "--quiesce")
    assert time.monotonic() - begun < _PROMPT_SECONDS
    assert failure.code == "agent-unavailable"
    assert len(failure.error["message"]) < 1000
    assert "\x1b" not in failure.error["message"]
    assert _asked(agent)[0] == "freeze"
    assert _asked(agent)[-1] == "thaw"
    assert_left_alone(agent.vm, checkpoints_before=before)


@pytest.mark.parametrize(
    "thaw",
    [
        'echo \'{"error": {"class": "GenericError", "desc": "no"}}\'',
        f'printf \'{{"error": {{"class": "GenericError", "desc": "\'; {_HUGE}; echo \'"}}}}\'',
        'echo \'{"return": "thawed"}\'',
    ],
    ids=["error", "huge", "text"],
)
def test_thaw_that_is_not_confirmed_is_tried_again_and_told(agent: LinuxGuest, thaw: str) -> None:
    _answers(agent, _FROZE, thaw)
    begun = time.monotonic()
    done = Vmkeep(agent.vm.host).run("--json", "backup", "linux", "--quiesce")
    assert time.monotonic() - begun < 2 * _PROMPT_SECONDS
    assert "agent" in done.stdout + done.stderr
    assert len(done.stdout + done.stderr) < 10_000
    assert _asked(agent)[:2] == ["freeze", "thaw"]
    assert agent.vm.state() is VmState.RUNNING
