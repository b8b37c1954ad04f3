"""A guest agent that its guest controls: whatever it answers, its guest is thawed, and nothing else waits for it.

What libvirt waits for by the minute is played with VMKEEP_ATTACK_ALL=1 only.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from tests.attack.agents import (
    FREEZE,
    INFO,
    RELAY_PORT,
    THAW,
    Answering,
    HostileAgent,
    hostile_agent,
    refused,
    returned,
)
from tests.guest import LinuxGuest
from tests.rig import Disk, Host, MiB, VmState
from tests.rig.cli import Failure, Vmkeep, finished
from tests.system.truth import assert_left_alone, checkpoints
from tests.turns import EVERY, sampled

pytestmark = pytest.mark.system

_PROMPT_SECONDS = 10.0
_LONGEST_SECONDS = 240.0
"""docs/operations.md, agent-unavailable."""
_WORDS = "\x1b[31mred\u202e" * 20_000
_IN_TURN = (
    "test_answers_that_come_twice_or_unasked_are_not_taken_for_others",
    "test_agent_that_is_frozen_by_others_is_left_alone",
    "test_answer_that_does_not_end_is_an_error_before_the_guest_is_touched",
    "test_answer_as_long_as_libvirt_takes_one_is_no_matter",
    "test_agent_that_talks_nonsense_and_starts_anew_thaws",
    "test_agent_that_says_for_ever_that_it_thawed_ends",
    "test_channel_that_closes_in_the_middle_of_a_freeze_is_thawed_when_it_is_back",
)
_at_length = pytest.mark.skipif("VMKEEP_ATTACK_ALL" not in os.environ, reason="takes minutes")


@pytest.fixture(autouse=True)
def _sampled(request: pytest.FixtureRequest) -> None:
    """One of them a day, others each day; all with VMKEEP_CRASH_ALL."""
    name = request.node.originalname
    if name in _IN_TURN and not EVERY and name not in sampled(_IN_TURN, 1):
        pytest.skip("one of a sample (VMKEEP_CRASH_ALL=1 for all)")


@pytest.fixture(scope="module")
def guest(session_host: Host) -> Iterator[LinuxGuest]:
    session_host.clear()
    disks = [Disk("vda", 16 * MiB)]
    with LinuxGuest.define(session_host, "linux", disks=disks, ports=[RELAY_PORT], whole=False).boot() as guest:
        Vmkeep(session_host).backup("linux")
        session_host.define("other", disks=[Disk("vda", 1 * MiB)])
        yield guest
    session_host.clear()


@pytest.fixture(scope="module")
def agents(guest: LinuxGuest) -> Iterator[HostileAgent]:
    with hostile_agent(guest) as agent:
        yield agent


@pytest.fixture
def attack(guest: LinuxGuest, agents: HostileAgent) -> Iterator[Attack]:
    attack = Attack(guest, agents)
    yield attack
    agents.begin({})
    attack.vmkeep.run("doctor", "--fix")  # whatever a test left is put right by the next command


class Attack:
    """A quiesced point of a guest whose agent answers as a test says."""

    def __init__(self, guest: LinuxGuest, agent: HostileAgent) -> None:
        self.guest = guest
        self.agent = agent
        self.vmkeep = Vmkeep(guest.vm.host)
        self._before = checkpoints(guest.vm)

    def fails(self, answers: Mapping[str, Answering], *, within: float = _PROMPT_SECONDS) -> Failure:
        """Take a point that must fail, in time, with an error that is told as such, and leave nothing behind."""
        self.agent.begin(answers)
        status, document = finished(self.vmkeep.start("backup", "linux", "--quiesce"), within)
        assert status != 0
        failure = Failure(document["error"], status, None)
        assert failure.code == "agent-unavailable"
        assert failure.error["hint"]
        assert len(failure.error["message"]) < 1000
        assert failure.error["message"].isprintable()
        assert_left_alone(self.guest.vm, checkpoints_before=self._before)
        return failure

    def assert_thawed(self) -> None:
        assert self.agent.frozen == 0
        assert FREEZE not in self.agent.asked or self.agent.asked[-1] == THAW


def freezing(agent: HostileAgent, answer: bytes | None) -> Answering:
    """Freeze the guest, and answer something else than that."""

    def froze(request: dict[str, Any]) -> bytes | None:
        agent.plain(request)
        return answer

    return froze


def test_agent_that_does_as_it_should_is_the_control(attack: Attack) -> None:
    attack.agent.begin({})
    attack.vmkeep.backup("linux", "--quiesce")
    assert attack.agent.asked == [INFO, FREEZE, THAW]
    attack.vmkeep.json("snapshot", "create", "linux", "s", "--quiesce")
    assert attack.agent.asked[3:] == [INFO, FREEZE, THAW]
    attack.vmkeep.json("snapshot", "delete", "linux", "s")


_SAID = {"long words": refused(_WORDS), "a text": returned("all of them"), "a negative number": returned(-5)}


@pytest.mark.parametrize("said", sampled(list(_SAID), 1))
def test_guest_is_thawed_whatever_the_agent_says_to_a_freeze(attack: Attack, said: str) -> None:
    attack.fails({FREEZE: freezing(attack.agent, _SAID[said])})
    attack.assert_thawed()


def test_answers_that_come_twice_or_unasked_are_not_taken_for_others(attack: Attack) -> None:
    agent = attack.agent

    def twice(request: dict[str, Any]) -> bytes:
        return agent.plain(request) * 2

    def beside_others(request: dict[str, Any]) -> bytes:
        return returned(77) + b'{"event": "X"}\n' + agent.plain(request)

    agent.begin({FREEZE: twice, THAW: twice, "guest-sync": beside_others})
    attack.vmkeep.backup("linux", "--quiesce")
    attack.assert_thawed()


def test_agent_that_is_frozen_by_others_is_left_alone(attack: Attack) -> None:
    """As qemu-ga answers all but a few commands then. It is not ours to thaw."""
    failure = attack.fails({INFO: lambda _request: refused("Command guest-get-fsinfo has been disabled")})
    assert attack.agent.asked == [INFO]
    assert "disabled" in failure.error["message"]


def test_answer_that_does_not_end_is_an_error_before_the_guest_is_touched(attack: Attack) -> None:
    """libvirt gives an agent up at 10 MiB without a line's end, and no answer over that reaches vmkeep."""
    attack.fails({INFO: lambda _request: b'{"return": "' + b"x" * (11 << 20)}, within=20)
    assert attack.agent.asked == [INFO]


