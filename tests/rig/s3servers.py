"""Real S3 servers: OpenStack Swift, which .venv has, and Ceph's gateway, where `make ceph` has installed it.

Each is started once for a process that asks, on this host alone, and ends with it. Swift is what runs everywhere: it
checks signatures and keeps objects in files, but lets several win who create one object at once. Ceph's gateway lets
one win, knows policies and versions, and takes 260 MB of packages, so its tests are for those who set VMKEEP_CEPH=1.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from vmkeep.buckets import BucketAccess, Credentials
from vmkeep.repository.signedrequest import Answer, ask

_START_SECONDS: Final = 60


class S3Server:
    """A server with two users of its own. ``user`` may do everything in what it makes."""

    name: str
    atomic: bool
    """Whether only one wins of several who create an object at the same time."""
    endpoint: str
    user: Credentials
    other: Credentials

    def access(
        self, credentials: Credentials | None = None, *, endpoint: str = "", patience: float = 20
    ) -> BucketAccess:
        return BucketAccess(
            endpoint=endpoint or self.endpoint,
            path_style=True,
            credentials=credentials or self.user,
            patience_seconds=patience,
        )

    def new_bucket(self) -> str:
        bucket = f"b{secrets.token_hex(8)}"
        self.ask("PUT", f"/{bucket}")
        return bucket

    def ask(self, method: str, path: str, body: bytes = b"", *, expect: int = 200, **query: str) -> Answer:
        """Send a request as ``user``: past vmkeep's code, but for the signature."""
        answer = ask(self.access(), self.user, method, path, query=query, body=body)
        assert answer.status // 100 == expect // 100, (method, path, answer)
        return answer

    def introduce(self, home: Path, credentials: Credentials | None = None, *, endpoint: str = "") -> None:
        """Let the settings of an installation that is to be made say how this server is reached."""
        home.mkdir(mode=0o700)
        signed, keys = credentials or self.user, home / "s3.credentials"
        keys.touch(mode=0o600)
        section = f"aws_access_key_id = {signed.access_key}\naws_secret_access_key = {signed.secret_key}\n"
        keys.write_text(f"[default]\n{section}")
        table = f'[s3]\nendpoint = "{endpoint or self.endpoint}"\ncredentials_file = "{keys}"\n'
        (home / "vmkeep.toml").write_text(f"stalled_after_seconds = 30\n{table}")


def _directory() -> Path:
    # Swift keeps what it knows of an object in attributes of its file, which not every /tmp has.
    directory = Path(tempfile.mkdtemp(prefix="vmkeep-s3-", dir="/root" if os.geteuid() == 0 else Path.home()))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def free_port() -> int:
    """Return a port that nothing listens on, and that the system gives to nobody who connects to something."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _start(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        server = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGKILL)
        server.wait()


def _listens(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        assert server.poll() is None, f"{server.args!r} has ended: {log.read_text()[-2000:]}"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        assert time.monotonic() < until, f"{server.args!r} does not listen"
        time.sleep(0.05)


_SWIFT_CONF: Final = """[swift-hash]
swift_hash_path_prefix = p
swift_hash_path_suffix = s
[storage-policy:0]
name = one
default = yes
"""
_SWIFT_PROXY: Final = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth
  copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
object_chunk_size = 1048576
client_chunk_size = 1048576
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:9
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
user_test2_tester2 = testing2 .admin
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_object_versioning = true
"""
_SWIFT_PLAIN: Final = (
    "catch_errors",
    "gatekeeper",
    "healthcheck",
    "listing_formats",
    "bulk",
    "copy",
    "slo",
    "dlo",
    "symlink",
)
_SWIFT_RINGS: Final = """
import json, sys
from swift.common.ring import RingBuilder
etc, ports = sys.argv[1], json.loads(sys.argv[2])
for name, port in ports.items():
    ring = RingBuilder(4, 1, 1)
    ring.add_dev(dict(region=1, zone=1, ip="127.0.0.1", port=port, device="d1", weight=1.0, meta="",
                      replication_ip="127.0.0.1", replication_port=port))
    ring.rebalance()
    ring.get_ring().save(f"{etc}/{name}.ring.gz")
"""
# Its own launchers look into /etc/swift.
_SWIFT_SERVER: Final = """
import sys
from swift.common import utils
utils.set_swift_dir(sys.argv.pop(1))
from swift.common.utils import parse_options
from swift.common.wsgi import run_wsgi
name, more = sys.argv.pop(1), {}
if name == "object":
    from swift.obj.server import global_conf_callback
    more = {"global_conf_callback": global_conf_callback}
conf, options = parse_options()
sys.exit(run_wsgi(conf, f"{name}-server", **more, **options))
"""


