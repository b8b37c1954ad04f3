"""A key on paper: what is typed from it, and what is scanned."""

from __future__ import annotations

import re
import string

import pytest
import zxingcpp

from vmkeep.errors import InvalidRequest
from vmkeep.keys.paper import page, parse_lines, typed_lines

KEY_ID = "61cf383c3bb2299f1710e444d074baec"
CONTENT = bytes(range(88))
LINES = typed_lines(KEY_ID, CONTENT)


def edited(number: int, line: str) -> str:
    lines = LINES.splitlines()
    lines[number] = line
    return "\n".join(lines)


def test_what_was_typed_in_any_manner_is_the_key() -> None:
    assert parse_lines(LINES) == (KEY_ID, CONTENT)
    careless = "\n".join(
        line if line.startswith("-") else line.lower().replace("o", "0").replace(" ", "   ") if number > 1 else line
        for number, line in enumerate(LINES.splitlines())
    )
    assert parse_lines(f"Dear finder,\n\n{careless}\n\nthank you") == (KEY_ID, CONTENT)
    joined = re.sub(r"(?m)^(\d\d)  (.*)$", lambda found: f"{found[1]} {found[2].replace(' ', '')}", LINES)
    assert parse_lines(joined) == (KEY_ID, CONTENT)


@pytest.mark.parametrize("number", range(1, 11))
def test_letter_that_was_mistyped_is_told_by_its_line(number: int) -> None:
    line = LINES.splitlines()[number]
    told = "Key:" if number == 1 else f"line {number - 1:02}"
    places = [place for place in range(4, len(line)) if line[place] != " "]
    for place in places[:: max(1, len(places) // 6)]:
        letters = string.hexdigits[:16] if number == 1 else string.ascii_uppercase
        other = next(letter for letter in letters if letter not in (line[place], "O", "I", "B"))
        with pytest.raises(InvalidRequest, match=told):
            parse_lines(edited(number, line[:place] + other + line[place + 1 :]))


def test_lines_that_were_swapped_left_out_or_typed_twice_are_told() -> None:
    lines = LINES.splitlines()
    for wrong, told in (
        ([*lines[:3], lines[4], lines[3], *lines[5:]], "line 02"),
        ([*lines[:4], *lines[5:]], "line 03"),
        ([*lines[:4], lines[3], *lines[4:]], "line 03"),
        (lines[:-1], "missing"),
        (lines[1:], "missing"),
        ([lines[0], *lines[2:]], "Key:"),
        ([lines[0], lines[1], lines[-1]], "missing"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            parse_lines("\n".join(wrong))
    # Under another number, with its own check: it is not that line.
    with pytest.raises(InvalidRequest, match="line 02"):
        parse_lines("\n".join([*lines[:3], lines[3].replace("02", "03", 1), *lines[4:]]))
    with pytest.raises(InvalidRequest, match="line 02 was mistyped"):
        parse_lines("\n".join([*lines[:3], "02" + lines[4][2:], *lines[4:]]))


def test_page_is_scanned_as_the_text_it_was_made_of_and_its_lines_are_read_again() -> None:
    text = "-----BEGIN VMKEEP KEY-----\nKey: 61cf\n\nAbC+/=\n-----END VMKEEP KEY-----\n" + "x" * 160
    written = page(LINES, text, [("where", "/srv/<b>&repository")])
    assert parse_lines(written) == (KEY_ID, CONTENT)
    assert "<b>" not in written
    assert not re.search(r"(src|href)=|url\(|@import", written)
    (found,) = zxingcpp.read_barcodes(raster(written))
    assert found.text == text


def raster(written: str) -> memoryview:
    """Return the picture that a page's one drawing is: rows of strokes, each one module high."""
    drawing = re.search(r"<svg.*?</svg>", written, re.DOTALL)
    assert drawing is not None
    scale = 4
    size = int(re.search(r'width="(\d+)"', drawing[0])[1])  # type: ignore[index]  # it has one
    picture = bytearray(b"\xff" * (size * size))
    x = y = 0.0
    (path,) = re.findall(r'stroke="#000" d="([^"]*)"', drawing[0])
    for command, numbers in re.findall(r"([Mmh])([-\d. ]*)", path):
        values = [float(number) for number in numbers.split()]
        if command == "M":
            x, y = values
        elif command == "m":
            x, y = x + values[0], y + values[1]
        else:
            for row in range(int((y - 0.5) * scale), int((y + 0.5) * scale)):
                start = row * size + int(x * scale)
                picture[start : start + int(values[0]) * scale] = bytes(int(values[0]) * scale)
            x += values[0]
    return memoryview(bytes(picture)).cast("B", shape=[size, size])
