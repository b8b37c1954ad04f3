"""`python3 -m lane`, which is `make lane`.

Exit status: the command's; 2 when the lane cannot run it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lane import checkout, site
from lane.errors import LaneError
from lane.room import Room, run_in_room
from lane.tree import SUITES, Tree, install_debootstrap, remove

COMMAND = "make demo && make test"
_CHECKOUT = Path(__file__).resolve().parents[1]
_SIGNALLED = 128
_REFRESH = "apt-get -q update >/dev/null && update-ca-certificates >/dev/null"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    if os.geteuid() != 0:
        print("lane: namespaces and a Debian tree are made by root only; run it with sudo", file=sys.stderr)
        return 2
    tree = Tree(options.directory / (options.name or options.suite), options.suite)
    try:
        return _run(tree, options)
    except LaneError as error:
        print(f"lane: {error}", file=sys.stderr)
        return 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("lane", description="Run this checkout's last commit on a bare Debian.")
    parser.add_argument("--suite", choices=SUITES, default="trixie", help="Debian's release (trixie)")
    parser.add_argument("--name", default="", help="a lane of this name; two can run at once (the suite's name)")
    parser.add_argument("--fresh", action="store_true", help="make the tree anew")
    parser.add_argument("--remove", action="store_true", help="remove the tree and run nothing")
    parser.add_argument("--directory", type=Path, default=Path("/var/cache/vmkeep-lane"), help="where lanes are kept")
    parser.add_argument("--checkout", type=Path, default=_CHECKOUT, help="what is cloned (the one this stands in)")
    parser.add_argument("command", nargs="?", default=COMMAND, help=f"for bash, in the clone ({COMMAND})")
    options = parser.parse_args(arguments)
    if Path(options.name).name != options.name or options.name in ("..", ".", "cache"):
        parser.error(f"--name is one word without a slash, not {options.name!r}")
    if not options.command.strip():
        parser.error("the command is empty")
    return options


def _run(tree: Tree, options: argparse.Namespace) -> int:
    install_debootstrap()
    with os.fdopen(tree.lock()):
        if options.fresh or options.remove:
            tree.remove()
        if options.remove:
            return 0
        new = not tree.root.exists()
        if new:
            print(f"lane: making Debian {tree.suite} in {tree.root}", flush=True)
        tree.make()
        room = _room(tree)
        site.copy_settings(tree.root, room.hostname)
        inside = site.environment(os.environ, tree.root)
        if new and (status := run_in_room(room, ["/bin/sh", "-c", _REFRESH], inside, "/root")) != 0:
            remove(tree.root)
            if status > _SIGNALLED:
                return status
            raise LaneError("the new Debian cannot reach its packages; what apt said is above")
        changed = checkout.left_out(options.checkout)
        commit = checkout.clone(options.checkout, tree.root)
        if changed:
            print(f"lane: {changed} files differ from the last commit; their changes are left out", flush=True)
        print(f"lane: {tree.suite}, commit {commit[:12]}: {options.command}", flush=True)
        return run_in_room(room, ["/bin/bash", "-c", options.command], inside, checkout.INSIDE)


def _room(tree: Tree) -> Room:
    apt, pip = tree.cache / f"apt-{tree.suite}", tree.cache / "pip"
    for directory in (apt / "partial", pip):
        directory.mkdir(parents=True, exist_ok=True)
    writable = {"/var/cache/apt/archives": apt, "/root/.cache/pip": pip}
    hostname = f"lane-{tree.directory.name}"[:63]
    return Room(tree.root, hostname, writable, site.package_directories(os.environ))


if __name__ == "__main__":
    sys.exit(main())
