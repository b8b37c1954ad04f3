"""A place for QEMU's tools in which nothing is but the programs of the system and the images that they inherit.

A format driver that is led astray by a hostile image then finds no other file, no network and no process, and has no
right of root's but to open the descriptors that it was given. See docs/adr/0022.

A thread leaves the namespaces of the process, alone (unshare(2) concerns the thread that calls it), builds a root
directory of its own, starts the tool and stays until that has ended: a tool that is to die with us gets its signal when
the thread ends that started it. That costs 1 to 2 ms, where a program between would cost 20.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vmkeep.logs import get_logger

_log = get_logger(__name__)

_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUTS: Final = 0x04000000
_CLONE_NEWIPC: Final = 0x08000000
_CLONE_NEWPID: Final = 0x20000000
_CLONE_NEWNET: Final = 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH: Final = 2
# The C library has no function for it.
_PIVOT_ROOT: Final = {
    "x86_64": 155,
    "aarch64": 41,
    "riscv64": 41,
    "loongarch64": 41,
    "ppc64le": 203,
    "s390x": 217,
}
# Where the new root directory is mounted before it is the root; what it hides there no tool of QEMU's needs.
_MOUNT_POINT: Final = "/sys"
# With merged directories (Debian from 12 on) all but /usr are links into it.
_SYSTEM: Final = ("usr", "lib", "lib64", "lib32", "bin", "sbin")
_SINGLE_FILES: Final = ("/etc/ld.so.cache", "/dev/null")
# A thread that has left its PID namespace is still in it, only what it starts is not: a /proc that it mounts shows the
# processes of the host (6.18), and among them other tools in such places, as these have no more rights than this one.
_WITH_PROC: Final = 'mount -n -t proc -o nosuid,nodev,noexec,subset=pid,hidepid=ptraceable proc /proc && exec "$@"'
# A signal for our death that is asked for when we are dead never comes, and the tool has its images open for ever
# (seen after a kill 31 ms into a point): between fork and setpriv lie a shell and a mount. So it waits until the thread
# that started it has answered: that one lives, and whenever it ends from then on the signal comes.
_WHEN_ANSWERED: Final = 'echo >&0 && read -r _ && exec "$@" </dev/null'
_RIGHTS: Final = (
    "--bounding-set=-all,+dac_override",
    "--inh-caps=-all",
    "--ambient-caps=-all",
    "--no-new-privs",
)
"""What is left of root: to open the images, whoever's they are. The user stays, for NFS and for reserved blocks."""


class Confined:
    """A tool that runs in a place of its own. ``end`` must be called when it has ended, or must end."""

    def __init__(self, process: subprocess.Popen[Any], ended: threading.Event | None) -> None:
        self.process = process
        self._ended = ended

    def end(self) -> None:
        """Let go of the place; a tool that dies with us dies now, if it still runs."""
        if self._ended is not None:
            self._ended.set()


def start_confined(
    command: Sequence[str], *, folders: Sequence[Path] = (), pdeathsig: str | None = None, **options: Any
) -> Confined:
    """Start a tool, its absolute path first in ``command``, in a place where it finds ``folders`` besides.

    ``pdeathsig`` names the signal that it gets when we die; its standard input is empty then. ``options`` are those of
    ``subprocess.Popen``. Where this process may not make such a place, being no root or in a container without the
    right, the tool runs without. Raises OSError when it cannot be started.
    """
    setpriv = shutil.which("setpriv")
    signal = () if pdeathsig is None else ("--pdeathsig", pdeathsig)
    answered = ("/bin/sh", "-c", _WHEN_ANSWERED, "sh") if signal else ()
    if os.geteuid() == 0 and setpriv is not None and all(map(_is_of_system, (setpriv, command[0]))):
        words = ["/bin/sh", "-c", _WITH_PROC, "sh", setpriv, *signal, *_RIGHTS, "--", *answered, *command]
        started = _Start(words, tuple(map(str, folders)), options, answers=bool(signal))
        process = started.wait()
        if process is not None:
            return Confined(process, started.ended)
        _log.warning("not confined", command=command[0], error=str(started.refused))
    if setpriv is None or not signal:
        return Confined(subprocess.Popen(command, **options), None)
    return Confined(_started_and_answered([setpriv, *signal, "--", *answered, *command], options), None)


def _started_and_answered(words: Sequence[str], options: dict[str, Any]) -> subprocess.Popen[Any]:
    """Start a tool that waits for an answer once it will hear of our death, and answer."""
    ours, its = socket.socketpair()
    with ours:
        with its:
            process = subprocess.Popen(words, **{**options, "stdin": its})
        with suppress(OSError):  # it has ended: whoever waits for it learns of that
            if ours.recv(1):
                ours.sendall(b"\n")
    return process