class Swift(S3Server):
    """OpenStack Swift: a proxy with its S3 face, and a server each for accounts, containers and objects."""

    name = "swift"
    atomic = False

    def __init__(self) -> None:
        directory = _directory()
        ports = {name: free_port() for name in ("account", "container", "object")}
        proxy = free_port()
        etc = directory / "etc"
        etc.mkdir()
        (directory / "node/d1").mkdir(parents=True)
        (etc / "swift.conf").write_text(_SWIFT_CONF)
        common = "bind_ip = 127.0.0.1\nworkers = 0\nlog_level = ERROR\nlog_address = /dev/null\nuser = root\n"
        if os.geteuid() != 0:
            common = common.replace("user = root", f"user = {Path.home().owner()}")
        for name, port in ports.items():
            (etc / f"{name}.conf").write_text(
                f"[DEFAULT]\nbind_port = {port}\nswift_dir = {etc}\n{common}devices = {directory}/node\n"
                "mount_check = false\ndisable_fallocate = true\nfallocate_reserve = 0\n"
                f"recon_cache_path = {directory}\n[pipeline:main]\npipeline = {name}-server\n"
                f"[app:{name}-server]\nuse = egg:swift#{name}\n"
            )
        plain = "".join(f"[filter:{name}]\nuse = egg:swift#{name}\n" for name in _SWIFT_PLAIN)
        head = f"[DEFAULT]\nbind_port = {proxy}\nswift_dir = {etc}\n{common}"
        (etc / "proxy.conf").write_text(head + _SWIFT_PROXY + plain)
        env = {"HOME": str(directory), "PATH": os.environ["PATH"]}
        rings = [sys.executable, "-W", "ignore", "-c", _SWIFT_RINGS, str(etc), json.dumps(ports)]
        subprocess.run(rings, env=env, check=True, capture_output=True)
        log = directory / "log"
        servers = []
        for name, port in {**ports, "proxy": proxy}.items():
            command = [sys.executable, "-W", "ignore", "-c", _SWIFT_SERVER, str(etc), name, str(etc / f"{name}.conf")]
            servers.append((_start(command, log, env), port))
        for server, port in servers:
            _listens(server, port, log)
        self.endpoint = f"http://127.0.0.1:{proxy}"
        self.user = Credentials("test:tester", "testing")
        self.other = Credentials("test2:tester2", "testing2")


class Ceph(S3Server):
    """Ceph's gateway before one monitor and one store in memory."""

    name = "ceph"
    atomic = True

    def __init__(self) -> None:
        directory = _directory()
        self._directory = directory
        first = free_port()
        for name in ("run", "mon.a", "osd.0"):
            (directory / name).mkdir()
        monitor = f"[v2:127.0.0.1:{free_port()},v1:127.0.0.1:{free_port()}]"
        fsid, osd = (str(uuid.uuid4()) for _ in range(2))
        (directory / "ceph.conf").write_text(_ceph_conf(directory, fsid, monitor, first))
        self._env = {"PATH": os.environ["PATH"], "CEPH_CONF": f"{directory}/ceph.conf"}
        tool, ring, log = "ceph-authtool", f"{directory}/keyring", directory / "log"
        self._run(tool, "--create-keyring", ring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        everything = [word for kind in ("mon", "osd") for word in ("--cap", kind, "allow *")]
        self._run(tool, ring, "--gen-key", "-n", "client.admin", *everything)
        self._run(tool, ring, "--gen-key", "-n", "client.rgw", *everything)
        secret = self._run(tool, "--gen-print-key").strip()
        self._run(tool, "--create-keyring", f"{directory}/osd.0/keyring", "-n", "osd.0", "--add-key", secret)
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, f"{directory}/monmap")
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{directory}/monmap", "--keyring", ring)
        _start(["ceph-mon", "-i", "a", "-f"], log, self._env)
        self._run("ceph", "osd", "new", osd, "0", "-i", "-", text=json.dumps({"cephx_secret": secret}))
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        _start(["ceph-osd", "-i", "0", "-f"], log, self._env)
        until = time.monotonic() + _START_SECONDS
        while "1 up" not in self._run("ceph", "osd", "stat"):
            assert time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.1)
        self._run("ceph", "osd", "crush", "reweight", "osd.0", "1.0")
        self.user, self.other = self.new_user("user"), self.new_user("other")
        _listens(_start(["radosgw", "-n", "client.rgw", "-f"], log, self._env), first, log)
        self.endpoint = f"http://127.0.0.1:{first}"

    def new_user(self, name: str) -> Credentials:
        key, secret = f"AK{name.upper()}", secrets.token_hex(16)
        made = ("user", "create", f"--uid={name}", f"--display-name={name}")
        self._run("radosgw-admin", *made, f"--access-key={key}", f"--secret={secret}")
        return Credentials(key, secret)

    def _run(self, *command: str, text: str = "") -> str:
        done = subprocess.run(
            command, env=self._env, input=text, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout


def _ceph_conf(directory: Path, fsid: str, monitor: str, port: int) -> str:
    # auth must be on: the gateway does not connect without. The intervals make new pools quick.
    return f"""[global]
fsid = {fsid}
mon host = {monitor}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
public addr = 127.0.0.1
cluster addr = 127.0.0.1
run dir = {directory}/run
admin socket = {directory}/run/$name.asok
log file = {directory}/log.$name
crash dir = {directory}/run
pid file =
keyring = {directory}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
mon max pg per osd = 1000
osd objectstore = memstore
memstore device bytes = 2147483648
osd op num shards = 2
paxos propose interval = 0.05
paxos min wait = 0.01
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = false
osd class load list = *
osd class default list = *
[mon.a]
mon data = {directory}/mon.a
[osd.0]
keyring = {directory}/osd.0/keyring
osd data = {directory}/osd.0
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 32
rgw enable usage log = false
rgw run sync thread = false
rgw data = {directory}/run
keyring = {directory}/keyring
"""


@functools.cache
def swift() -> Swift:
    return Swift()


@functools.cache
def ceph() -> Ceph:
    if not os.environ.get("VMKEEP_CEPH"):
        pytest.skip("VMKEEP_CEPH=1 runs the tests with Ceph's gateway (make ceph)")
    if shutil.which("radosgw") is None:
        pytest.fail("VMKEEP_CEPH is set, and radosgw is not installed (make ceph)")
    return Ceph()


SERVERS: Final = {"swift": swift, "ceph": ceph}
