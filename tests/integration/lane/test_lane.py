"""The lane without a Debian: what it refuses, what it passes on, and that it leaves nothing of itself behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lane import checkout, site
from lane.__main__ import main
from lane.errors import LaneError
from lane.room import Room, run_in_private_mounts, run_in_room
from lane.tree import Tree, mounts_below, remove

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are made by root")
INSIDE = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    """A root that is this machine's /usr, seen through a directory that could be a Debian tree."""
    root = tmp_path / "tree"
    for name in ("proc", "sys", "dev", "run", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    return Room(root, "lane-test", readable=[Path("/usr")])


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A tree in which a tmpfs is mounted, with a file that must live."""
    point = tmp_path / "tree" / "with a space"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    (point / "device").write_text("alive")
    yield point
    subprocess.run(["umount", point], check=True)


def in_room(room: Room, command: str) -> int:
    return run_in_room(room, ["/bin/sh", "-c", command], INSIDE, "/")


@pytest.mark.parametrize(
    "words", [["--suite", "woody"], ["--name", "a/b"], ["--name", ".."], ["--name", "cache"], [""]]
)
def test_words_that_mean_nothing_are_refused_before_anything_is_made(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--directory", str(tmp_path / "lanes"), *words])
    assert ended.value.code == 2
    assert not (tmp_path / "lanes").exists()


@needs_root
def test_a_tree_in_which_something_is_mounted_is_not_removed(mounted: Path) -> None:
    with pytest.raises(LaneError, match="with a space is mounted; unmount it first"):
        remove(mounted.parent)
    assert (mounted / "device").read_text() == "alive"


@needs_root
def test_the_command_that_removes_a_lane_refuses_as_well(mounted: Path, tmp_path: Path) -> None:
    (tmp_path / "lanes" / "x").mkdir(parents=True)
    subprocess.run(["mv", mounted.parent, tmp_path / "lanes" / "x" / "tree"], check=True)
    moved = tmp_path / "lanes" / "x" / "tree" / mounted.name
    try:
        assert main(["--directory", str(tmp_path / "lanes"), "--name", "x", "--remove"]) == 2
        assert (moved / "device").read_text() == "alive"
    finally:
        subprocess.run(["mv", tmp_path / "lanes" / "x" / "tree", mounted.parent], check=True)


def test_mounts_are_found_below_a_directory_and_not_beside_it() -> None:
    lines = [
        "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw",
        "23 22 0:5 / /var/lanes rw - devtmpfs devtmpfs rw",
        "24 22 0:5 / /var/lane/tree/a\\040dev rw - devtmpfs devtmpfs rw",
        "25 22 0:5 / /var/lane/tree rw - tmpfs tmpfs rw",
    ]
    found = mounts_below(Path("/var/lane/tree"), "\n".join(lines))
    assert found == [Path("/var/lane/tree/a dev"), Path("/var/lane/tree")]


def test_a_lane_is_removed_whole_and_used_by_one_at_a_time(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "lane", "trixie")
    holder = tree.lock()
    (tree.root / "etc").mkdir(parents=True)
    (tree.directory / "tree.new").mkdir()
    with pytest.raises(LaneError, match="in use by another lane"):
        tree.lock()
    tree.remove()
    os.close(holder)
    os.close(tree.lock())
    assert sorted(path.name for path in tree.directory.iterdir()) == ["lock"]


@needs_root
@pytest.mark.parametrize(
    ("command", "status"), [("exit 0", 0), ("exit 37", 37), ("kill -9 $$", 137), ("no-such-program", 127)]
)
def test_the_exit_status_is_the_commands(room: Room, command: str, status: int) -> None:
    assert in_room(room, command) == status


@needs_root
def test_in_the_room_nothing_of_the_machines_devices_mounts_and_processes_is_seen(room: Room) -> None:
    before = sorted(path.name for path in Path("/dev").iterdir())
    name = os.uname().nodename
    looked = (
        "cat /proc/self/mountinfo >/tmp/mounts; ls /dev >/tmp/dev; echo $$ >/tmp/pid; uname -n >/tmp/name; rm /dev/*"
    )
    in_room(room, looked)
    seen = {path.name: path.read_text().split() for path in (room.root / "tmp").iterdir()}
    points = [line.split()[4] for line in (room.root / "tmp/mounts").read_text().splitlines()]
    assert points == ["/", "/proc", "/sys", "/run", "/dev", "/dev/pts", "/dev/shm", "/usr"]  # noqa: S108
    assert {"null", "ptmx", "urandom"} <= set(seen["dev"])
    assert not {"kvm", "vda", "mem"} & set(seen["dev"])
    assert (seen["pid"], seen["name"]) == (["2"], ["lane-test"])
    assert sorted(path.name for path in Path("/dev").iterdir()) == before
    assert os.uname().nodename == name
    assert mounts_below(room.root, Path("/proc/self/mountinfo").read_text()) == []


@needs_root
def test_what_debootstrap_mounts_is_gone_with_it(tmp_path: Path) -> None:
    assert run_in_private_mounts(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]) == 0
    assert mounts_below(tmp_path, Path("/proc/self/mountinfo").read_text()) == []


@needs_root
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_every_process_in_the_room(room: Room, number: signal.Signals, status: int) -> None:
    """Also those that left the command's session, and also when the lane itself is killed."""
    code = (
        "import sys; from pathlib import Path; from lane.room import *; "
        f"sys.exit(run_in_room(Room(Path({str(room.root)!r}), 'x', readable=[Path('/usr')]), "
        "['/bin/sh', '-c', 'setsid sleep 1000 & echo ready >/tmp/ready; exec sleep 1000'], "
        f"{INSIDE!r}, '/'))"
    )
    lane = subprocess.Popen([sys.executable, "-c", code])
    wait_until((room.root / "tmp/ready").exists)
    assert len(processes_below(room.root)) >= 2
    lane.send_signal(number)
    assert lane.wait(timeout=20) == status
    wait_until(lambda: not processes_below(room.root))


def processes_below(root: Path) -> list[int]:
    """Return the processes whose root directory is the tree."""
    inode = root.stat().st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [int(entry.name)] if (entry / "root").stat().st_ino == inode else []
            except OSError:
                continue
    return found


def wait_until(condition: object) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_clone_is_the_last_commit_and_keeps_what_was_installed(tmp_path: Path) -> None:
    source, tree = tmp_path / "checkout", tmp_path / "tree"
    (tree / "root").mkdir(parents=True)
    source.mkdir()
    git = ["git", "-C", str(source), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    (source / "a").write_text("one")
    (source / ".gitignore").write_text("/.venv/\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    first = checkout.clone(source, tree)
    inside = tree / "root/vmkeep"
    (inside / ".venv").mkdir()
    (inside / ".venv/installed").write_text("")
    (inside / "a").write_text("changed by a run")
    (inside / "left").write_text("")
    (source / "a").write_text("two")
    subprocess.run([*git, "commit", "-qam", "two"], check=True)
    (source / "a").write_text("not committed")
    assert checkout.left_out(source) == 1
    assert checkout.clone(source, tree) != first
    assert (inside / "a").read_text() == "two"
    assert sorted(path.name for path in inside.iterdir()) == [".git", ".gitignore", ".venv", "a"]
    assert (inside / ".venv/installed").exists()
    assert not (tree / "root/vmkeep.bundle").exists()


def test_a_sites_mirror_certificates_and_package_directories_are_found(tmp_path: Path) -> None:
    machine, tree = tmp_path / "machine", tmp_path / "tree"
    (machine / "etc/apt/sources.list.d").mkdir(parents=True)
    (machine / "usr/local/share/ca-certificates").mkdir(parents=True)
    packages, files = tmp_path / "wheels", tmp_path / "index"
    (files / "simple").mkdir(parents=True)
    packages.mkdir()
    (tree / "etc").mkdir(parents=True)
    (machine / "etc/apt/sources.list.d/nodesource.sources").write_text("Types: deb\nURIs: https://deb.node.example/x\n")
    (machine / "etc/apt/sources.list.d/own.sources").write_text("Types: deb\nURIs: http://mirror.example/debian/\n")
    (machine / "etc/pip.conf").write_text(f"[global]\ncert = /etc/x.pem\nextra-index-url = file://{files}/simple\n")
    (machine / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    (machine / "usr/local/share/ca-certificates/own.crt").write_text("certificate")
    assert site.mirror(machine) == "http://mirror.example/debian"
    assert site.mirror(tmp_path) == site.DEFAULT_MIRROR
    assert site.package_directories({"PIP_FIND_LINKS": f"{packages} /nowhere"}, machine) == [files, packages]
    site.copy_settings(tree, "lane-x", machine)
    assert (tree / "etc/pip.conf").exists()
    assert (tree / "usr/local/share/ca-certificates/own.crt").read_text() == "certificate"
    assert (tree / "etc/resolv.conf").read_text() == "nameserver 192.0.2.1\n"
    assert "127.0.1.1 lane-x" in (tree / "etc/hosts").read_text().splitlines()


def test_of_the_environment_only_what_reaches_mirrors_goes_along(tmp_path: Path) -> None:
    (tmp_path / "known.pem").write_text("")
    outside = {
        "https_proxy": "http://proxy.example:3128",
        "PIP_INDEX_URL": "https://pypi.example/simple",
        "SSL_CERT_FILE": "/known.pem",
        "REQUESTS_CA_BUNDLE": "/not/in/the/tree.pem",
        "VMKEEP_HOME": "/somewhere",
        "VMKEEP_CRASH_SEED": "7",
        "MAKEFLAGS": "RUN=x",
        "PASSWORD": "secret",
    }
    inside = site.environment(outside, tmp_path)
    assert set(inside) - {"HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH"} == {
        "https_proxy",
        "PIP_INDEX_URL",
        "SSL_CERT_FILE",
        "VMKEEP_CRASH_SEED",
    }