def _is_of_system(program: str) -> bool:
    """Return whether a program will be found in the place: one that an administrator put elsewhere is not."""
    return os.path.realpath(program).split("/")[1] in _SYSTEM


class _Start:
    """A thread that builds the place, starts the tool there, and waits for its end."""

    def __init__(
        self, command: Sequence[str], folders: Sequence[str], options: dict[str, Any], *, answers: bool
    ) -> None:
        self.ended = threading.Event()
        self.refused: OSError | None = None
        self._command = command
        self._answers = answers
        self._folders = folders
        # A library that is preloaded into us is not in the place: the loader would complain in the tool's own words.
        inherited = options.get("env") or os.environ
        kept = {name: value for name, value in inherited.items() if not name.startswith("LD_")}
        self._options = {**options, "env": kept}
        self._answered = threading.Event()
        self._process: subprocess.Popen[Any] | None = None
        self._failed: BaseException | None = None
        # As a daemon, it keeps no process alive; with the process it dies, and the tool hears of that.
        self._thread = threading.Thread(target=self._run, name="vmkeep-confined", daemon=True)

    def wait(self) -> subprocess.Popen[Any] | None:
        """Return the tool; None when there is no such place here. Raises what starting it raised."""
        self._thread.start()
        try:
            self._answered.wait()
        except BaseException:
            # A matter of milliseconds. What nobody waits for must not go on to change an image.
            self._answered.wait()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self.ended.set()
            raise
        if self._failed is not None:
            raise self._failed
        return self._process

    def _run(self) -> None:
        try:
            _leave(self._folders)
        except OSError as error:
            self.refused = error
            self._answered.set()
            return
        try:
            if self._answers:
                self._process = _started_and_answered(self._command, self._options)
            else:
                self._process = subprocess.Popen(self._command, **self._options)
        except BaseException as error:
            self._failed = error
            self._answered.set()
            return
        self._answered.set()
        self.ended.wait()


@lru_cache(maxsize=1)
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    data = None if options is None else os.fsencode(options)
    if _libc().mount(*words, ctypes.c_ulong(flags), data) != 0:
        _raise(f"mount on {target}")


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), what)


def _leave(folders: Sequence[str]) -> None:
    """Take this thread, and what it starts, into a place of its own. Raises OSError with nothing harmed."""
    pivot_root = _PIVOT_ROOT.get(platform.machine())
    if pivot_root is None or not os.path.isdir(_MOUNT_POINT):  # noqa: PTH112
        raise OSError(errno.ENOSYS, "no confinement on this kind of machine")
    # From here on the thread is of no other use, whatever comes: nobody gets it back.
    if _libc().unshare(_CLONE_NEWNS | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWPID) != 0:
        _raise("unshare")
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    root = _MOUNT_POINT
    _mount("vmkeep", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=256k,nr_inodes=256,mode=755")
    for name in _SYSTEM:
        _bring_system(root, name)
    os.mkdir(f"{root}/etc")  # noqa: PTH102  nothing is to be imported or looked up in here
    os.mkdir(f"{root}/dev")  # noqa: PTH102
    os.mkdir(f"{root}/proc")  # noqa: PTH102
    for path in _SINGLE_FILES:
        if os.path.exists(path):  # noqa: PTH110
            os.close(os.open(root + path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            _mount(path, root + path, None, _MS_BIND)
    os.symlink("/proc/self/fd", f"{root}/dev/fd")  # noqa: PTH211
    for folder in folders:
        os.makedirs(root + folder)  # noqa: PTH103
        _mount(folder, root + folder, None, _MS_BIND)
        _mount(None, root + folder, None, _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.chdir(root)
    if _libc().syscall(ctypes.c_long(pivot_root), b".", b".") != 0:
        _raise("pivot_root")
    if _libc().umount2(b".", _MNT_DETACH) != 0:
        _raise("umount")
    os.chdir("/")


def _bring_system(root: str, name: str) -> None:
    try:
        mode = os.lstat(f"/{name}").st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")  # noqa: PTH115, PTH211
    elif stat.S_ISDIR(mode):
        os.mkdir(f"{root}/{name}")  # noqa: PTH102
        _mount(f"/{name}", f"{root}/{name}", None, _MS_BIND)
        _mount(None, f"{root}/{name}", None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)


def run_confined(command: Sequence[str], *, descriptors: tuple[int, ...]) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end, also when we die meanwhile: it may be in the middle of a change to an image."""
    started = start_confined(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # In a session of its own: Ctrl-C would end it at once, and the command would tell of a tool that failed.
        start_new_session=True,
        pass_fds=descriptors,
    )
    try:
        with started.process as process:
            try:
                output, errors = process.communicate()
            except BaseException:
                process.kill()
                raise
            return subprocess.CompletedProcess(command, process.returncode, output, errors)
    finally:
        started.end()
