"""A libvirt host of its own: libvirtd and virtlogd in private mount, network, UTS and PID namespaces.

Every path means the same inside and outside, except those in ``host_init.PRIVATE_DIRECTORIES`` (``Host.path``
translates them). So vmkeep runs inside (``Host.run``, ``Host.popen``) and meets the same socket, files and process
table as libvirtd, while the rig stays outside and shares disks, NBD sockets and the libvirt connection with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import libvirt
from lxml import etree
from lxml.builder import E

from tests.rig import certificates, namespaces
from tests.rig.domain_xml import DirectBoot, Secret
from tests.rig.errors import RigError
from tests.rig.forking import CommandForks
from tests.rig.host_init import IDLE_FIRMWARE, PRIVATE_DIRECTORIES, SWTPM_CA_CONFIG
from tests.rig.vm import Disk, Vm
from tests.rig.way import on_the_way
from vmkeep.hypervisor.release import free_unused

_PARENT_DIRECTORY = Path("/var/tmp")  # noqa: S108 -- disks do not belong on a tmpfs; mkdtemp makes the name
_PREFIX = "vmkeep-rig-"
_PROJECT = Path(__file__).resolve().parents[2]
_QEMU_USER = "libvirt-qemu"
_SWTPM_USER = "tss"

_REQUIRED_COMMANDS = (
    "ip",
    "libvirtd",
    "nbdcopy",
    "nbdinfo",
    "nsenter",
    "qemu-img",
    "qemu-system-x86_64",
    "swtpm",
    "swtpm_setup",
    "unshare",
    "virtlogd",
)
_LIBVIRTD_CONF = """\
host_uuid = "{host_uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
"""
# Without control groups and QEMU's private /dev two hosts on one machine cannot meet in /sys/fs/cgroup, and nothing
# is left there. Files still change owner to the QEMU user, as on any host. Without that capability libvirt 9.0 asks a
# QEMU that starts for all features of its processor at once and not for each of 229, which QEMU reads byte by byte:
# a start takes 0.1 s in place of 0.4, nine tenths of its processor time less.
_QEMU_CONF = """\
cgroup_controllers = []
namespaces = []
security_driver = "none"
capability_filters = [ "cpu-unavailable-features" ]
"""
# Where an x86 begins, the last 16 bytes below 4 GiB: cli; hlt; jmp to the hlt.
_HALT = b"\xfa\xf4\xeb\xfd".ljust(16, b"\0")
_END_SECONDS = 10.0
_VIRTLOGD_CONF = "max_size = 0\n"  # never rotates: the rig reads results of guest writes from the log


def missing_requirements() -> list[str]:
    """Return what this machine lacks for a host, as words for a person; empty when nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [f"command {name}" for name in _REQUIRED_COMMANDS if shutil.which(name, path=path) is None]
    if not any(Path("/usr/share/OVMF").glob("OVMF_CODE*.fd")):
        missing.append("firmware in /usr/share/OVMF (package ovmf)")
    if os.geteuid() != 0:
        missing.append("root")
    return missing


