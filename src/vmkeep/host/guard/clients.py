"""The sockets of a job's NBD clients, kept by the guardian for the case that vmkeep dies.

QEMU before 9.0 dies when a client leaves an export whose disk is in an I/O thread, as every client of a process does
that is killed (``vmkeep.transfer.connections``). So vmkeep gives a duplicate of such a socket to the guardian before
its handshake, over a channel of its own that nothing else goes through, and says when the handshake is over. As long
as vmkeep lives nobody else reads from these sockets: a byte less would be a wrong block. When it is dead

- what QEMU still sends is read and thrown away, until QEMU itself closes the connection: it waits for its replies to
  be taken before it ends the job, for ever (seen six times of six; with a reader 48 times alive of 48);
- a connection of which nobody knows whether its handshake was over is asked: an unfinished handshake must end before
  the job does (``vmkeep.host.guard.handshakes``), and a finished one must not.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from vmkeep.errors import JobAborted
from vmkeep.host.guard.handshakes import job_ended
from vmkeep.host.vm.processes import hangs_dead

_LONGEST_WORD = 64
_LOOK_SECONDS = 0.5
_STEP_SECONDS = 0.05
_QUESTION_SECONDS = 3.0
_PIECE_BYTES = 1 << 20
# A request of no known type: QEMU answers it with an error and the cookie, and touches no disk. In the place of an
# option of the handshake it is none, and QEMU ends the handshake. Of an option that broke off it first takes the rest
# from us, less than 200 bytes of any of ours; with fewer it waits, and the job ended 3 s late.
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC = 0x25609513
_NO_COMMAND = 0x7E57
_REQUESTS = 16
_GIVES_UP = b"lives"
GUARDIAN_GONE = "the guardian of the backup job was killed, or ended the job to save the guest"


class Channel:
    """vmkeep's end: gives sockets away. Its other end is a guardian's ``HeldClients``."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._number = 0
        self._lock = threading.Lock()

    def take(self, client: socket.socket) -> Callable[[], None]:
        """Hand a duplicate over; what is returned tells that the handshake is over. Raises JobAborted."""
        with self._lock:
            self._number += 1
            number = self._number
        self._send(b"takes %d\n" % number, [client.fileno()])
        return lambda: self._send(b"knows %d\n" % number, [])

    def give_up(self) -> None:
        """Tell that this process lives, and has nothing to do with the job any more but to wait for its end."""
        with suppress(JobAborted):
            self._send(_GIVES_UP + b"\n", [])

    def close(self) -> None:
        """The job is gone: what was given away may be closed."""
        self._ours.close()
        self.theirs.close()

    def _send(self, word: bytes, descriptors: list[int]) -> None:
        try:
            socket.send_fds(self._ours, [word], descriptors)
        except OSError as error:
            raise job_ended(GUARDIAN_GONE) from error


class HeldClients:
    """The guardian's end: a thread that keeps what is given to it, and reads from it when ``owner`` is dead."""

    def __init__(self, channel: socket.socket, owner: int) -> None:
        self._channel = channel
        self._owner = owner
        self._begun: dict[int, socket.socket] = {}  # in their handshake, as far as is known
        self._open: list[socket.socket] = []
        self._rest = b""
        self._decided = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="vmkeep-clients", daemon=True)
        self._thread.start()

    def wait_decided(self, seconds: float) -> None:
        """Wait until vmkeep is known to be dead, with no handshake of it left, or to live and to have given up."""
        self._decided.wait(seconds)

    def kill_owner(self) -> None:
        """Kill a vmkeep that stands in the way, and wait until its clients are looked after."""
        with suppress(ProcessLookupError):
            os.kill(self._owner, signal.SIGKILL)
        self.wait_decided(2 * _QUESTION_SECONDS)

    def any_open(self) -> bool:
        """Return whether QEMU has not yet closed what is held here."""
        return bool(self._open or self._begun)

    def _serve(self) -> None:
        with self._channel:
            while self._receive():
                pass
        self._end_handshakes()
        self._decided.set()
        self._drain()

    # -- while vmkeep lives ------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Take what is given; return False when vmkeep is dead."""
        readable, _, _ = select.select([self._channel], [], [], _LOOK_SECONDS)
        if not readable:
            return not hangs_dead(self._owner)
        try:
            words, descriptors, _, _ = socket.recv_fds(self._channel, _LONGEST_WORD, 1)
        except ConnectionResetError:
            words, descriptors = b"", []
        if not words:
            return False
        taken = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        *lines, self._rest = (self._rest + words).split(b"\n")
        for line in lines:
            word, _, number = line.partition(b" ")
            if word == _GIVES_UP:
                self._decided.set()
            elif word == b"takes":
                self._begun[int(number)] = taken.pop()
            else:
                self._open.append(self._begun.pop(int(number)))
        return True

    # -- when it is dead ---------------------------------------------------------------------------------------

    def _end_handshakes(self) -> None:
        deadline = time.monotonic() + _QUESTION_SECONDS
        for client in self._begun.values():
            if _has_ended(client, deadline):
                client.close()
            else:
                self._open.append(client)
        self._begun = {}

    def _drain(self) -> None:
        while self._open:
            # Not the sockets' own mode: it is shared with whoever has a duplicate.
            readable, _, _ = select.select(self._open, [], [], _STEP_SECONDS)
            for client in readable:
                try:
                    ended = not client.recv(_PIECE_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    self._open.remove(client)
                    client.close()


def _has_ended(client: socket.socket, deadline: float) -> bool:
    """Ask a connection of a dead process whether its handshake is over, which ends one that is not.

    False for one that is past it, and for one of which nothing is heard: QEMU, held up by something else, will end it
    when it goes on, and would die if it were past its handshake and closed here.
    """
    cookie = os.urandom(8)
    question = _REQUEST.pack(_REQUEST_MAGIC, 0, _NO_COMMAND, int.from_bytes(cookie, "big"), 0, 0) * _REQUESTS
    try:
        client.send(question, socket.MSG_DONTWAIT)
        answer = b""
        while (left := deadline - time.monotonic()) > 0 and select.select([client], [], [], left)[0]:
            received = client.recv(_PIECE_BYTES, socket.MSG_DONTWAIT)
            if not received:
                return True
            answer = answer[-len(cookie) :] + received
            if cookie in answer:
                return False
    except BlockingIOError:
        return False
    except OSError:
        return True  # closed
    return False
