"""Whether a TPM state is encrypted, as swtpm writes it. No I/O."""

from __future__ import annotations

import struct
from typing import Final

# swtpm's file begins with a header (0.7.1, seen of plain and of encrypted states): version, lowest version, bytes of
# the header, flags, bytes of the whole. Flag 1 is set where the rest is encrypted.
_SWTPM: Final = struct.Struct(">BBHHI")
_ENCRYPTED: Final = 1


def is_encrypted(tpm_state: bytes) -> bool:
    """Return whether a TPM state is encrypted, as swtpm's header says; False for what has no such header."""
    if len(tpm_state) < _SWTPM.size:
        return False
    _, lowest, header_bytes, flags, length = _SWTPM.unpack_from(tpm_state)
    is_header = lowest == 1 and header_bytes >= _SWTPM.size and length == len(tpm_state)
    return is_header and bool(flags & _ENCRYPTED)
