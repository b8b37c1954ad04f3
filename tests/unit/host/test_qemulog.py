"""What QEMU said last, among what libvirt writes into the same log."""

from __future__ import annotations

import pytest

from vmkeep.host.vm.qemulog import last_words

_START = [
    "2026-01-02 03:04:05.678+0000: starting up libvirt version: 9.0.0, qemu version: 7.2.22Debian, kernel: 6.1",
    "LC_ALL=C \\",
    "/usr/bin/qemu-system-x86_64 \\",
    "-name guest=a,debug-threads=on \\",
    "-msg timestamp=on",
]
_END = ["2026-01-02 03:05:00.000+0000: shutting down, reason=crashed"]
_SAID = "qemu-system-x86_64: ../../blockdev-nbd.c:62: Assertion `qemu_in_main_thread() && nbd_server' failed."


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([*_START, "char device redirected to /dev/pts/0", _SAID, *_END], _SAID),
        ([*_START, *_END], ""),
        ([*_START, "of an earlier run", *_END, *_START, *_END], ""),
        ([*_START, _SAID, ""], _SAID),
        (["the rest of a log that was rotated", *_END], "the rest of a log that was rotated"),
        ([], ""),
    ],
)
def test_last_words_are_the_last_line_of_qemu_itself_since_its_start(lines: list[str], words: str) -> None:
    assert last_words(lines) == words
