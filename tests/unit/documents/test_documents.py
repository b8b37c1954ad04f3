"""The documents say what is so: errors, commands, settings and links in them are those of the code."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from vmkeep.catalog.models import metadata
from vmkeep.cli.main import app
from vmkeep.config import load_settings
from vmkeep.errors import InvalidRequest, error_classes
from vmkeep.host.tasks import checkup as findings
from vmkeep.host.tasks.checkup import FindingCode
from vmkeep.planning import ExclusionReason, Mode, Reason, WarningCode

PROJECT = Path(__file__).resolve().parents[3]
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
OPERATIONS = (PROJECT / "docs/operations.md").read_text(encoding="utf-8")
ERRORS = OPERATIONS.partition("\n## Errors\n")[2].partition("\n## ")[0]
DOCTOR = OPERATIONS.partition("\n## What doctor finds\n")[2].partition("\n## ")[0]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:# |\$ )?(vmkeep .*)$", re.MULTILINE)
_INLINE_COMMAND = re.compile(r"`(vmkeep [^`]*)`")


def name_of(document: Path) -> str:
    return str(document.relative_to(PROJECT))


def commands() -> dict[str, Any]:
    """Return every command that does something, by the words that call it."""
    found: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("vmkeep", typer.main.get_command(app))]
    while pending:
        name, command = pending.pop()
        if not hasattr(command, "commands"):
            found[name] = command
            continue
        # Some groups are imported on demand.
        with typer.Context(command) as context:
            below = [(sub, command.get_command(context, sub)) for sub in command.list_commands(context)]
        pending.extend((f"{name} {sub}", child) for sub, child in below)
    return found


def command_lines(text: str) -> Iterator[str]:
    """Yield the command lines in fenced blocks and in running text."""
    for block in _FENCE.findall(text):
        # A message of the command begins with its name and a colon.
        yield from (line for line in _COMMAND.findall(block) if not line.startswith("vmkeep:"))
    yield from _INLINE_COMMAND.findall(_FENCE.sub("", text))


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", document.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("code", sorted(error_classes()))
def test_every_error_stands_in_operations_with_its_status_and_a_remedy(code: str) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in ERRORS.splitlines()
        if line.startswith(f"| `{code}` |")
    ]
    assert len(rows) == 1, f"{code} has {len(rows)} rows"
    _, status, what, remedy = rows[0]
    assert int(status) == error_classes()[code].exit_status
    assert what
    assert remedy.rstrip(" |")


def test_no_error_stands_in_operations_that_does_not_exist() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", ERRORS, re.MULTILINE)) == set(error_classes())


@pytest.mark.parametrize("word", sorted([*Reason, *Mode]))
def test_every_mode_and_reason_for_reading_a_disk_is_explained(word: str) -> None:
    section = OPERATIONS.partition("\n## Why a disk was read whole\n")[2].partition("\n## ")[0]
    assert f"`{word}`" in section


def test_no_reason_for_reading_a_disk_is_explained_that_does_not_exist() -> None:
    section = OPERATIONS.partition("\n## Why a disk was read whole\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", section, re.MULTILINE)
    assert set(re.findall(r"`([a-z-]+)`", " ".join(cells))) == set(Reason)


@pytest.mark.parametrize("reason", sorted(ExclusionReason))
def test_every_reason_for_leaving_a_disk_out_is_explained(reason: ExclusionReason) -> None:
    section = OPERATIONS.partition("\n## Disks that are not in a point\n")[2].partition("\n## ")[0]
    assert f"`{reason}`" in section


@pytest.mark.parametrize("code", sorted(WarningCode))
def test_every_warning_of_a_plan_is_explained(code: WarningCode) -> None:
    assert f"`{code}`" in OPERATIONS


@pytest.mark.parametrize("code", sorted(FindingCode))
def test_every_finding_of_doctor_is_explained_with_its_severity(code: FindingCode) -> None:
    rows = [line.strip("|").split(" | ") for line in DOCTOR.splitlines() if line.startswith(f"| `{code}` |")]
    assert len(rows) == 1, f"{code} has {len(rows)} rows"
    _, severity, meaning, *_ = (cell.strip() for cell in rows[0])
    assert severity == code.severity
    assert meaning


def test_no_finding_of_doctor_is_explained_that_does_not_exist() -> None:
    assert set(re.findall(r"^\| `([a-z-]+)` \|", DOCTOR, re.MULTILINE)) == set(FindingCode)


def test_every_finding_of_doctor_says_in_the_code_what_it_means() -> None:
    (declared,) = (
        node
        for node in ast.parse(Path(findings.__file__).read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "FindingCode"
    )
    members = [number for number, node in enumerate(declared.body) if isinstance(node, ast.Assign)]
    assert len(members) == len(FindingCode)
    for number in members:
        docstring = declared.body[number + 1]
        assert isinstance(docstring, ast.Expr), ast.unparse(declared.body[number])


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_stands_in_the_documents(name: str) -> None:
    guide = "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert any(line == name or line.startswith(f"{name} ") for line in command_lines(guide)), name


@pytest.mark.parametrize("name", sorted(commands()))
def test_the_json_of_every_command_is_described(name: str) -> None:
    text = (PROJECT / "docs/guide/json.md").read_text(encoding="utf-8")
    headings = ", ".join(re.findall(r"^## (.*)$", text, re.MULTILINE)).split(", ")
    assert name.removeprefix("vmkeep ") in headings


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_command_lines_in_documents_use_commands_and_options_that_exist(document: Path) -> None:
    known = commands()
    common = {"--json", "--connect", "-c", "--debug", "--quiet", "-q", "--version", "--help", "-h"}
    common |= {"--install-completion", "--show-completion"}
    for line in command_lines(document.read_text(encoding="utf-8")):
        words = shlex.split(line.partition(" | ")[0].partition(" && ")[0], comments=True)
        options = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"}
        plain = [word for word in words if not word.startswith("-")]
        name = next((" ".join(plain[:depth]) for depth in (4, 3, 2) if " ".join(plain[:depth]) in known), None)
        if name is None:
            assert options <= common, line
            assert len(plain) == 1 or plain[1] in {known_name.split()[1] for known_name in known}, line
            continue
        taken = {option for parameter in known[name].params for option in parameter.opts}
        assert options <= taken | common, line


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_between_documents_resolve(document: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", document.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_and_scripts_in_documents_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE)) <= targets
    for script in re.findall(r"scripts/[a-z-]+", text):
        assert (PROJECT / script).is_file(), script


def test_settings_in_the_guide_are_those_that_are_read(tmp_path: Path) -> None:
    text = (PROJECT / "docs/guide/settings.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z0-9_]+)` \|", text, re.MULTILINE))
    (tmp_path / "vmkeep.toml").write_text("nonsense = 1\n", encoding="utf-8")
    with pytest.raises(InvalidRequest) as raised:
        load_settings(home=tmp_path, environ={})
    known = set(raised.value.hint.removeprefix("The settings are: ").rstrip(".").split(", "))
    assert documented == known


def test_the_example_of_settings_is_accepted(tmp_path: Path) -> None:
    text = (PROJECT / "docs/guide/settings.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "vmkeep.toml").write_text(example, encoding="utf-8")
    assert load_settings(home=tmp_path, environ={}).workers == 8


def test_every_table_of_the_catalogue_is_described() -> None:
    text = (PROJECT / "docs/internals/catalogue.md").read_text(encoding="utf-8")
    assert set(metadata.tables) <= set(re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE))


def test_each_fault_names_a_test_that_exists() -> None:
    text = (PROJECT / "docs/internals/faults.md").read_text(encoding="utf-8")
    rows = [row for row in text.splitlines() if row.startswith("| ") and "::" in row]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) == len(rows) > 30
    for file, test in named:
        parsed = ast.parse((PROJECT / "tests" / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"
    for file in re.findall(r"`(crash/\w+\.py)`", text):
        assert (PROJECT / "tests" / file).exists(), file
