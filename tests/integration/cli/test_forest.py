"""The drawing of points: each once, a chain of any length in one column."""

from __future__ import annotations

from typing import Any

from vmkeep.cli.forest import draw_forest


def point(name: str, parent: str | None) -> dict[str, Any]:
    return {"id": name, "parent": parent}


def drawn(*points: dict[str, Any]) -> list[str]:
    return list(draw_forest(points, lambda each: str(each["id"])))


def test_point_whose_parent_was_deleted_is_a_root() -> None:
    assert drawn(point("b", "gone"), point("c", "b")) == ["● b", "● c"]


def test_branches_of_branches_keep_their_rails() -> None:
    points = [("a", None), ("b", "a"), ("c", "b"), ("d", "b"), ("e", "a"), ("f", "e")]
    assert drawn(*(point(*each) for each in points)) == ["● a", "├─● b", "│ ├─● c", "│ ● d", "● e", "● f"]


def test_long_chain_is_drawn_in_one_column() -> None:
    chain = [point(str(number), str(number - 1) if number else None) for number in range(5000)]
    assert drawn(*chain) == [f"● {number}" for number in range(5000)]


def test_further_roots_stand_apart() -> None:
    assert drawn(point("a", None), point("b", "a"), point("c", None)) == ["● a", "● b", "", "● c"]
