"""What the guardian does with the sockets that it was given, with a real NBD server at their other ends."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
import pytest

from tests.integration.transfer.images import Image, make_qcow2
from tests.rig.wire import breaks, heard
from vmkeep.host.guard.clients import Channel, HeldClients, _has_ended
from vmkeep.host.vm.processes import hangs_dead
from vmkeep.transfer.nbd import NbdConnection
from vmkeep.transfer.server import ImageServer

_READ = struct.pack(">IHHQQI", 0x25609513, 0, 0, 7, 0, 4 << 20)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_qcow2(tmp_path / "disk.qcow2")


@pytest.fixture
def server(image: Image, tmp_path: Path) -> Iterator[Path]:
    with ImageServer(image.path, "qcow2", tmp_path / "nbd"):
        yield tmp_path / "nbd"


@pytest.fixture
def channel() -> Iterator[Channel]:
    channel = Channel()
    yield channel
    channel.close()


def _connected(server: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(server))
    return client


def _shaken(client: socket.socket) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_export_name("")
    if hasattr(handle, "set_request_extended_headers"):  # as vmkeep does: the requests below are of the plain kind
        handle.set_request_extended_headers(False)
    handle.connect_socket(os.dup(client.fileno()))
    return handle


def test_clients_of_a_dead_process_are_read_from_and_unfinished_handshakes_are_ended(
    server: Path, channel: Channel
) -> None:
    held = HeldClients(channel.theirs.dup(), os.getpid())
    known, unknown, greeted, halfway, busy = (_connected(server) for _ in range(5))
    handles = []
    for client, told in ((known, True), (unknown, False), (busy, True)):
        made = channel.take(client)
        handles.append(_shaken(client))
        if told:
            made()
    channel.take(greeted)
    channel.take(halfway)
    halfway.recv(18)
    halfway.sendall(struct.pack(">I8sI", 1, b"IHAVEOPT", 7))  # the greeting's answer, and half of an option
    for _ in range(8):
        busy.sendall(_READ)  # more than the socket holds: the server waits for its reply to be taken
    del handles
    duplicates = {client: client.dup() for client in (known, unknown, greeted, halfway)}
    for client in (known, unknown, greeted, halfway, busy):
        client.close()

    channel.close()  # as the death of its process does
    held.wait_decided(10)
    assert _ended(duplicates[greeted])
    assert not _ended(duplicates[known])
    assert not _ended(duplicates[unknown])
    for duplicate in duplicates.values():
        duplicate.close()
    assert held.any_open()  # whose handshakes were over, as far as the server is concerned


def test_connection_of_ours_answers_the_question_whether_its_handshake_is_over(server: Path) -> None:
    """One that both ends had agreed on longer requests for would not answer, and the job would end 3 s late."""
    client = _connected(server)
    NbdConnection(client, "", (), "vda")
    assert not _has_ended(client, time.monotonic() + 3)
    client.close()


def test_handshake_that_breaks_off_anywhere_is_ended_by_the_server_at_once(server: Path) -> None:
    """One that the question completed would be past it, and its next request nonsense: QEMU 7.2 dies of such a client.

    And of one whose option lacks more than the question has the server waits for the rest.
    """
    with heard(server, lambda client: NbdConnection(client, "", (nbd.CONTEXT_BASE_ALLOCATION,), "vda")) as handshake:
        pass
    began = time.monotonic()
    *unfinished, _ = breaks(handshake)
    for length in unfinished:
        client = _connected(server)
        client.sendall(handshake[:length])
        assert _has_ended(client, time.monotonic() + 3), f"{length} bytes of {len(handshake)}"
        client.close()
    assert time.monotonic() - began < 3
    client = _connected(server)
    client.sendall(handshake)
    assert not _has_ended(client, time.monotonic() + 3)
    client.close()


def test_they_are_let_go_when_the_server_has_ended_them(image: Image, tmp_path: Path, channel: Channel) -> None:
    held = HeldClients(channel.theirs.dup(), os.getpid())
    with ImageServer(image.path, "qcow2", tmp_path / "nbd"):
        client = _connected(tmp_path / "nbd")
        made = channel.take(client)
        handle = _shaken(client)
        made()
        del handle
        client.close()
        channel.close()
        held.wait_decided(10)
        assert held.any_open()
    deadline = time.monotonic() + 10
    while held.any_open():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_nothing_is_read_from_them_while_the_process_lives_also_when_it_has_given_up(
    server: Path, channel: Channel
) -> None:
    held = HeldClients(channel.theirs.dup(), os.getpid())
    client = _connected(server)
    made = channel.take(client)
    handle = _shaken(client)
    made()
    channel.give_up()
    held.wait_decided(10)
    for start in range(0, 4 << 20, 1 << 20):
        assert len(handle.pread(1 << 20, start % handle.get_size() // 2)) == 1 << 20
    assert held.any_open()
    client.close()


def test_a_process_in_the_way_is_killed_and_then_counts_as_dead(server: Path, channel: Channel) -> None:
    stands = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    held = HeldClients(channel.theirs.dup(), stands.pid)
    client = _connected(server)
    made = channel.take(client)
    handle = _shaken(client)
    made()
    held.kill_owner()  # a zombie, whose channel is open as that of one with a thread in the kernel is
    assert hangs_dead(stands.pid)
    stands.wait()
    del handle
    client.close()
    assert held.any_open()


def _ended(client: socket.socket) -> bool:
    """Return whether the server has ended the connection, which it may do a moment later."""
    client.setblocking(False)
    while select.select([client], [], [], 0.3)[0]:
        try:
            if not client.recv(1 << 20):
                return True
        except ConnectionResetError:
            return True  # closed before it had read all that was sent
    return False
