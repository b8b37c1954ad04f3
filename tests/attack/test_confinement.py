"""A tool of QEMU's that a hostile image took over: what it reaches from its place, and what it does not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.attack.conftest import Ground
from tests.integration.transfer.images import make_qcow2
from vmkeep.transfer.confinement import run_confined, start_confined
from vmkeep.transfer.server import ImageServer

# Standard library of the system's Python, which lies below /usr as QEMU's tools do.
_TAKEN_OVER = r"""
import ctypes, json, os, socket, sys
asked = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
done = {}
def attempt(name, what):
    try:
        done[name] = what() or True
    except (OSError, ValueError) as error:
        done[name] = False
def connected(kind, address):
    with socket.socket(kind) as client:
        client.settimeout(2)
        client.connect(address)
attempt("image", lambda: os.open(asked["image"], os.O_RDWR) > 0)
attempt("secret", lambda: open(asked["secret"]).close())
attempt("host name", lambda: open("/etc/hostname").close())
attempt("other root", lambda: open("/proc/1/root/etc/hostname").close())
attempt("parent's root", lambda: os.listdir(f"/proc/{asked['parent']}/root/etc") and None)
def others():
    if len([name for name in os.listdir("/proc") if name.isdecimal()]) < 2:
        raise OSError("alone")
attempt("other processes", others)
attempt("settings of the kernel", lambda: open("/proc/sys/kernel/core_pattern").close())
attempt("unix server", lambda: connected(socket.AF_UNIX, asked["unix"]))
attempt("abstract server", lambda: connected(socket.AF_UNIX, "\0" + asked["abstract"]))
attempt("network", lambda: connected(socket.AF_INET, ("127.0.0.1", asked["port"])))
attempt("signal", lambda: os.kill(asked["parent"], 0))
attempt("program", lambda: open("/usr/bin/vmkeep-planted", "w").close())
attempt("device", lambda: os.mknod("/dev/x", 0o060600, os.makedev(254, 0)) or os.close(os.open("/dev/x", os.O_RDONLY)))
attempt("owner", lambda: os.fchown(asked["descriptor"], 65534, 65534))
def mounted():
    if libc.mount(b"none", b"/dev", b"tmpfs", 0, None):
        raise OSError("mount")
