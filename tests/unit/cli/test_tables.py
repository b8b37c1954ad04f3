"""How a table fits a terminal: what is cut, in which order, and what never is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.cli.tables import Facts, Table, cells, cut_end, cut_middle, wrapped

IDS = ("93c87dbf", "99196392")
POINTS = Table(
    columns=("point", "VM", "created", "read", "labels"),
    rows=(
        (IDS[0], "web-server-number-one", "2026-11-22 10:04:31", "3.0 MiB", "why=before the update"),
        (IDS[1], "web", "2026-11-22 10:04:27", "160.0 MiB", ""),
    ),
    right=("read",),
    texts={"labels": 8},
    drop=("read",),
    names={"VM": 9},
)


def test_without_a_terminal_everything_is_whole_and_no_line_ends_in_blanks() -> None:
    assert list(POINTS.lines(None)) == [
        "point     VM                     created                   read  labels",
        "93c87dbf  web-server-number-one  2026-11-22 10:04:31    3.0 MiB  why=before the update",
        "99196392  web                    2026-11-22 10:04:27  160.0 MiB",
    ]


def test_labels_give_way_first_then_a_column_then_the_middle_of_names() -> None:
    assert list(POINTS.lines(80))[1] == (
        "93c87dbf  web-server-number-one  2026-11-22 10:04:31    3.0 MiB  why=before the…"
    )
    assert list(POINTS.lines(70))[1] == "93c87dbf  web-server-number-one  2026-11-22 10:04:31  why=before the…"
    assert list(POINTS.lines(55))[1] == "93c87dbf  web-ser…er-one  2026-11-22 10:04:31  why=bef…"


def test_what_is_never_cut_sticks_out_and_leaves_the_other_rows_aligned() -> None:
    names = Table(columns=("snapshot", "created", "state"), rows=(("x" * 50, "now", "off"), ("a", "then", "off")))
    assert list(names.lines(40)) == ["snapshot  created  state", f"{'x' * 50}  now      off", "a         then     off"]


def test_sentences_go_on_below_themselves_or_below_their_row() -> None:
    why = "its bitmap was left open by a QEMU that was killed"
    told = Table(columns=("disk", "why"), rows=(("vda", why),), sentences=True)
    assert list(told.lines(40)) == ["disk  why", "vda   its bitmap was left open by a QEMU", "      that was killed"]
    assert list(told.lines(30)) == [
        "disk",
        "vda",
        "    its bitmap was left open",
        "    by a QEMU that was killed",
    ]
    assert list(told.lines(None))[1] == f"vda   {why}"


def test_a_long_group_name_gets_a_line_of_its_own() -> None:
    group = "vmkeep-" + "9" * 32
    health = Table(
        columns=("checkpoint", "disk", "health", "why"),
        rows=((group, "vda", "sound", ""), ("", "vdb", "broken", "it was lost")),
        sentences=True,
        grouped=True,
    )
    assert list(health.lines(50)) == [
        "checkpoint",
        "  disk  health  why",
        group,
        "  vda   sound",
        "  vdb   broken  it was lost",
    ]
    assert list(health.lines(80))[1] == f"{group}  vda   sound"


def test_a_last_column_that_is_empty_is_left_out() -> None:
    assert list(Table(columns=("a", "b"), rows=(("1", ""),)).lines(None)) == ["a", "1"]


def test_texts_of_others_neither_steer_a_terminal_nor_break_a_row() -> None:
    hostile = Table(columns=("name",), rows=(("[red]a\x1b[31m\nb\u202e",),))
    assert list(hostile.lines(80)) == ["name", "[red]a\\x1b[31m\\nb\\u202e"]
    assert list(Facts((("VM", "a\x1b\nb"),)).lines(80)) == ["VM  a\\x1b", "    b"]


def test_wide_characters_count_twice() -> None:
    assert cut_end("計算機", 4) == "計…"
    assert cut_middle("計算機計算機", 7) == "計算…機"
    lines = list(Table(columns=("name", "n"), rows=(("計算", "1"), ("abcd", "2"))).lines(80))
    assert [cells(line) for line in lines] == [7, 7, 7]


words = st.text(st.characters(codec="utf-8"), max_size=40)


@given(words, st.integers(1, 50))
def test_a_cut_text_is_never_wider_than_asked(text: str, width: int) -> None:
    shown = text if text.isprintable() else ascii(text)
    assert cells(cut_end(shown, width)) <= width
    assert cells(cut_middle(shown, width)) <= width


@given(st.lists(st.tuples(words, words, words, words), min_size=1, max_size=5), st.integers(1, 120))
def test_every_cell_that_may_not_be_cut_is_there_in_one_piece(rows: list[tuple[str, ...]], width: int) -> None:
    columns = ("id", "name", "text", "why")
    table = Table(columns=columns, rows=rows, texts={"text": 5}, drop=("name",), sentences=True)
    whole = list(table.lines(None))
    narrow = list(table.lines(width))
    assert not [line for line in (*whole, *narrow) if line != line.rstrip()]
    for line in whole[1:]:
        first = line.split("  ", 1)[0]
        assert any(each.startswith(first) for each in narrow)


def test_words_are_never_broken() -> None:
    assert wrapped("verylongword of it", 6) == ["verylongword", "of it"]
    assert wrapped("/images/my old box.qcow2", 6) == ["/images/my old box.qcow2"]
