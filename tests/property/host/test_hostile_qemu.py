"""What a QEMU says of itself that its guest took over: it is data, or an error of ours with a hint, and it ends."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import libvirt_qemu
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.property.foreign import anything, damaged, forged, outcome, texts
from vmkeep.errors import TransferError
from vmkeep.host.checkup import heldscratch
from vmkeep.host.vm import qemulog
from vmkeep.hypervisor import Domain, Hypervisor
from vmkeep.hypervisor.blocknodes import BlockNodes
from vmkeep.planning.images import ImageLayer
from vmkeep.transfer import imagefile, nbd
from vmkeep.transfer.capture import changed_runs
from vmkeep.transfer.imagechain import OpenChain
from vmkeep.transfer.nbd import BASE_ALLOCATION, NbdConnection, NbdSource

# -- answers of its monitor ----------------------------------------------------------------------------------------

NODES: dict[str, Any] = {
    "return": [
        {"node-name": "libvirt-1-storage", "drv": "file", "file": "/images/vda.qcow2"},
        {"node-name": "#block123", "drv": "qcow2", "file": 'json:{"driver":"qcow2","file":{"filename":"/images/a"}}'},
    ],
    "id": "libvirt-7",
}
JOBS: dict[str, Any] = {
    "return": [
        {"id": "vmkeep-merge-vda", "status": "ready", "current-progress": 5, "total-progress": 9, "type": "commit"},
        {"id": "x", "status": "concluded", "error": "no", "current-progress": 0, "total-progress": 0, "type": "commit"},
    ]
}
ERROR: dict[str, Any] = {"error": {"class": "GenericError", "desc": "no"}}
DOMAIN = cast("Domain", SimpleNamespace(name="win11", handle=None, uri="qemu:///system", backup_socket=lambda: None))


def monitor(patch: pytest.MonkeyPatch, answer: str) -> BlockNodes:
    patch.setattr(libvirt_qemu, "qemuMonitorCommand", lambda *_arguments: answer)
    return BlockNodes(DOMAIN)


@given(st.one_of(forged(NODES), forged(JOBS), forged(ERROR), anything).map(json.dumps))
@example('{"return": ' + "[" * 100_000)
@example('{"return": [{"id": "vmkeep-merge-vda", "current-progress": ' + "9" * 5000 + "}]}")
@example('{"return": [{"node-name": "a", "drv": "file", "file": "/images/a\\u0000b"}]}')
@example('{"error": "a text"}')
@example("[]")
def test_answer_of_the_monitor(answer: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        asked = monitor(patch, answer)
        for node in outcome(asked.nodes) or ():
            assert node.path is None or "\0" not in os.fsdecode(os.fsencode(node.path))
        job = outcome(lambda: asked.job("vmkeep-merge-vda"))
        assert job is None or (job.done_bytes >= 0 and job.total_bytes >= 0)
        outcome(lambda: asked.close("node"))


@given(damaged(json.dumps(NODES).encode()))
def test_answer_of_the_monitor_that_is_damaged(answer: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        outcome(monitor(patch, answer.decode(errors="replace")).nodes)


def test_scratch_that_qemu_says_to_have_closed_and_has_not_ends() -> None:
    """Seen before: it was asked to close it for ever."""
    path = "/images/.vda.0123456789ab.scratch"
    asked = 0

    def answer(_handle: object, order: str, _flags: int) -> str:
        nonlocal asked
        asked += 1
        if asked > 10_000:
            raise AssertionError("asked for ever")
        listed = {"return": [{"node-name": "a", "drv": "file", "file": path}]}
        return json.dumps(listed if "query-named" in order else {"return": {}})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libvirt_qemu, "qemuMonitorCommand", answer)
        patch.setattr(heldscratch, "held_scratch", lambda _domain: {path: 5})
        assert outcome(lambda: heldscratch.let_go(DOMAIN, path)) is None


# -- its NBD server ------------------------------------------------------------------------------------------------


_BITMAP = "qemu:dirty-bitmap:backup-vda"


@dataclass
class Answers:
    """An export of which libnbd gives these replies to one request after the other, and the last one for ever."""

    size_bytes: int
    replies: Mapping[str, Sequence[Sequence[int]]]
    asked: Counter[str] = field(default_factory=Counter)

    @contextmanager
    def lend(self, context: str | None = None) -> Iterator[NbdConnection]:  # noqa: ARG002
        yield cast("NbdConnection", self)

    def status(self, context: str, _start: int, _length: int) -> list[int]:
        self.asked[context] += 1
        replies = self.replies[context]
        return list(replies[min(self.asked[context], len(replies)) - 1])


sizes = st.sampled_from([0, 1, 511, 65536, 1 << 20, 1 << 42]) | st.integers(0, 1 << 40)  # a larger one is not stored
lengths = st.sampled_from([0, 1, 512, 65536, 2**31, 2**32 - 1, 2**63, 2**64 - 1]) | st.integers(0, 1 << 21)
replies = st.lists(st.tuples(lengths, st.integers(0, 2**32 - 1)).map(list), min_size=1, max_size=6)
maps = st.lists(replies.map(lambda pairs: [number for pair in pairs for number in pair]), min_size=1, max_size=4)


@given(sizes, maps, maps)
@example(1 << 20, [[0, 1]], [[1 << 20, 0]])
def test_map_of_an_export(size_bytes: int, dirty: Sequence[Sequence[int]], zero: Sequence[Sequence[int]]) -> None:
    def read() -> int:
        source = NbdSource(Answers(size_bytes, {_BITMAP: dirty, BASE_ALLOCATION: zero}), _BITMAP)
        return sum(1 for _ in islice(changed_runs(source, 65536, lambda: None), 2000))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nbd, "_MOST_SHORT_REPLIES", 100)
        outcome(read)


def test_map_that_does_not_go_on_is_an_error() -> None:
    source = NbdSource(Answers(1 << 20, {BASE_ALLOCATION: [[512, 0], [0, 0]]}), None)
    with pytest.raises(TransferError, match="no progress"):
        list(islice(source.zero_map(), 100))


# -- its log -------------------------------------------------------------------------------------------------------

LOG = b"""2026-01-02 03:04:05.678+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22Debian, kernel: 6.1
LC_ALL=C \\
/usr/bin/qemu-system-x86_64 \\
-msg timestamp=on
qemu-system-x86_64: ../../blockdev-nbd.c:62: Assertion failed.
2026-01-02 03:05:00.000+0000: shutting down, reason=crashed
"""


@given(damaged(LOG) | texts.map(lambda text: LOG + text.encode(errors="replace")))
@example(LOG + b"starting up qemu version: " + b"9" * 5000 + b".1.1\n")
@example(LOG + b"\x1b[2J" + b"x" * 70_000)
def test_log_of_a_qemu(log: bytes) -> None:
    hypervisor = cast("Hypervisor", SimpleNamespace(uri="qemu:///system", versions=lambda: (9_000_000, 7_002_000)))
    dead = cast("Domain", SimpleNamespace(name="a", state=lambda: SimpleNamespace(killed=True)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qemulog, "_contents", lambda _path: log)
        assert len(qemulog.qemu_version("a", hypervisor)) == 3
        died = qemulog.death_of(dead, hypervisor.uri, "while it was looked at")
        assert died is not None
        assert len(died.message) < 1000
        assert died.message.isprintable()


# -- what qemu-img prints, which read an image of it -----------------------------------------------------------------

MAP = [{"start": 0, "length": 65536, "depth": 0, "present": True, "zero": False, "data": True, "offset": 327680}]
LAYER = ImageLayer("/a", "qcow2", 65536, (), encrypted=False, data_file=None, backing=None)


@given(st.one_of(forged({"map": MAP}).map(lambda value: value.get("map", value)), anything).map(json.dumps))
@example("[" * 100_000)
@example('[{"present": 1, "start": ' + "9" * 5000 + "}]")
@example("")
def test_map_that_qemu_img_prints(printed: str) -> None:
    with pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def opened(*_given: object, **_named: object) -> Iterator[OpenChain]:
            yield OpenChain()

        patch.setattr(imagefile, "open_chain", opened)
        patch.setattr(imagefile, "image_node", lambda *_given, **_named: "json:{}")
        patch.setattr(imagefile, "_qemu_img", lambda *_given, **_named: printed)
        outcome(lambda: imagefile.holds_data(LAYER))


def test_log_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"x" * 100_000 + b"\n" + LOG)
    assert qemulog._lines(tmp_path / "a.log")[-1].endswith("reason=crashed")