attempt("mount", mounted)
attempt("user", lambda: os.setuid(12345))
print(json.dumps(done))
"""


def _taken_over(ground: Ground, *, confined: bool) -> dict[str, bool]:
    """Run a program as a tool would run, and return what it came to."""
    image = ground.images / "disk.qcow2"
    image.write_bytes(b"x" * 65536)
    image.chmod(0o600)
    descriptor = os.open(image, os.O_RDONLY)
    server = ground.top / "server"
    with (
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.create_server(("127.0.0.1", 0)) as network,
    ):
        server.unlink(missing_ok=True)
        unix.bind(str(server))
        unix.listen()
        abstract.bind(f"\0{server}")
        abstract.listen()
        asked = {
            "image": f"/proc/self/fd/{descriptor}",
            "descriptor": descriptor,
            "secret": str(ground.secret_file),
            "unix": str(server),
            "abstract": str(server),
            "port": network.getsockname()[1],
            "parent": os.getpid(),
        }
        command = ["/usr/bin/python3", "-I", "-S", "-c", _TAKEN_OVER, json.dumps(asked)]
        if confined:
            done = run_confined(command, descriptors=(descriptor,))
        else:
            done = subprocess.run(
                ["unshare", "--mount", "--", *command],
                capture_output=True,
                text=True,
                check=False,
                pass_fds=(descriptor,),
            )
    os.close(descriptor)
    assert done.returncode == 0, done.stderr
    return {name: bool(came) for name, came in json.loads(done.stdout).items()}


def test_tool_that_was_taken_over_reaches_its_images_and_nothing_else(ground: Ground) -> None:
    planted = Path("/usr/bin/vmkeep-planted")
    try:
        reached = _taken_over(ground, confined=True)
        assert reached == {name: name == "image" for name in reached}
        assert not planted.exists()
        free = _taken_over(ground, confined=False)
        # What was asked for can be had where nothing is in the way, so it was the place that kept it off.
        # (Where this is a container itself, neither process 1 nor devices are anybody's.)
        assert {name for name, came in free.items() if not came} <= {"other root", "device", "mount"}
    finally:
        planted.unlink(missing_ok=True)
    ground.secret_file.chmod(0o600)


def test_tools_run_in_such_a_place(ground: Ground) -> None:
    """qemu-nbd itself, while it serves: its root directory, its rights and its namespaces."""
    image = make_qcow2(ground.images / "disk.qcow2")
    with ImageServer(image.path, "qcow2", ground.top / "s", writable=True) as server:
        process = Path(f"/proc/{server.pid}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        assert int(status["CapEff"], 16) == 1 << 1  # CAP_DAC_OVERRIDE
        assert int(status["CapBnd"], 16) == 1 << 1
        assert status["NoNewPrivs"] == "1"
        for kind in ("mnt", "net", "ipc", "pid", "uts"):
            assert (process / "ns" / kind).readlink() != Path(f"/proc/self/ns/{kind}").readlink(), kind
        mounts = [line.split()[1] for line in (process / "mounts").read_text().splitlines()]
        assert {"/", "/usr", "/proc", "/dev/null", str(ground.top)} >= set(mounts) - {"/etc/ld.so.cache"}


def test_place_is_gone_with_its_tool_and_this_process_stays_where_it_was(ground: Ground) -> None:
    before = (Path("/proc/self/mounts").read_text(), sorted(Path("/").iterdir()), Path.cwd())
    started = [
        start_confined(["/usr/bin/sleep", "60"], folders=(ground.top,), pdeathsig="KILL", stdin=subprocess.DEVNULL)
        for _ in range(3)
    ]
    deadline = time.monotonic() + 10
    for each in started:
        while Path(f"/proc/{each.process.pid}/comm").read_text() != "sleep\n":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        each.end()  # the thread ends, and with it the tool
    for each in started:
        each.process.wait(max(0.1, deadline - time.monotonic()))
        assert each.process.returncode == -9
    assert (Path("/proc/self/mounts").read_text(), sorted(Path("/").iterdir()), Path.cwd()) == before


@pytest.mark.usefixtures("ground")
@pytest.mark.parametrize("command", [["/usr/bin/false"], ["/usr/bin/nothing-of-that-name"]])
def test_tool_that_fails_says_so(command: Sequence[str]) -> None:
    assert run_confined(command, descriptors=()).returncode != 0


@pytest.mark.usefixtures("ground")
def test_library_that_is_preloaded_into_us_is_nothing_to_a_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not in the place, and what the loader says of that was taken for the failure of an image's close."""
    monkeypatch.setenv("LD_PRELOAD", "/tmp/elsewhere.so")  # noqa: S108  a name only
    ended = run_confined(["/usr/bin/true"], descriptors=())
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


_DIES_AT_ONCE = """
import os, signal, subprocess, sys
from vmkeep.transfer import confinement
start = subprocess.Popen
def started(*words, **options):
    start(*words, **options)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "unconfined":
    confinement._is_of_system = lambda _program: False
confinement.subprocess.Popen = started
confinement.start_confined(["/usr/bin/sleep", sys.argv[1]], pdeathsig="KILL", stdin=subprocess.DEVNULL)
"""


@pytest.mark.usefixtures("ground")
@pytest.mark.parametrize("how", ["confined", "unconfined"])
def test_tool_of_who_died_before_it_could_hear_of_that_does_not_begin(how: str) -> None:
    """Seen with a qemu-nbd that had the images of a VM open for ever, after a kill 31 ms into a point."""
    seconds = f"6{os.getpid()}.{how == 'confined':d}"
    died = subprocess.run([sys.executable, "-c", _DIES_AT_ONCE, seconds, how], check=False)
    assert died.returncode == -9
    deadline = time.monotonic() + 10
    while left := [words for words in _command_lines() if words.endswith(b"\0" + seconds.encode() + b"\0")]:
        if any(words.startswith(b"/usr/bin/sleep\0") for words in left) or time.monotonic() > deadline:
            pytest.fail(f"still there: {left}")
        time.sleep(0.01)


def _command_lines() -> Iterator[bytes]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (process / "cmdline").read_bytes()
