"""The certificates of TPMs, made once in a process of the tests and then given to every TPM.

swtpm_setup has an authority sign three certificates for each TPM that libvirt makes. The authority's key alone takes a
second of a processor for each host, and each TPM's certificates a third of what its first start takes. Nothing here
looks into them: they lie in a TPM's state, where they have their size. So the first TPM of each kind of key gets its
own, from swtpm's own program, and those after it get copies.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.rig.host_init import SWTPM_SETUP_CONFIG

_USER = "tss"
_SETTING = "create_certs_tool"
# Run by swtpm_setup as ``swtpm_localca --type ek --ek KEY --dir DIRECTORY ...``: it is to make DIRECTORY/ek.cert. A key
# of another length is one of another kind.
_PROGRAM = """\
#!/bin/sh
made={made}
version=1.2
previous=
for word; do
    case "$previous" in
        --type) kind="$word" ;;
        --ek) key="$word" ;;
        --dir) directory="$word" ;;
    esac
    if [ "$word" = --tpm2 ]; then version=2; fi
    previous="$word"
done
known="$made/$kind-$version-${{#key}}.cert"
if [ -e "$known" ]; then exec cp "$known" "$directory/$kind.cert"; fi
{real} "$@" || exit $?
cp "$directory/$kind.cert" "$known.$$" && mv "$known.$$" "$known"
"""
_made: dict[str, bytes] = {}


def prepare(directory: Path) -> None:
    """Make a host's program with what was made before in this process, and the configuration that names it."""
    made = directory / "certificates"
    made.mkdir()
    for name, content in _made.items():
        (made / name).write_bytes(content)
    shutil.chown(made, _USER)
    lines = Path(SWTPM_SETUP_CONFIG).read_text().splitlines()
    real = next(line.partition("=")[2].strip() for line in lines if line.partition("=")[0].strip() == _SETTING)
    program = directory / "make-certificates"
    program.write_text(_PROGRAM.format(made=made, real=real))
    program.chmod(0o755)
    config = directory / Path(SWTPM_SETUP_CONFIG).name
    others = [line for line in lines if line.partition("=")[0].strip() != _SETTING]
    config.write_text("\n".join([f"{_SETTING} = {program}", *others, ""]))


def keep(directory: Path) -> None:
    """Keep what a host has made, for the next one."""
    for path in (directory / "certificates").glob("*.cert"):
        _made.setdefault(path.name, path.read_bytes())