def test_answer_as_long_as_libvirt_takes_one_is_no_matter(attack: Attack) -> None:
    mounts = [{"name": f"vda{n}", "mountpoint": "/" + "x" * 40_000, "type": "ext4", "disk": []} for n in range(200)]
    attack.agent.begin({INFO: lambda _request: returned(mounts)})
    attack.vmkeep.backup("linux", "--quiesce")
    attack.assert_thawed()


def test_agent_that_talks_nonsense_and_starts_anew_thaws(attack: Attack) -> None:
    """After nonsense libvirt speaks to an agent no more, until it opens its port anew."""

    def nonsense(request: dict[str, Any]) -> bytes:
        attack.agent.plain(request)
        attack.agent.restart(away_seconds=0.5)
        return b"\x00\xff{{{]\n"

    attack.fails({FREEZE: nonsense})
    attack.assert_thawed()


def test_agent_that_says_for_ever_that_it_thawed_ends(attack: Attack) -> None:
    """Seen before: the guardian thawed until nothing was frozen, for ever, and the command waited for it."""
    attack.fails({FREEZE: lambda _request: refused(), THAW: lambda _request: returned(1)}, within=20)


def test_thaw_that_is_refused_leaves_no_job_and_is_owed(attack: Attack) -> None:
    """Seen before: the job was never ended, and its scratch grew with what the guest wrote."""
    failure = attack.fails({THAW: lambda _request: refused(_WORDS)}, within=20)
    assert "virsh domfsthaw linux" in failure.error["hint"]
    assert attack.agent.frozen
    begun = time.monotonic()
    done = attack.vmkeep.run("backup", "other")
    assert time.monotonic() - begun < _PROMPT_SECONDS
    assert done.returncode == 0
    assert "may still be frozen" in done.stdout + done.stderr
    attack.agent.answers.clear()
    done = attack.vmkeep.run("backup", "other")
    assert "is thawed" in done.stdout + done.stderr
    attack.assert_thawed()


def test_channel_that_closes_in_the_middle_of_a_freeze_is_thawed_when_it_is_back(attack: Attack) -> None:
    def gone(request: dict[str, Any]) -> None:
        attack.agent.plain(request)
        attack.agent.restart(away_seconds=1.5)

    attack.fails({FREEZE: gone}, within=15)
    attack.assert_thawed()


# -- what takes minutes --------------------------------------------------------------------------------------------


@_at_length
@pytest.mark.parametrize("seconds", [62.0, 3600.0], ids=["too late", "never"])
def test_freeze_that_is_answered_too_late_is_thawed(attack: Attack, seconds: float) -> None:
    def late(request: dict[str, Any]) -> None:
        answer = attack.agent.plain(request)
        timer = threading.Timer(seconds, lambda: attack.agent._socket.sendall(answer))
        timer.daemon = True
        timer.start()

    attack.fails({FREEZE: late}, within=_LONGEST_SECONDS)
    attack.assert_thawed()


@_at_length
def test_thaw_that_is_never_answered_ends_and_leaves_no_job(attack: Attack) -> None:
    attack.fails({THAW: lambda _request: None}, within=_LONGEST_SECONDS)


@_at_length
def test_channel_that_closes_for_good_ends_and_leaves_no_job(attack: Attack) -> None:
    def gone(request: dict[str, Any]) -> None:
        attack.agent.plain(request)
        threading.Timer(0.0, attack.agent.hang_up).start()

    attack.fails({FREEZE: gone}, within=_LONGEST_SECONDS)


@_at_length
def test_agent_that_somebody_else_waits_for_is_not_waited_for(attack: Attack) -> None:
    """libvirt lets one call at a time speak to an agent."""
    attack.agent.begin({"guest-ping": lambda _request: None})
    domain = attack.guest.vm.domain

    def wait_for_ever() -> None:
        with suppress(libvirt.libvirtError):  # in the end the agent hangs up
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', -2, 0)

    other = threading.Thread(target=wait_for_ever)
    other.start()
    begun = time.monotonic()
    failure = attack.vmkeep.fails("backup", "linux", "--quiesce")
    assert time.monotonic() - begun < 40
    assert failure.code == "vm-busy"
    attack.agent.hang_up()
    other.join()
    assert attack.guest.vm.state() is VmState.RUNNING
