"""An agent that its guest controls: it hears what libvirt asks, and answers what a test likes.

It runs in the test. In the guest a relay carries its bytes between two virtio-serial ports, so QEMU, libvirt and the
channel are what they always are.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from tests.guest import LinuxGuest

RELAY_PORT: Final = "org.vmkeep.relay.0"
FREEZE, THAW, INFO = "guest-fsfreeze-freeze", "guest-fsfreeze-thaw", "guest-get-fsinfo"
# A port without anybody at the host's end is at its end of file, so the relay begins again and again.
_RELAY: Final = r"""
port() { echo /dev/$(basename $(dirname $(grep -lx "$1" /sys/class/virtio-ports/*/name))); }
exec 4<> $(port org.qemu.guest_agent.0) 5<> $(port org.vmkeep.relay.0)
while :; do cat <&4 >&5; sleep 0.02; done &
while :; do cat <&5 >&4; sleep 0.02; done &
wait
"""
_WAIT_SECONDS: Final = 10.0

Answering = Callable[[dict[str, Any]], bytes | None]


def returned(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\n"


def refused(words: str = "no") -> bytes:
    """Say no, in ASCII as qemu-ga does: libvirt 11.3 takes any other character for the end of sense."""
    return json.dumps({"error": {"class": "GenericError", "desc": words}}).encode() + b"\n"


class HostileAgent:
    """Answers as qemu-ga does, but for what ``answers`` says. ``asked`` are the commands that came, in order."""

    def __init__(self, guest: LinuxGuest) -> None:
        self._guest = guest
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(guest.socket(RELAY_PORT)))
        self._lock = threading.Lock()
        self.answers: dict[str, Answering] = {}
        self.asked: list[str] = []
        self.frozen = 0
        guest.run(f"cat > /run/relay <<'END'\n{_RELAY}\nEND")
        threading.Thread(target=self._serve, name="hostile agent", daemon=True).start()

    def begin(self, answers: Mapping[str, Answering]) -> None:
        """Forget all, and open the port anew, so that libvirt begins anew too."""
        self.hang_up()
        self.answers, self.frozen = dict(answers), 0
        self.call()
        self.asked.clear()

    def call(self) -> None:
        """Open the agent's port in the guest."""
        self._guest.run("setsid sh /run/relay < /dev/null > /dev/null 2>&1 & echo $! > /run/relay.pid")
        self._wait(connected=True)

    def hang_up(self) -> None:
        """Close the agent's port in the guest, as the end of an agent does."""
        self._guest.run("kill -9 -$(cat /run/relay.pid) 2> /dev/null; rm -f /run/relay.pid; true")
        self._wait(connected=False)

    def restart(self, *, away_seconds: float) -> threading.Thread:
        """Close the port right after this answer, and open it again so much later."""

        def be_away() -> None:
            time.sleep(0.2)
            self.hang_up()
            time.sleep(away_seconds)
            self.call()

        away = threading.Thread(target=be_away, name="restart of the agent")
        away.start()
        return away

    def close(self) -> None:
        self._socket.close()

    def _wait(self, *, connected: bool) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._guest.has_agent() is not connected:
            assert time.monotonic() < deadline, "libvirt did not hear of the port"
            time.sleep(0.02)

    def _serve(self) -> None:
        pending = b""
        while True:
            try:
                received = self._socket.recv(1 << 16)
            except OSError:
                return
            if not received:
                return
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                answer = self._answer(line)
                if answer is not None:
                    try:
                        self._socket.sendall(answer)
                    except OSError:
                        return

    def _answer(self, line: bytes) -> bytes | None:
        try:
            request = json.loads(line.lstrip(b"\xff"))
        except ValueError:
            return None  # what an earlier call left behind
        command = str(request["execute"])
        if not command.startswith("guest-sync"):
            self.asked.append(command)
        answer = self.answers.get(command)
        return self.plain(request) if answer is None else answer(request)

    def plain(self, request: Mapping[str, Any]) -> bytes:
        """Do and answer what is asked, as an agent should."""
        match request["execute"]:
            case "guest-sync" | "guest-sync-delimited":
                return returned(request["arguments"]["id"])
            case "guest-fsfreeze-freeze":
                self.frozen = 1
                return returned(1)
            case "guest-fsfreeze-thaw":
                thawed, self.frozen = self.frozen, 0
                return returned(thawed)
            case "guest-get-fsinfo":
                return returned([])
            case _:
                return returned({})


@contextmanager
def hostile_agent(guest: LinuxGuest) -> Iterator[HostileAgent]:
    agent = HostileAgent(guest)
    try:
        yield agent
    finally:
        agent.close()