class Host:
    """One libvirt host; a context manager. It ends with the process that made it, however that ends.

    ``dir`` holds everything: ``disks``, ``home`` (VMKEEP_HOME of what runs inside), ``work`` for files of tests, and
    the private directories. It is removed at ``close``; what killed runs left is removed by the next start.

    ``idle_firmware``: UEFI is there as ever, with its variables, but halts the processor at once. So a guest runs and
    is at rest, and changes neither variables nor TPM, without the 6 s of a processor that a real one boots.
    """

    def __init__(self, name: str = "alpha", *, idle_firmware: bool = False) -> None:
        self.name = name
        self._idle_firmware = idle_firmware
        self.host_uuid = str(uuid.uuid4())
        self.dir = Path()
        self._connection: libvirt.virConnect | None = None
        self._process: subprocess.Popen[str] | None = None
        self._lock_descriptor = -1
        self._init_pid = 0
        self._passphrases: dict[str, str] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start libvirt and wait until it knows its emulator, about 1 s. Raises RigError with what it said."""
        _remove_directories_of_dead_hosts()
        self._make_directory()
        self._boot()

    def lose_power(self) -> None:
        """Kill every process of the host at one moment. Whoever started one with ``popen`` reaps it."""
        assert self._process is not None
        self._connection = None  # its daemon is gone
        self._process.kill()  # and with it process 1 (--kill-child), with which the kernel ends all others
        self._process.wait()

    def boot_again(self) -> None:
        """Start the host after ``lose_power``, with an empty ``/run``."""
        assert self._process is not None
        deadline = time.monotonic() + 20
        while Path(f"/proc/{self._init_pid}").exists():
            if time.monotonic() > deadline:
                raise RigError(f"host {self.name} does not end")
            time.sleep(0.02)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        run = self.dir / PRIVATE_DIRECTORIES["/run"]
        for entry in run.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (run / "lock").mkdir()
        (self.dir / "kvm").unlink(missing_ok=True)
        self._boot()

    def _boot(self) -> None:
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
        environment.pop("PYTHONPATH", None)
        init = [sys.executable, "-I", "-S", str(Path(__file__).with_name("host_init.py")), str(self.dir), self.name]
        unshare = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--propagation=private"]
        errors = (self.dir / "init.err").open("w")
        with errors:
            self._process = subprocess.Popen(
                [*unshare, *on_the_way(*init)],
                stdin=subprocess.PIPE,  # its end of file is what ends the host
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the tests, which then close the host
            )
        assert self._process.stdout is not None
        word, _, pid = self._process.stdout.readline().partition(" ")
        if word != "ready":
            message = (self.dir / "init.err").read_text().strip()
            self.close()
            raise RigError(f"host {self.name} did not start: {message}")
        self._init_pid = int(pid)
        self.connection.getCapabilities()  # returns when libvirtd has asked QEMU what it can do

    def close(self) -> None:
        """End every process of the host and remove its directory."""
        if self._connection is not None:
            with contextlib.suppress(libvirt.libvirtError):
                free_unused()  # each of them keeps the connection open
                self._connection.close()
            self._connection = None
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            self._process = None
        if self._lock_descriptor >= 0:
            certificates.keep(self.dir)
            shutil.rmtree(self.dir, ignore_errors=True)
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    @property
    def init_pid(self) -> int:
        """The process id, seen from outside, of the host's process 1."""
        return self._init_pid

    def signal_libvirtd(self, number: signal.Signals) -> str:
        """Send libvirtd a signal; return its process id as the host sees it."""
        inner_pid = self.path("/run/libvirtd.pid").read_text().strip()
        self.run(["kill", f"-{number.name.removeprefix('SIG')}", inner_pid], check=True)
        return inner_pid

    def restart_libvirtd(self, kill_signal: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd with the signal and start it again; guests go on."""
        self.end_libvirtd(kill_signal)
        self.start_libvirtd()

    def end_libvirtd(self, kill_signal: signal.Signals = signal.SIGTERM) -> None:
        """End libvirtd with the signal; guests go on."""
        inner_pid = self.signal_libvirtd(kill_signal)
        # It gives its threads 30 s to end before it exits all the same (virnetdaemon.c); 11.3 was seen to take them.
        deadline = time.monotonic() + 45
        while self.run(["kill", "-0", inner_pid]).returncode == 0:
            if time.monotonic() > deadline:
                raise RigError(f"libvirtd of host {self.name} does not end")
            time.sleep(0.02)
        self._connection = None

    def start_libvirtd(self) -> None:
        """Start libvirtd again."""
        self.run(["libvirtd", "--daemon"], check=True)

    @contextlib.contextmanager
    def hung_libvirtd(self) -> Iterator[None]:
        """Let libvirtd take calls and answer none; meanwhile nothing here may use ``connection``."""
        self.signal_libvirtd(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal_libvirtd(signal.SIGCONT)

    # -- reaching it -----------------------------------------------------------------------------------------

    @property
    def connection(self) -> libvirt.virConnect:
        """A connection of this process to the host's libvirtd, opened again when it was lost."""
        if self._connection is None or not self._connection.isAlive():
            libvirt.registerErrorHandler(lambda _context, _error: None, None)  # or every error is printed as well
            self._connection = libvirt.open(self.outer_uri)
        return self._connection

    @property
    def outer_uri(self) -> str:
        """The host's libvirt for processes outside; inside it is qemu:///system."""
        return f"qemu+unix:///system?socket={self.path('/run/libvirt/libvirt-sock')}"

    def path(self, path: str | Path) -> Path:
        """Return where the file that is ``path`` inside the host is to be found from outside."""
        inner = Path(path)
        for target, private in PRIVATE_DIRECTORIES.items():
            if inner.is_relative_to(target):
                return self.dir / private / inner.relative_to(target)
        return inner

    @property
    def environment(self) -> dict[str, str]:
        """The environment of what runs inside: this process's, the host's libvirt, and a home for vmkeep."""
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
        return {
            **os.environ,
            "PATH": path,
            "LIBVIRT_DEFAULT_URI": "qemu:///system",
            "VMKEEP_HOME": str(self.dir / "home"),
        }

    def popen(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        start_new_session: bool = False,
    ) -> subprocess.Popen[str]:
        """Start a command inside the host. It is a child of this process: its ``pid`` can be killed and waited for.

        ``env`` is added to ``environment``; ``cwd`` is the directory of the host unless given.
        """
        inside = namespaces.entering_command(self._init_pid, [str(word) for word in command], str(cwd or self.dir))
        with namespaces.children_in_pid_namespace_of(self._init_pid):
            return subprocess.Popen(
                inside,
                env={**self.environment, **(env or {})},
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                text=True,
                start_new_session=start_new_session,
            )

    def run(
        self,
        command: Sequence[str | Path],
        *,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,  # noqa: A002 -- as in subprocess.run
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the host to its end; with ``check`` a failure is a RigError that shows its output."""
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        with self.popen(command, env=env, cwd=cwd, stdin=stdin) as process:
            try:
                output, errors = process.communicate(input, timeout=timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            words = " ".join(str(word) for word in command)
            raise RigError(f"{words}: exit status {process.returncode}\n{output}{errors}".rstrip())
        return subprocess.CompletedProcess([str(word) for word in command], process.returncode, output, errors)

    @property
    def forks(self) -> CommandForks:
        """What forks vmkeep's commands inside the host."""
        return CommandForks(self)

    # -- its VMs ---------------------------------------------------------------------------------------------

    def define(
        self,
        name: str,
        *,
        disks: Sequence[Disk] = (Disk("vda"),),
        firmware: str = "uefi",
        tpm: bool = True,
        memory_mib: int = 64,
        device_xml: Sequence[str] = (),
        boot: DirectBoot | None = None,
        tpm_backend: str | None = None,
        edit: Callable[[etree._Element], None] | None = None,
    ) -> Vm:
        """Define a VM with new disks. ``firmware`` is ``uefi`` or ``bios``; ``device_xml`` goes into its devices.

        ``tpm_backend`` is the TPM's <backend> in place of the usual one.
        ``edit`` changes the definition before libvirt gets it.
        ``boot`` makes it a guest with an operating system (tests/guest); without one only its firmware runs.
        """
        return Vm.define(
            self,
            name,
            disks=disks,
            firmware=firmware,
            tpm=tpm,
            memory_mib=memory_mib,
            device_xml=device_xml,
            boot=boot,
            tpm_backend=tpm_backend,
            edit=edit,
        )

    def secret(
        self,
        value: str = "open sesame",
        *,
        private: bool = False,
        ephemeral: bool = True,
        secret_uuid: str | None = None,
        usage: str | None = None,
    ) -> Secret:
        """Give libvirt a secret for disks. A private one is told to QEMU alone; one with a usage is named by that.

        An ephemeral one is gone when libvirtd is started again.
        """
        secret = Secret(secret_uuid or str(uuid.uuid4()), value, usage)
        element = E.secret(
            E.uuid(secret.uuid), ephemeral="yes" if ephemeral else "no", private="yes" if private else "no"
        )
        if usage is not None:
            element.append(E.usage(E.volume(usage), type="volume"))
        self.connection.secretDefineXML(etree.tostring(element, encoding="unicode")).setValue(value.encode())
        self._passphrases[usage or secret.uuid] = value
        return secret

    def passphrase(self, secret: str) -> str:
        """Return the value of a secret that a test made, by its UUID or usage."""
        return self._passphrases[secret]

    def secret_uuids(self) -> set[str]:
        """Return the UUIDs of all secrets that libvirt has now."""
        return {secret.UUIDString() for secret in self.connection.listAllSecrets()}

    def define_secret(self, value: bytes | None, *, name: str = "tpm", private: bool = False) -> str:
        """Define a secret of libvirt for a vTPM and return its UUID. ``value`` None leaves it without one."""
        secret = self.connection.secretDefineXML(
            f"<secret ephemeral='no' private='{'yes' if private else 'no'}'><usage type='vtpm'><name>{name}</name>"
            "</usage></secret>"
        )
        if value is not None:
            secret.setValue(value)
        return secret.UUIDString()

    def secrets(self) -> dict[str, bytes]:
        """Return the values of all secrets by UUID; none of them may be private."""
        return {secret.UUIDString(): secret.value() for secret in self.connection.listAllSecrets()}

    def vm(self, name: str) -> Vm:
        """Return a VM that something else defined, a restore for instance."""
        return Vm(self, self.connection.lookupByName(name).UUIDString(), name)

    def kill_vm(self, name: str) -> None:
        """Kill the QEMU of a VM and its swtpm, and return when they are gone; those that are gone do not matter."""
        run = self.path("/run/libvirt/qemu")
        for pid in self._daemons([*run.glob(f"swtpm/*-{name}-swtpm.pid"), run / f"{name}.pid"]):
            with contextlib.suppress(ProcessLookupError):
                _kill(pid)

    def qemu_pid(self, name: str) -> int:
        """Return a VM's QEMU as it is numbered outside of the host. Raises ValueError for one that is off."""
        (pid,) = self._daemons([self.path("/run/libvirt/qemu") / f"{name}.pid"])
        return pid

    def _daemons(self, pid_files: Sequence[Path]) -> Iterator[int]:
        """Yield the numbers outside of the host of those that are named inside: children of its first process."""
        inner = set()
        for path in pid_files:
            with contextlib.suppress(FileNotFoundError):
                inner.add(path.read_text().strip())
        for child in Path(f"/proc/{self._init_pid}/task/{self._init_pid}/children").read_text().split():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = Path(f"/proc/{child}/status").read_text()
                if any(f"NSpid:\t{child}\t{pid}\n" in status for pid in inner):
                    yield int(child)

    def clear(self) -> None:
        """Remove every VM, whoever defined it, every secret and hook, and all files in the directories of tests.

        And the state files of VMs that are gone: a migration leaves the UEFI variables on the host that it comes from.
        """
        for domain in self.connection.listAllDomains():
            Vm(self, domain.UUIDString(), domain.name()).delete()
        for secret in self.connection.listAllSecrets():
            secret.undefine()
        self._passphrases.clear()
        of_libvirt = ("/var/lib/libvirt/swtpm", "/var/lib/libvirt/qemu/nvram", "/etc/libvirt/hooks/qemu.d")
        for directory in (
            *(self.dir / name for name in ("disks", "home", "work", "jobs")),
            *map(self.path, of_libvirt),
        ):
            for entry in directory.iterdir() if directory.is_dir() else ():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink(missing_ok=True)  # a guardian that ends just now removes its scratch

    # -- set-up ----------------------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_PARENT_DIRECTORY))
        self.dir.chmod(0o755)  # QEMU runs as another user
        self._lock_descriptor = os.open(self.dir, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(self._lock_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in ("disks", "home", "work", "jobs", *PRIVATE_DIRECTORIES.values()):
            (self.dir / name).mkdir()
        shutil.chown(self.dir / "jobs", _QEMU_USER)  # QEMU makes the sockets of backup jobs itself
        (self.dir / "run" / "lock").mkdir()
        (self.dir / "log" / "libvirt").mkdir()
        for name, content in (
            ("libvirtd.conf", _LIBVIRTD_CONF.format(host_uuid=self.host_uuid)),
            ("qemu.conf", _QEMU_CONF),
            ("virtlogd.conf", _VIRTLOGD_CONF),
        ):
            (self.dir / "etc" / name).write_text(content)
        (self.dir / "etc" / "hooks").mkdir()
        if self._idle_firmware:
            size = Path("/usr/share/OVMF/OVMF_CODE_4M.fd").stat().st_size
            (self.dir / IDLE_FIRMWARE).write_bytes(bytes(size - len(_HALT)) + _HALT)
        authority = self.dir / "swtpm-localca"
        authority.mkdir()
        shutil.chown(authority, _SWTPM_USER)
        config = Path(SWTPM_CA_CONFIG).read_text()
        (self.dir / "swtpm-localca.conf").write_text(config.replace("/var/lib/swtpm-localca", str(authority)))
        certificates.prepare(self.dir)


def _kill(pid: int) -> None:
    """Kill a process that is no child of this one, and return when it is gone."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], _END_SECONDS)
    finally:
        os.close(process)


def _remove_directories_of_dead_hosts() -> None:
    for directory in _directories_without_owner():
        shutil.rmtree(directory, ignore_errors=True)


def _directories_without_owner() -> Iterator[Path]:
    """Yield rig directories whose lock is free: their process died. Very new ones may not be locked yet."""
    for directory in _PARENT_DIRECTORY.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - directory.stat().st_mtime < 60:
                continue
            descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield directory
            finally:
                os.close(descriptor)
