"""Hostile XML is refused, quickly, and nothing else is."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from vmkeep.xmltext import XmlLimits, XmlRefused, element_text, is_xml_text, parse_xml, serialise_xml

LAUGHS = "<!DOCTYPE a [<!ENTITY b 'ha'><!ENTITY c '&b;&b;&b;&b;'>]><a k='&c;'>&c;</a>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "text",
        "<a",
        "<a></b>",
        "<a/><b/>",
        "<a>&nbsp;</a>",
        "<a k='1' k='2'/>",
        "<a>\x00</a>",
        "<a>\ud800</a>",
        "<x:a/>",
        LAUGHS,
        f"\ufeff <?xml version='1.0'?><!-- c --><?pi x?>\n{LAUGHS}",
        "<!DOCTYPE a SYSTEM 'http://127.0.0.1:1/a.dtd'><a/>",
        "<!DOCTYPE a PUBLIC 'p' 'http://127.0.0.1:1/a.dtd'><a/>",
        "<!doctype a><a/>",
    ],
)
def test_what_is_no_plain_xml_is_refused(text: str) -> None:
    with pytest.raises(XmlRefused):
        parse_xml(text)


def test_no_file_is_read_for_an_entity(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key", encoding="ascii")
    with pytest.raises(XmlRefused, match="document type"):
        parse_xml(f"<!DOCTYPE a [<!ENTITY x SYSTEM '{secret.as_uri()}'>]><a>&x;</a>")


def test_limits_are_the_last_accepted_value() -> None:
    limits = XmlLimits(characters=200, depth=3, elements=5, attributes_per_element=2)
    for good, bad in (
        ("<a>" + "x" * 193 + "</a>", "<a>" + "x" * 194 + "</a>"),
        ("<a><a><a/></a></a>", "<a><a><a><a/></a></a></a>"),
        ("<a>" + "<b/>" * 4 + "</a>", "<a>" + "<b/>" * 5 + "</a>"),
        ("<a b='' c=''/>", "<a b='' c='' d=''/>"),
    ):
        parse_xml(good, limits=limits)
        with pytest.raises(XmlRefused):
            parse_xml(bad, limits=limits)


@pytest.mark.parametrize(
    "text",
    [
        "<a>" * 1_000_000,
        "<a " + " ".join(f"k{number}=''" for number in range(300_000)) + "/>",
        "<!--" * 1_000_000,
        "<!-- -" * 600_000 + "<a/>",
        "<?" * 2_000_000,
        "<a>" + "<b/>" * 99_999 + "</a>",
        "<a>" + "&amp;" * 800_000 + "</a>",
        " " * 4_000_000 + "<",
        "<" * 4_000_000,
    ],
    ids=str.__len__,
)
def test_large_hostile_text_is_answered_quickly(text: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(XmlRefused):
        parse_xml(text)
    assert time.perf_counter() - started < 5


def test_declared_encoding_does_not_matter_to_text() -> None:
    assert parse_xml("<?xml version='1.0' encoding='iso-8859-1'?><a>é☃</a>").text == "é☃"
    assert parse_xml("\ufeff<a>é</a>").text == "é"


def test_document_type_in_content_is_no_document_type() -> None:
    assert parse_xml("<a><!-- <!DOCTYPE a> --><![CDATA[<!DOCTYPE a>]]></a>").xpath("string()") == "<!DOCTYPE a>"


def test_comments_around_the_document_are_kept() -> None:
    text = "<!-- one -->\n<?two?>\n<a><!-- three --></a>\n<!-- four -->\n"
    assert serialise_xml(parse_xml(text)) == text


def test_text_is_all_character_data_and_no_comment() -> None:
    assert element_text(parse_xml("<a>1<!-- 2 --><b>3</b>4<![CDATA[5]]></a>")) == "1345"
    assert element_text(parse_xml("<a/>")) == ""


def test_characters_that_xml_cannot_hold_are_known() -> None:
    assert is_xml_text("a\t\n\r é ☃ \U0001f600 \ue000")
    for character in ("\x00", "\x0b", "\x1f", "\ud800", "\udfff", "\ufffe", "\uffff"):
        assert not is_xml_text(f"a{character}")


@pytest.mark.parametrize("around", ["", "win11", "bücher"])
def test_only_characters_that_xml_allows_may_stand_in_it(around: str) -> None:
    # XML 1.0, production 2.
    allowed = {9, 10, 13, *range(0x20, 0xD800), *range(0xE000, 0xFFFE), 0x10000, 0x10FFFF}
    for number in (*range(0x400), *range(0xD7FE, 0xE002), *range(0xFFF0, 0x10001), 0x10FFFF):
        assert is_xml_text(f"{around}{chr(number)}") is (number in allowed), hex(number)
