"""Names, titles, labels and words that steer a terminal: the bytes of every ordinary command, on one and in a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

import pytest

from tests.integration.catalog.examples import WEB, WIN11, example_point, number
from tests.integration.cli.command_line import environment
from vmkeep.catalog import OperationState, SqlCatalog
from vmkeep.config import load_settings
from vmkeep.errors import VmBusy

MARKS = "\x9b31m\x85\x7f\u202e\u2066\u200f\u061c\u2028\u2029\u00ad[red]:boom:[[VM]]"
"""What XML may hold, and so libvirt's names."""
STEERING = f"\x1b[2J\x1b]0;owned\x07\r\b{MARKS}"
FORGED = f"{STEERING}\nvmkeep: error: forged [forged]\n  hint: a forged hint\nproblem: forged"
VM = f"vm{MARKS}"
SNAPSHOT = f"before{MARKS}"
OWN = re.compile(rb"\x1b\[([01]m|\?25[lh]|2K|[0-9]*A|[0-9;]*m)|\r")  # bold, and the progress bar's

FORGERIES = ("vmkeep: error: forged", "  hint: a forged", "problem: forged", "fixed: forged")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an older release may have taken over: it looked at no text."""
    home = tmp_path_factory.mktemp("home")
    with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
        for minute, (name, vm) in enumerate(((FORGED, WEB), (VM, WIN11))):
            labels = {"why": FORGED, STEERING: "x"}
            parent = None if minute == 0 else number("p0")
            point = example_point(
                f"p{minute}", vm=vm, vm_name=name, minute=minute, labels=labels, parent=parent, host=f"host{FORGED}"
            )
            disk = point.document["disks"][0]
            disk |= {"source": f"/images/{FORGED}", "reason": FORGED}
            point.document["excluded"].append({"target": "sdc", "reason": FORGED})
            point.document["warnings"].append(FORGED)
            catalog.record_point(point)
            operation = number(str(minute))
            catalog.begin_operation(operation, "point.take", name, "owner", {"labels": labels})
            catalog.move_operation(operation, "owner", OperationState.FAILED, VmBusy(FORGED).as_dict())
    return home


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A libvirt that lists a VM whose texts are hostile, and its snapshot."""
    node = tmp_path_factory.mktemp("node") / "node.xml"
    domain = f"""<domain type='test'><name>{escape(VM)}</name><uuid>{WIN11}</uuid><title>{escape(MARKS)}</title>
<description>{escape(FORGED.replace(STEERING, MARKS))}</description><memory>8192</memory><vcpu>1</vcpu>
<os><type>hvm</type></os><devices><disk type='file' device='disk'>
<source file={quoteattr(f"/images/{MARKS}")}/><target dev='vda'/></disk></devices>%s</domain>"""
    snapshot = f"""<test:domainsnapshot xmlns:test="http://libvirt.org/schemas/domain/test/1.0">
<name>{escape(SNAPSHOT)}</name><description>{escape(FORGED.replace(STEERING, MARKS))}</description>
<state>shutoff</state><creationTime>1700000000</creationTime><active>1</active>{domain % ""}
</test:domainsnapshot>"""
    node.write_text(f"<node>{domain % snapshot}</node>")
    return f"test://{node}"


LOOKS = (
    ("points",),
    ("points", "--tree"),
    ("points", f"nobody{FORGED}"),
    ("point", "show", number("p0")),
    ("point", "show", FORGED),
    ("log",),
    ("ops", "list", "--all"),
    ("restore", FORGED, "--output", f"/no/{FORGED}"),
    ("backup", FORGED),
    ("key", "import", f"/no/{FORGED}"),
    ("no such", FORGED),
    ("points", f"--{FORGED}"),
    ("-c", f"test:///no/{FORGED}", "vm", "list"),
    ("doctor", VM),
    ("vm", "list"),
    ("vm", "show", VM),
    ("snapshot", "list", VM),
    ("snapshot", "list", VM, "--tree"),
    ("snapshot", "list", VM, "--name"),
    ("snapshot", "info", VM, SNAPSHOT),
    ("snapshot", "dumpxml", VM, SNAPSHOT),
    ("snapshot", "dumpxml", VM, SNAPSHOT, "--xpath", "//description/text()"),
    ("snapshot", "dumpxml", VM, SNAPSHOT, "--xpath", FORGED),
    ("snapshot", "export", VM, "-"),
    ("snapshot", "revert", VM, SNAPSHOT),
    ("checkpoint", "create", VM, "--name", FORGED, "--print-xml"),
)
DOCUMENTS = {"dumpxml", "--print-xml"}
MARK = b"### end of a command ###"
FORKS = f"""
import json, os, sys
import vmkeep.cli.checkpoint, vmkeep.cli.snapshot, vmkeep.flows.check_up, vmkeep.flows.engine, vmkeep.host.local
from vmkeep.cli.main import run
for words in json.loads(os.environ.pop("LOOKS")):
    child = os.fork()
    if child == 0:
        sys.argv = ["vmkeep", *words]
        run()
    os.waitpid(child, 0)
    os.write(1, {MARK!r})
    os.write(2, {MARK!r})
"""
"""One process that has imported everything, and forks for each command."""


@pytest.fixture
def variables(home: Path, uri: str) -> dict[str, str]:
    (home / "vmkeep.toml").write_text(f'uri = "{uri}"\n')
    return {**environment(home), "TERM": "xterm"}


def looks(variables: dict[str, str], *options: str) -> dict[str, str]:
    return {**variables, "LOOKS": json.dumps([[*options, *words] for words in LOOKS])}


def test_no_command_lets_a_text_of_others_steer_a_terminal(variables: dict[str, str]) -> None:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    os.write(master, b"n\n" * len(LOOKS))  # to whatever is asked
    command = [sys.executable, "-c", FORKS]
    with subprocess.Popen(command, env=looks(variables), stdin=slave, stdout=slave, stderr=slave):
        os.close(slave)
        said = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while read := os.read(master, 65536):
                said += read
    os.close(master)
    *parts, rest = said.split(MARK * 2)
    assert (len(parts), rest) == (len(LOOKS), b"")
    for words, part in zip(LOOKS, parts, strict=True):
        harmless(part, words)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_nor_in_a_pipe_and_json_is_exact(variables: dict[str, str], options: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", FORKS]
    piped = subprocess.run(
        command, env=looks(variables, *options), stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    *outs, _ = piped.stdout.split(MARK)
    *errs, _ = piped.stderr.split(MARK)
    for words, out, err in zip(LOOKS, outs, errs, strict=True):
        harmless(err, words)
        if options or not DOCUMENTS & set(words):
            harmless(out, words)
        if options:
            assert all(json.loads(said) for said in (out, err) if said)
        elif "dumpxml" in words and words[-1] == SNAPSHOT:
            assert SNAPSHOT.encode() in out  # a document, as it is
    if options:
        assert [point["vm"] for point in json.loads(outs[0])["points"]] == [FORGED, VM]


def harmless(said: bytes, words: Sequence[str]) -> None:
    """Look at the bytes: letters, blanks and line ends, bold on and off, and no line that only pretends to be ours."""
    text = OWN.sub(b"", said).decode()
    assert not [char for char in text if not (char.isprintable() or char == "\n")], (words, text)
    if not DOCUMENTS & set(words):
        assert not [line for line in text.splitlines() if line.startswith(FORGERIES)], (words, text)
    assert not re.search(r"\[internal-error\]$|Traceback", text, re.MULTILINE), (words, text)
