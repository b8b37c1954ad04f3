"""A TPM state directory brought to life by swtpm, without a VM.

It answers the question that counts about restored vTPM state: is it the same TPM, with its secrets? Commands are built
by hand from the TPM 2.0 Library, part 3 (commands) and part 2 (structures); all integers are big-endian.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.rig.errors import RigError

_SESSIONS = 0x8002
_CC_NV_DEFINE_SPACE = 0x12A
_CC_NV_WRITE = 0x137
_CC_NV_READ = 0x14E
_RH_OWNER = 0x40000001
_ALG_SHA256 = 0x000B
_RC_HANDLE_MASK = 0xFFFFF0FF
_RC_HANDLE = 0x8B
_ATTRIBUTES = 0x00060006  # OWNERREAD, AUTHREAD, OWNERWRITE, AUTHWRITE
_FIRST_INDEX = 0x01800000
# The password session with an empty password.
# TPM 1.2: TPM Main, part 3.
_COMMAND_12 = 0x00C1
_ORD_READ_PUBEK = 0x7C
_EMPTY_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)


class NvIndexMissingError(RigError):
    """This TPM has no such index: it is another TPM, or an older state of it."""


class SoftwareTpm:
    """swtpm running on a copy-free state directory (the one that holds the permall file); a context manager.

    A TPM 1.2, told by the name of its file, can only say who it is.
    """

    def __init__(self, state_directory: Path, *, secret: bytes | None = None) -> None:
        """``secret`` is what libvirt gave swtpm to encrypt the state with."""
        self.state_directory = state_directory
        self._secret = secret
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        older = (self.state_directory / "tpm-00.permall").exists()
        owner = (self.state_directory / ("tpm-00.permall" if older else "tpm2-00.permall")).stat()
        ours, theirs = socket.socketpair()
        command = ["swtpm", "socket", *([] if older else ["--tpm2"]), "--tpmstate", f"dir={self.state_directory}"]
        command += ["--fd", str(theirs.fileno()), "--flags", "startup-clear"]
        passed = [theirs.fileno()]
        if self._secret is not None:
            reader, writer = os.pipe()
            os.write(writer, self._secret)
            os.close(writer)
            passed.append(reader)
            command += ["--key", f"pwdfd={reader},mode=aes-256-cbc"]  # as libvirt 9.0 and 11.3 do
        self._process = subprocess.Popen(
            command,
            pass_fds=passed,
            user=owner.st_uid,
            group=owner.st_gid,
            extra_groups=[],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for descriptor in passed[1:]:
            os.close(descriptor)
        theirs.close()
        ours.settimeout(10)
        self._socket = ours
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._socket.close()  # swtpm ends with its connection
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def store(self, content: bytes, index: int = 0) -> None:
        """Keep up to 1024 bytes in a new NV index: a permanent change of state."""
        handle = _FIRST_INDEX + index
        public = struct.pack(">IHIHH", handle, _ALG_SHA256, _ATTRIBUTES, 0, len(content))
        body = struct.pack(">H", 0) + struct.pack(">H", len(public)) + public
        self._authorised("NV_DefineSpace", _CC_NV_DEFINE_SPACE, [_RH_OWNER], body)
        data = struct.pack(">H", len(content)) + content + struct.pack(">H", 0)
        self._authorised("NV_Write", _CC_NV_WRITE, [_RH_OWNER, handle], data)

    def load(self, length: int, index: int = 0) -> bytes:
        """Return what ``store`` kept. Raises NvIndexMissingError when this TPM does not know it."""
        handle = _FIRST_INDEX + index
        answer = self._authorised("NV_Read", _CC_NV_READ, [_RH_OWNER, handle], struct.pack(">HH", length, 0))
        (size,) = struct.unpack_from(">H", answer, 4)
        return answer[6 : 6 + size]

    def endorsement_key_12(self) -> bytes:
        """Return the public endorsement key of a TPM 1.2: no other TPM has it."""
        self._socket.sendall(struct.pack(">HII", _COMMAND_12, 30, _ORD_READ_PUBEK) + bytes(20))
        answer = self._receive(10)
        _, size, result = struct.unpack(">HII", answer)
        rest = self._receive(size - 10)
        if result != 0:
            raise RigError(f"ReadPubek: the TPM in {self.state_directory} answered {result:#x}")
        return rest[:-20]

    def _authorised(self, name: str, code: int, handles: list[int], body: bytes) -> bytes:
        payload = struct.pack(f">{len(handles)}I", *handles) + _EMPTY_PASSWORD + body
        self._socket.sendall(struct.pack(">HII", _SESSIONS, 10 + len(payload), code) + payload)
        answer = self._receive(10)
        _, size, result = struct.unpack(">HII", answer)
        rest = self._receive(size - 10)
        if result & _RC_HANDLE_MASK == _RC_HANDLE:
            raise NvIndexMissingError(f"{name}: the TPM in {self.state_directory} has no such index")
        if result != 0:
            raise RigError(f"{name}: the TPM in {self.state_directory} answered {result:#x}")
        return rest

    def _receive(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            piece = self._socket.recv(count - len(received))
            if not piece:
                assert self._process is not None
                _, diagnostics = self._process.communicate(timeout=10)
                raise RigError(f"swtpm ended: {diagnostics.decode(errors='replace').strip()}")
            received += piece
        return received
