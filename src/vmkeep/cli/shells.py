"""Completion for bash, zsh and fish: the scripts that the shells run, their installation, and the answers to them.

The scripts are ours, not typer's: those put a name with a blank in as two words, complete "win11@la" in bash to
"win11@win11@latest" (bash breaks words at an @), and `--install-completion zsh` installs what the shell above is.
A script hands over the line up to the cursor, and gets a line for each word: the word, a tab, what it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from vmkeep.cli.console import Console
from vmkeep.commandline import shell_word
from vmkeep.errors import InvalidRequest, PermissionRefused

INSTALL, SHOW = "--install-completion", "--show-completion"
ASKED_BY, LINE = "_VMKEEP_COMPLETE", "_VMKEEP_LINE"

_BASH: Final = r"""
_vmkeep_completion() {
    mapfile -t COMPREPLY < <(_VMKEEP_COMPLETE=bash _VMKEEP_LINE=${COMP_LINE:0:COMP_POINT} \
        _VMKEEP_BREAKS=$COMP_WORDBREAKS "$1" 2>/dev/null)
}
complete -o default -o nosort -F _vmkeep_completion vmkeep
"""

_ZSH: Final = r"""
#compdef vmkeep
_vmkeep() {
    local line
    local -a values described
    while IFS= read -r line; do
        values+=("${line%%$'\t'*}")
        described+=("${line/$'\t'/  -- }")
    done < <(_VMKEEP_COMPLETE=zsh _VMKEEP_LINE="${(j: :)words[1,CURRENT]}" \
        ${(Q)words[1]} 2>/dev/null)
    if (( $#values )); then
        compadd -o nosort -l -d described -a values
    else
        _files
    fi
}
if [[ $funcstack[1] == _vmkeep ]]; then
    _vmkeep "$@"
else
    compdef _vmkeep vmkeep
fi
"""

_FISH: Final = r"""
function __vmkeep_completion
    set -lx _VMKEEP_COMPLETE fish
    set -lx _VMKEEP_LINE (commandline -cp)
    set -l command (commandline -opc)[1]
    set -l offered ($command 2>/dev/null)
    if test (count $offered) -gt 0
        printf '%s\n' $offered
    else
        __fish_complete_path (commandline -ct)
    end
end
complete --command vmkeep --no-files --keep-order --arguments '(__vmkeep_completion)'
"""

SCRIPTS: Final[Mapping[str, str]] = {"bash": _BASH.lstrip(), "zsh": _ZSH.lstrip(), "fish": _FISH.lstrip()}


# -- answering ---------------------------------------------------------------------------------------------------


def answer(environment: Mapping[str, str]) -> None:
    """Print what may stand at the end of the line; nothing when anything goes wrong: a shell would show it."""
    import typer

    # What knows which option or argument a word belongs to; typer has no public way to ask for that.
    from typer._completion_classes import FishComplete

    from vmkeep.cli.completion import give_up_soon
    from vmkeep.cli.interruption import Interruption
    from vmkeep.cli.main import app
    from vmkeep.cli.session import Invocation

    give_up_soon()
    text = environment.get(LINE, "")
    words, incomplete = split_line(text)
    # Options before the command tell it what they ask for.
    console = Console(json_wanted=False)
    invocation = Invocation(console, Interruption(console.notice), arguments=words)
    shell = FishComplete(typer.main.get_command(app), {"obj": invocation}, "vmkeep", ASKED_BY)
    for item in shell.get_completions(words, incomplete):
        value, told = str(item.value), " ".join((item.help or "").split())
        if environment[ASKED_BY] == "bash":
            print(_for_bash(value[_before_break(value, incomplete, environment.get("_VMKEEP_BREAKS", "")) :], text))
        else:
            print(f"{value}\t{told}" if told else value)


def _before_break(value: str, incomplete: str, breaks: str) -> int:
    """Return how much of the value bash takes for an earlier word: it also breaks words at @, = and :."""
    if not value.startswith(incomplete):
        return 0
    # A word that follows an @ begins with it.
    return max(0, *(incomplete.rfind(char) + (char != "@") for char in "@:=" if char in breaks), 0)


def _for_bash(value: str, text: str) -> str:
    """Return the value as it may stand at the end of the line, where a quote may be open."""
    *_, (_, quote) = _words(text)
    if quote == "'":
        return value.replace("'", "'\\''")
    special = r'(["\\$`])' if quote else r"([^\w@%+=:,./~-])"
    return re.sub(special, r"\\\1", value)


def split_line(text: str) -> tuple[list[str], str]:
    """Return the words of vmkeep on a shell's line, and the one that is being typed ("" for a new one).

    Quotes may be open still. What stands before the command (``sudo``, ``LC_ALL=C``) is no word of it.
    """
    words = [word for word, _ in _words(text)]
    incomplete = words.pop()
    begins = next((at for at, word in enumerate(words) if Path(word).name == "vmkeep"), 0)
    return words[begins + 1 :], incomplete


def _words(text: str) -> Iterator[tuple[str, str]]:
    """Yield the words, each with the quote that is open at its end; the last one is what the cursor stands behind."""
    word, quote, begun = "", "", False
    chars = iter(text)
    for char in chars:
        if char == "\\" and quote != "'":
            following = next(chars, "")
            word += following if not quote or following in '"\\$`' else char + following
            begun = True
        elif quote:
            quote, word = ("", word) if char == quote else (quote, word + char)
        elif char in "\"'":
            quote, begun = char, True
        elif char.isspace():
            if begun:
                yield word, ""
            word, begun = "", False
        else:
            word, begun = word + char, True
    yield word, quote


# -- installing --------------------------------------------------------------------------------------------------


def is_asked_for(arguments: Sequence[str]) -> bool:
    """Tell whether a command line is about completion itself; the shell's name may follow."""
    return bool(arguments) and arguments[0] in (INSTALL, SHOW)


def install_or_show(arguments: Sequence[str], console: Console) -> None:
    """``vmkeep --install-completion [SHELL]`` and ``vmkeep --show-completion [SHELL]``."""
    wanted = [word for word in arguments[1:] if word != "--json"]
    if len(wanted) > 1 or (wanted and wanted[0] not in SCRIPTS):
        raise InvalidRequest(f"There is completion for {', '.join(SCRIPTS)} and no {wanted[-1]!r}")
    shell = wanted[0] if wanted else detected_shell()
    if arguments[0] == SHOW:
        console.text(SCRIPTS[shell])
        return
    home = Path.home()
    path = install(shell, home)
    if console.json:
        console.document({"completion": {"shell": shell, "path": str(path)}})
    else:
        console.show(f"completion for {shell} is in {path}; new shells have it")


def install(shell: str, home: Path) -> Path:
    """Write the script where the shell finds it, and the line that loads it, once. Return the script's path."""
    in_bash = home / ".bash_completions/vmkeep.sh"
    path, startup, line = {
        "bash": (in_bash, home / ".bashrc", f"source {shell_word(str(in_bash))}"),
        "zsh": (home / ".zfunc/_vmkeep", home / ".zshrc", "fpath+=~/.zfunc; autoload -Uz compinit; compinit"),
        "fish": (_config(home) / "fish/completions/vmkeep.fish", None, ""),
    }[shell]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SCRIPTS[shell], encoding="utf-8")
        if startup is not None:
            there = startup.read_text(encoding="utf-8", errors="replace") if startup.exists() else ""
            if line not in there.splitlines():
                last_line_is_open = there and not there.endswith("\n")
                with startup.open("a", encoding="utf-8") as file:
                    file.write(f"\n{line}\n" if last_line_is_open else f"{line}\n")
    except OSError as error:
        raise PermissionRefused(
            f"{error.filename} cannot be written: {error.strerror}", path=str(error.filename)
        ) from error
    return path


def _config(home: Path) -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")


def detected_shell() -> str:
    """Return the shell in which the command was typed: the nearest one above this process.

    Raises InvalidRequest when there is none, and when it is another user's: `sudo` runs vmkeep in one's own shell, and
    would install into root's home.
    """
    pid = os.getppid()
    while pid > 1:
        try:
            process = Path(f"/proc/{pid}")
            name = (process / "comm").read_text().strip().lstrip("-")
            if name in SCRIPTS:
                if process.stat().st_uid != os.getuid():
                    raise InvalidRequest(
                        f"The shell that this was typed into ({name}) is not of the user that vmkeep runs as",
                        hint=f"Completion belongs to your shell: run `vmkeep {INSTALL}` without sudo.",
                    )
                return name
            pid = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    raise InvalidRequest(
        "The shell that this was typed into is not known", hint=f"Name it: `vmkeep {INSTALL} {'|'.join(SCRIPTS)}`."
    )
