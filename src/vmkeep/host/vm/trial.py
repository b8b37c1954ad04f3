"""A TPM state tried: swtpm loads a private copy of it, and says whether it is one.

It loads what a VM's start would load, so it finds what sizes and hashes do not: a state that is cut or torn, one of
another kind of TPM, one that another secret encrypts (docs/internals/custody.md has what was measured). The copy lies
in a file system in memory that belongs to swtpm's own mount namespace (``vmkeep.transfer.confinement``): whoever dies,
nothing of it is left. There it has no network, no other process and no right but to open what is in that place.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from contextlib import ExitStack
from typing import BinaryIO, Final

from vmkeep.custody.states import SecretSource
from vmkeep.definition import Definition
from vmkeep.hypervisor import Hypervisor, Secret
from vmkeep.logs import get_logger
from vmkeep.repository import Repository
from vmkeep.transfer.confinement import start_confined
from vmkeep.values import dataclass

_log = get_logger(__name__)

_SECONDS: Final = 5.0
"""A state loads in some milliseconds."""
_MOST_BYTES: Final = 96 << 10
"""That place holds 256 KiB, and swtpm writes the state anew beside the old one."""
_NO_PLACE: Final = 77
# Only in that place there is no /var: a host without the right to make one must not get a directory of ours.
_SCRIPT: Final = (
    f'[ ! -e /var ] || exit {_NO_PLACE}; umask 077; mkdir /state && cat "/proc/self/fd/$1" >/state/tpm2-00.permall || '
    f'exit {_NO_PLACE}; shift; exec "$@"'
)
_SWTPM: Final = "swtpm"
_WORDS: Final = ("socket", "--tpm2", "--tpmstate", "dir=/state", "--flags", "startup-clear")
_NOT_LOADED: Final = "Could not initialize libtpms"
# TPM 2.0 Library, part 3: TPM2_GetRandom of 8 bytes, which a TPM in failure mode refuses.
_GET_RANDOM: Final = struct.pack(">HIIH", 0x8001, 12, 0x17B, 8)


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a trial. ``loads`` is None where it could not be tried; ``why`` is a sentence about that, or about
    what swtpm said to a state that it refuses.
    """

    loads: bool | None
    why: str = ""


def try_with_secret(content: bytes, file: str, definition: Definition | None, hypervisor: Hypervisor) -> Trial:
    """Let swtpm load a TPM state of a VM, with the secret that libvirt has for it, which goes nowhere else.

    ``definition`` None: of one that is not defined here, in plain.
    """
    passphrase = None
    tpm = None if definition is None else definition.tpm
    if tpm is not None and tpm.secret_uuid is not None:
        secret = hypervisor.secrets.read(tpm.secret_uuid)
        if not isinstance(secret, Secret):
            return Trial(None, f"libvirt does not give out the secret {tpm.secret_uuid} ({secret})")
        passphrase = secret.value
    return try_tpm(content, file, passphrase)


def try_with_kept_secret(content: bytes, file: str, source: SecretSource, repository: Repository) -> Trial:
    """Let swtpm load a TPM state with the secret that an envelope holds for it. Raises what reading that raises."""
    held = repository.secrets(repository.holder(source.point, source.pin))
    return try_tpm(content, file, next((secret.value for secret in held if secret.uuid == source.uuid), None))


def try_tpm(content: bytes, file: str, passphrase: bytes | None = None) -> Trial:
    """Let swtpm load a TPM state. ``file`` is its name in a point, ``passphrase`` the value of libvirt's secret for it.

    A TPM 1.2 is not tried: it takes 0.3 to 1.4 s (swtpm 0.7.1). Raises nothing for what swtpm is or says: a trial that
    cannot be made is no verdict.
    """
    if not file.endswith("tpm2-00.permall"):
        return Trial(None, "TPM 1.2 is not tried, because it takes a second")
    swtpm = shutil.which(_SWTPM)
    if swtpm is None:
        return Trial(None, "swtpm is not installed")
    if len(content) > _MOST_BYTES:
        return Trial(None, f"it has more than {_MOST_BYTES} bytes")
    try:
        return _tried(swtpm, content, passphrase)
    except OSError as error:
        return Trial(None, f"a swtpm could not be started: {error.strerror or error}")


def _tried(swtpm: str, content: bytes, passphrase: bytes | None) -> Trial:
    with ExitStack() as stack:
        state = stack.enter_context(in_memory(content))
        ours, its = socket.socketpair()
        stack.enter_context(ours)
        stack.enter_context(its)
        words = [swtpm, *_WORDS, "--fd", str(its.fileno())]
        passed = [state.fileno(), its.fileno()]
        if passphrase is not None:
            key = stack.enter_context(in_memory(passphrase))
            passed.append(key.fileno())
            words += ["--key", f"pwdfd={key.fileno()},mode=aes-256-cbc"]  # as libvirt 9.0 and 11.3 do
        started = start_confined(
            ["/bin/sh", "-c", _SCRIPT, "sh", str(state.fileno()), *words],
            pdeathsig="KILL",
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            its.close()
            answer = _asked(ours, _GET_RANDOM)
            ours.close()  # swtpm ends with its connection
            said, _ = started.process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            return Trial(None, f"the swtpm did not end within {_SECONDS:.0f} s")
        finally:
            with started.process:  # which closes its output, and waits
                started.process.kill()
            started.end()
    return _verdict(started.process.returncode, answer, said.decode(errors="replace"))


def _asked(connection: socket.socket, command: bytes) -> int | None:
    """Return the code of the answer to a command; None for no answer."""
    connection.settimeout(_SECONDS)
    try:
        connection.sendall(command)
        answer = connection.recv(4096)
    except OSError:
        return None
    return struct.unpack_from(">I", answer, 6)[0] if len(answer) >= 10 else None


def _verdict(status: int, answer: int | None, said: str) -> Trial:
    last = " ".join(said.split())[-300:]
    _log.debug("tried a TPM state", status=status, answer=answer, said=last)
    if answer == 0:
        return Trial(True)
    if answer is not None:
        return Trial(False, f"it is loaded and answers nothing but the error {answer:#x}")
    if _NOT_LOADED in said:
        return Trial(False, "swtpm does not load it")
    if status == _NO_PLACE:
        return Trial(None, "this user, or this container, cannot make a place of its own for swtpm")
    return Trial(None, f"the swtpm ended with status {status}: {last}")


def in_memory(content: bytes) -> BinaryIO:
    """Return a file without a name that holds the content and is read from its beginning."""
    stream = os.fdopen(os.memfd_create("vmkeep", os.MFD_CLOEXEC), "w+b")
    stream.write(content)
    stream.seek(0)
    return stream
