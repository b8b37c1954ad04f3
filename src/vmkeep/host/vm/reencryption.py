"""A TPM state given another key: swtpm opens it with the old one, and another swtpm writes it with the new one.

Both are started as a trial is (``vmkeep.host.vm.trial``): in a place of their own in memory, without network and
rights. The state goes from one to the other through swtpm's control channel (swtpm_ioctls(3), all integers are
big-endian), which has it in plain where swtpm is given no migration key; so it is in this process and in those two, and
on no disk. What came out is opened once more, and held against what went in.

Neither is told to start its TPM (TPM2_Startup), which would count as a start in the state. What swtpm 0.7.1 with
libtpms 0.9.2 was seen to change all the same are 9 bytes within 21: a TPM's clocks, which go on while it has power.
"""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, TypeVar

from vmkeep.errors import IntegrityError, StateUnsupported
from vmkeep.host.vm.trial import in_memory
from vmkeep.transfer.confinement import start_confined

T = TypeVar("T")

_SECONDS: Final = 10.0
_MOST_BYTES: Final = 96 << 10
"""As for a trial: the place holds 256 KiB."""
_CLOCK_BYTES: Final = 48
"""Within how many bytes two loads of a state may differ."""
_SCRIPT: Final = (
    '[ ! -e /var ] || exit 77; umask 077; mkdir /state || exit 77; into=$1 out=$2; shift 2; [ -z "$into" ] || '
    'cat "/proc/self/fd/$into" >/state/tpm2-00.permall || exit 77; "$@" || exit; [ -z "$out" ] || '
    'cat /state/tpm2-00.permall >"/proc/self/fd/$out"'
)
_INIT: Final = struct.pack(">II", 2, 0)
_SHUTDOWN: Final = struct.pack(">I", 3)
_GET_STATE, _SET_STATE = 12, 13
_DECRYPTED, _PERMANENT = 1, 1


def reencrypt_tpm(content: bytes, old: bytes | None, new: bytes | None) -> bytes:
    """Return a TPM 2.0 state with another passphrase; None stands for a state in plain.

    Raises IntegrityError when swtpm does not open it with the old one, or what comes out holds anything else, and
    StateUnsupported where swtpm cannot be had.
    """
    plain, _ = _with_swtpm(content, old, _take_out)
    _, made = _with_swtpm(None, new, lambda swtpm: _put_in(swtpm, plain))
    again, _ = _with_swtpm(made, new, _take_out)
    if not _is_same(plain, again):
        raise IntegrityError(
            "the TPM state with the new key holds something else than that with the old one: it was not used",
            hint="Nothing was changed. Is another version of swtpm being installed just now? Run the command again.",
        )
    return made


def _take_out(swtpm: socket.socket) -> bytes:
    """Return the permanent state in plain."""
    _asked(swtpm, _INIT)
    state = b""
    while True:
        swtpm.sendall(struct.pack(">IIII", _GET_STATE, _DECRYPTED, _PERMANENT, len(state)))
        result, _, total, length = struct.unpack(">IIII", _received(swtpm, 16))
        if result or total > _MOST_BYTES or length > _MOST_BYTES:
            raise _Refused(result)
        state += _received(swtpm, length)
        if len(state) >= total or not length:
            break
    _asked(swtpm, _SHUTDOWN)
    return state


def _put_in(swtpm: socket.socket, state: bytes) -> None:
    """Give a TPM without a state this one, and have it written."""
    _asked(swtpm, struct.pack(">IIII", _SET_STATE, 0, _PERMANENT, len(state)) + state)
    _asked(swtpm, _INIT)
    _asked(swtpm, _SHUTDOWN)


class _Refused(Exception):
    """What swtpm answered."""

    def __init__(self, result: int) -> None:
        super().__init__(f"the error {result:#x}")


def _asked(swtpm: socket.socket, command: bytes) -> None:
    swtpm.sendall(command)
    (result,) = struct.unpack(">I", _received(swtpm, 4))
    if result:
        raise _Refused(result)


def _received(swtpm: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count:
        piece = swtpm.recv(count - len(received))
        if not piece:
            raise EOFError("nothing, and ended")
        received += piece
    return received


def _with_swtpm(content: bytes | None, key: bytes | None, work: Callable[[socket.socket], T]) -> tuple[T, bytes]:
    """Return what came of the work, and the state that swtpm left; of one that was given a state, an empty one."""
    swtpm = shutil.which("swtpm")
    if swtpm is None:
        raise StateUnsupported("swtpm is not installed on this host", hint="Install swtpm, and run the command again.")
    if content is not None and len(content) > _MOST_BYTES:
        raise IntegrityError(f"the TPM state has more than {_MOST_BYTES} bytes, which no TPM's has")
    with ExitStack() as stack:
        ours, its = (stack.enter_context(end) for end in socket.socketpair())
        ours.settimeout(_SECONDS)
        left = stack.enter_context(in_memory(b""))
        passed = [its.fileno(), left.fileno()]
        given = ""
        if content is not None:
            state = stack.enter_context(in_memory(content))
            passed.append(state.fileno())
            given = str(state.fileno())
        words = [swtpm, "socket", "--tpm2", "--tpmstate", "dir=/state"]
        words += ["--ctrl", f"type=unixio,clientfd={its.fileno()}"]
        if key is not None:
            opens = stack.enter_context(in_memory(key))
            passed.append(opens.fileno())
            words += ["--key", f"pwdfd={opens.fileno()},mode=aes-256-cbc"]  # as libvirt 9.0 and 11.3 do
        started = start_confined(
            ["/bin/sh", "-c", _SCRIPT, "sh", given, "" if given else str(left.fileno()), *words],
            pdeathsig="KILL",
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            its.close()
            done = work(ours)
            ours.close()  # swtpm ends with its connection
            said, _ = started.process.communicate(timeout=_SECONDS)
            if started.process.returncode:
                raise EOFError(" ".join(said.decode(errors="replace").split())[-300:])
        except (OSError, EOFError, _Refused, struct.error, subprocess.TimeoutExpired) as error:
            raise IntegrityError(
                f"the TPM state was not taken by swtpm: {error}",
                hint="`vmkeep state try VM` says whether it opens with the secret that is kept. Nothing was changed.",
            ) from error
        finally:
            started.process.kill()
            with started.process:  # which closes its output, and waits
                pass
            started.end()
        left.seek(0)
        return done, left.read()


def _is_same(one: bytes, other: bytes) -> bool:
    """Return whether two states differ in nothing but a TPM's clocks."""
    if len(one) != len(other):
        return False
    differing = [place for place, (mine, its) in enumerate(zip(one, other, strict=True)) if mine != its]
    return not differing or differing[-1] - differing[0] < _CLOCK_BYTES
