"""A cluster of PostgreSQL of the tests' own: a private socket, no network, nothing synced, gone with the process.

Its locale sorts in another way than by code points, so that a catalogue that leaves the order to the server is found
out.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from tests.rig.errors import RigError

_PROGRAMS: Final = Path("/usr/lib/postgresql")
_START_SECONDS: Final = 60
_SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",
}


def postgres_programs() -> Path | None:
    """Return the directory of the newest PostgreSQL that is installed; None for none."""
    found = [path.parent for path in _PROGRAMS.glob("*/bin/postgres")]
    return max(found, key=lambda directory: float(directory.parent.name), default=None)


class Cluster:
    """A server with its databases.

    With ``small_bytes`` it has ``small``, a place for tables that is full when it holds so much. Only root makes one.
    With ``durable_in``, a directory on a disk, it syncs what it is to keep.
    """

    def __init__(self, programs: Path, *, small_bytes: int | None = None, durable_in: Path | None = None) -> None:
        self.programs = programs
        self.dir = Path(tempfile.mkdtemp(prefix="vmkeep-postgres-", dir=durable_in))
        self._durable = {} if durable_in is None else {"fsync": "on", "full_page_writes": "on"}
        self._names = (f"test{number}" for number in itertools.count())
        self._templates: dict[Callable[[str], object], str] = {}
        self.small = self.dir / "small"
        self._in_namespace: list[str] = []
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # whom PostgreSQL refuses
            user = pwd.getpwnam("postgres")
            os.chown(self.dir, user.pw_uid, user.pw_gid)
            mount = f"mount -t tmpfs -o size={small_bytes},mode=0700,uid={user.pw_uid} small {self.small} && exec "
            if small_bytes is not None:
                self.small.mkdir()
                self._in_namespace = ["unshare", "--mount", "sh", "-c", mount + '"$@"', "sh"]
            self._as_user = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        made = ["--auth=trust", "--username=vmkeep", "--encoding=UTF8", "--locale-provider=icu", "--icu-locale=en-US"]
        self._run("initdb", "--pgdata", str(self.dir / "data"), *made, "--locale=C.UTF-8", "--no-sync")
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start the server, and wait until it takes connections. It ends with the process that started it."""
        settings = {**_SETTINGS, **self._durable, "unix_socket_directories": str(self.dir)}
        options = [f"--{name}={value}" for name, value in settings.items()]
        command = [*self._in_namespace, "setpriv", *self._as_user, "--pdeathsig=INT"]
        command += [str(self.programs / "postgres"), "-D", str(self.dir / "data"), *options]
        with (self.dir / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._connected().close()
                return self.process
            except psycopg.OperationalError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RigError(f"PostgreSQL does not start: {(self.dir / 'log').read_text()}") from error
                time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT as an administrator would, SIGQUIT as a crash does."""
        self.process.send_signal(number)
        self.process.wait(_START_SECONDS)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.dir)

    def url(self, name: str, **options: str) -> str:
        """Return the address of a database."""
        told = "".join(f"&{option}={quote(value, safe='')}" for option, value in options.items())
        return f"postgresql://vmkeep@/{name}?host={quote(str(self.dir), safe='')}{told}"

    @contextlib.contextmanager
    def database(self, prepare: Callable[[str], object] | None = None, *, encoding: str | None = None) -> Iterator[str]:
        """Yield the address of a new database, which is removed afterwards.

        ``prepare`` is given the address of an empty one, once for all databases that are then copies of it.
        """
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {}{}")
        locale = sql.SQL(" LOCALE_PROVIDER libc LOCALE 'C' ENCODING {}").format(encoding or "UTF8")
        name = next(self._names)
        with contextlib.closing(self._connected()) as connection:
            template = "template0" if prepare is None else self._template(connection, prepare)
            connection.execute(
                made.format(sql.Identifier(name), sql.Identifier(template), locale if encoding else sql.SQL(""))
            )
            try:
                yield self.url(name)
            finally:
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _template(self, connection: psycopg.Connection[tuple[object, ...]], prepare: Callable[[str], object]) -> str:
        if prepare not in self._templates:
            name = next(self._names)
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
            prepare(self.url(name))
            self._templates[prepare] = name
        return self._templates[prepare]

    def _connected(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url("postgres"), autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = ["setpriv", *self._as_user, str(self.programs / program), *arguments]
        ended = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise RigError(f"{program}: {ended.stderr}")


@functools.cache
def shared_cluster() -> Cluster:
    """Return the cluster of this process, which is started when it is first asked for. Raises RigError without one."""
    programs = postgres_programs()
    if programs is None:
        raise RigError("PostgreSQL is not installed (make dev)")
    cluster = Cluster(programs)
    atexit.register(cluster.remove)
    return cluster
