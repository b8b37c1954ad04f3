"""What the system refuses is an error of ours that says where, and never a fault of vmkeep."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from vmkeep.errors import VmkeepError
from vmkeep.filesystem import fault_error, file_error, make_directory, naming, require_descriptors

CODES = {
    errno.ENOSPC: "no-space",
    errno.EDQUOT: "no-space",
    errno.EROFS: "permission-denied",
    errno.EACCES: "permission-denied",
    errno.EPERM: "permission-denied",
    errno.EIO: "store-error",
    errno.ESTALE: "store-error",
    errno.EMFILE: "host-exhausted",
    errno.ENFILE: "host-exhausted",
    errno.ENOMEM: "host-exhausted",
    errno.EAGAIN: "host-exhausted",
    errno.ENOENT: "host-file-missing",
    errno.ENOTDIR: "host-file-missing",
    errno.EEXIST: "target-exists",
}


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_error_of_the_system_is_translated_with_its_path(number: int) -> None:
    error = file_error(OSError(number, os.strerror(number)), Path("/some/where/file"))
    assert error.code == CODES.get(number, "store-error")
    assert error.path == "/some/where/file"
    assert "/some/where" in error.message


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_error_that_nobody_translated_is_no_fault_of_vmkeep(number: int) -> None:
    named = fault_error(OSError(number, os.strerror(number), "/some/where/file"))
    assert (named.code, named.path) == (CODES.get(number, "store-error"), "/some/where/file")
    assert fault_error(OSError(number, os.strerror(number))).code == CODES.get(number, "store-error")


def test_call_on_a_descriptor_is_told_with_the_name_of_its_file() -> None:
    with pytest.raises(OSError, match="Input/output") as caught, naming(Path("/some/where/file")):
        raise OSError(errno.EIO, "Input/output error")
    assert fault_error(caught.value).path == "/some/where/file"


def test_lack_of_memory_and_threads_is_no_fault_of_vmkeep() -> None:
    assert fault_error(MemoryError()).code == "host-exhausted"
    assert fault_error(RuntimeError("can't start new thread")).code == "host-exhausted"
    assert fault_error(RuntimeError("anything else")).code == "internal-error"


def test_fault_says_where_it_was_raised() -> None:
    with pytest.raises(AttributeError) as caught:
        make_directory(None)  # type: ignore[arg-type]
    assert re.search(r" \(filesystem\.py:\d+\)$", fault_error(caught.value).message)
    assert not re.search(r"\(", fault_error(KeyError("never raised")).message)


def test_what_is_an_error_of_ours_stays_it() -> None:
    error = VmkeepError("as it was")
    assert fault_error(error) is error


def test_descriptors_are_asked_for_by_name() -> None:
    """In a process of its own, whose limits are its own."""
    program = """
import resource
from vmkeep.errors import HostExhausted
from vmkeep.filesystem import require_descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
require_descriptors(100, "a point")
assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 100
try:
    require_descriptors(500, "a point of VM 'big' with 99 disks")
except HostExhausted as error:
    print(error.message, error.hint)
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "a point of VM 'big' with 99 disks needs" in told
    assert "may have 200 (RLIMIT_NOFILE)" in told
    assert "Nothing was begun" in told


def test_enough_descriptors_change_nothing() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    require_descriptors(1, "nothing")
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
