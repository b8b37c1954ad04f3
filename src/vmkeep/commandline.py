"""Commands that a hint, a remedy or a finding names, written so that they can be pasted into a shell.

Names of VMs, snapshots and files hold blanks, quotes and line noise: libvirt refuses a slash and a line end in a VM's
name, and nothing else.
"""

from __future__ import annotations

import shlex


def command_line(command: str, *arguments: object, options: str = "") -> str:
    """Return ``command`` and ``options``, which are taken as they are, with ``arguments``, each one word of a shell.

    An argument that begins with ``-`` is kept from being taken for an option by a ``--``, which vmkeep, virsh and the
    tools of coreutils and QEMU all understand; the options stand before it then.
    """
    words = [str(argument) for argument in arguments]
    quoted = " ".join(shell_word(word) for word in words)
    if any(word.startswith("-") for word in words) and not command.endswith(" --"):
        parts = [command, options, "--", quoted]
    else:
        parts = [command, quoted, options]
    return " ".join(part for part in parts if part)


def shell_word(text: str) -> str:
    """Return a text as one word of bash, zsh or ksh; what could steer a terminal is written as an escape."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(char) for char in text) + "'"


def _escaped(char: str) -> str:
    if char in "\\'":
        return f"\\{char}"
    if char.isprintable():
        return char
    # Within $'', \xNN is a byte; above 0x7f only \u and \U are characters.
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
