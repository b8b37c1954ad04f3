"""Completion in the shells themselves: bash and zsh on a terminal with a Tab, fish by what it would offer."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import pytest

from tests.integration.catalog.examples import WEB, example_point, number
from tests.integration.cli.command_line import environment, vmkeep
from vmkeep.catalog import SqlCatalog
from vmkeep.cli.shells import split_line
from vmkeep.config import load_settings

SPACED = "win 11's"
LATE = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation with points of two VMs, and the command `vmkeep` beside it."""
    home = tmp_path_factory.mktemp("home")
    with SqlCatalog.open(load_settings(home=home, environ={}).catalog_path) as catalog:
        catalog.record_point(example_point("a", vm_name="web"))
        catalog.record_point(example_point("s", vm=WEB, vm_name=SPACED, minute=4))
    command = home / "bin/vmkeep"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vmkeep.cli.main "$@"\n')
    command.chmod(0o755)
    return home


def variables(home: Path) -> dict[str, str]:
    ours = environment(home)
    return {
        **ours,
        "PATH": f"{home}/bin:{ours['PATH']}",
        "HOME": str(home),
        "TERM": "dumb",
        "LIBVIRT_DEFAULT_URI": "test:///default",
    }


def offered(home: Path, line: str, shell: str = "fish") -> list[str]:
    """Return what a script would get for a line, as its lines."""
    asked = {**variables(home), "_VMKEEP_COMPLETE": shell, "_VMKEEP_LINE": line, "_VMKEEP_BREAKS": " \"'@><=;|&(:"}
    ended = subprocess.run(["vmkeep"], env=asked, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stderr == ""
    return ended.stdout.splitlines()


def test_vms_points_and_what_belongs_to_a_vm_on_the_line_are_offered(home: Path) -> None:
    points = ["web@latest\tits newest point", f"{SPACED}@latest\tits newest point"]
    by_id = [
        f"{number('s')[:8]}\t{SPACED}, 2026-03-01 10:04:00, full",
        f"{number('a')[:8]}\tweb, 2026-03-01 10:00:00, full",
    ]
    assert offered(home, "vmkeep restore ") == points + by_id
    assert offered(home, f"sudo vmkeep restore {number('a')[:3]}") == by_id[1:]
    assert offered(home, "vmkeep verify we") == ["web\tall its points", points[0]]
    # libvirt's own driver for tests has a VM "test"; it is asked as well, with its state.
    assert offered(home, "vmkeep vm show ") == ["web\thas points", f"{SPACED}\thas points", "test\trunning"]
    assert offered(home, "vmkeep -q --json vm show te") == ["test\trunning"]
    assert offered(home, "vmkeep backup web t") == ["test\trunning"]
    assert offered(home, "vmkeep restore web@latest --in-place --only v") == ["vda"]
    assert offered(home, "vmkeep snap") == ["snapshot\tlibvirt's snapshots of a VM."]
    assert offered(home, "vmkeep restore web@l", "bash") == ["@latest"]
    assert offered(home, 'vmkeep points "w', "bash") == ["web", SPACED]
    assert offered(home, "vmkeep points w", "bash") == ["web", r"win\ 11\'s"]


def test_nothing_is_said_when_nothing_can_be_known(home: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(b"no catalogue" * 1000)
    for line in (
        "vmkeep points ",
        "vmkeep snapshot revert nobody ",
        "vmkeep backup --exclude ",
        "vmkeep nonsense ",
        "",
    ):
        asked = {**variables(tmp_path), "LIBVIRT_DEFAULT_URI": "qemu:///nonsense", "PATH": variables(home)["PATH"]}
        ended = subprocess.run(
            ["vmkeep"],
            env={**asked, "_VMKEEP_COMPLETE": "fish", "_VMKEEP_LINE": line},
            capture_output=True,
            timeout=60,
            check=True,
        )
        assert ended.stderr == b""


def test_the_flow_engine_is_not_loaded_to_complete_a_name(home: Path) -> None:
    script = (
        "import os, sys; os._exit = lambda status: print([name for name in ('dbos', 'nbd', 'rich') if name in "
        "sys.modules]) or sys.exit(); from vmkeep.cli.main import run; run()"
    )
    asked = {**variables(home), "_VMKEEP_COMPLETE": "fish", "_VMKEEP_LINE": "vmkeep vm show we"}
    ended = subprocess.run([sys.executable, "-c", script], env=asked, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["web\thas points", "[]"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("vmkeep vm show we", (["vm", "show"], "we")),
        ("vmkeep vm show ", (["vm", "show"], "")),
        ("sudo -u x LC_ALL=C /usr/bin/vmkeep  points 'win 1", (["points"], "win 1")),
        (r"vmkeep points win\ ", (["points"], "win ")),
        ('vmkeep points "a\\"b', (["points"], 'a"b')),
        ("vmkeep points '' x", (["points", ""], "x")),
    ],
)
def test_a_line_is_taken_apart_as_a_shell_does(line: str, words: tuple[list[str], str]) -> None:
    assert split_line(line) == words


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab_completes_names_with_blanks_and_points(home: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    start = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}[shell]
    load = 'eval "$(vmkeep --show-completion bash)"'
    if shell == "zsh":
        load = 'unsetopt zle_bracketed_paste; autoload -U compinit; compinit -u; eval "$(vmkeep --show-completion zsh)"'
    with Typed(start, variables(home)) as typed:
        typed.line(f"{load}; show() {{ printf '<%s>' \"$@\"; echo; }}; echo ready''.")
        typed.until("ready.")
        for text, words in (
            ("web@l\t", "web@latest"),
            (f"{number('s')[:4]}\t", number("s")[:8]),
            ("win\t", SPACED),
            ("'win\t", SPACED),
        ):
            command = "points" if SPACED in words else "restore"
            # Ctrl-A goes to the beginning of the line: the shell itself tells which words it has now.
            typed.keys(f"vmkeep {command} {text}")
            typed.keys("\x01show \n")
            typed.until(f"<vmkeep><{command}><{words}")


def test_fish_offers_names_with_blanks(home: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = "vmkeep --show-completion fish | source; complete -C 'vmkeep vm show wi'"
    script += "; complete -C 'vmkeep restore web@'"
    ended = subprocess.run(
        ["fish", "--no-config", "-c", script], env=variables(home), capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines() == [f"{SPACED}\thas points", "web@latest\tits newest point"]


@pytest.mark.parametrize(
    ("shell", "files"),
    [
        ("bash", {".bash_completions/vmkeep.sh", ".bashrc"}),
        ("zsh", {".zfunc/_vmkeep", ".zshrc"}),
        ("fish", {".config/fish/completions/vmkeep.fish"}),
    ],
)
def test_the_completion_of_the_shell_that_is_named_is_installed_once(
    home: Path, tmp_path: Path, shell: str, files: set[str]
) -> None:
    (tmp_path / ".bashrc").write_text("alias x=y")
    for _ in range(2):
        command = ["bash", "-c", f"vmkeep --install-completion {shell}; exit $?"]
        said = subprocess.run(
            command, env={**variables(home), "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert said.stdout.startswith(f"completion for {shell} is in {tmp_path}/")
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made == files | {".bashrc"}
    assert (tmp_path / ".bashrc").read_text().count("vmkeep.sh") == (shell == "bash")
    assert (tmp_path / ".bashrc").read_text().startswith("alias x=y")


def test_the_shell_is_found_and_an_unknown_one_is_refused(home: Path) -> None:
    for shell in ("bash", "zsh", "fish"):
        if shutil.which(shell) is not None:
            shown = subprocess.run(
                [shell, "-c", "sh -c 'vmkeep --show-completion; true'; true"],
                env=variables(home),
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            assert shown == vmkeep(home, "--show-completion", shell).out
    refused = vmkeep(home, "--install-completion", "tcsh")
    assert refused.status == 2
    assert "bash, zsh, fish" in refused.err


class Typed:
    """A shell on a terminal, into which keys are typed."""

    def __init__(self, command: list[str], variables: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        self._said = ""
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=variables, start_new_session=True
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def line(self, text: str) -> None:
        self.keys(f"{text}\n")

    def keys(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str) -> None:
        """Wait for a text, and forget what was said up to it."""
        deadline = time.monotonic() + LATE
        while text not in self._said:
            assert time.monotonic() < deadline, self._said
            self._read(1)
        self._said = self._said.partition(text)[2]

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self._said += os.read(self._master, 65536).decode()
        return True
