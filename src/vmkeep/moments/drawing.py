"""The moments of a domain drawn as ``virsh checkpoint-list --tree`` and ``virsh snapshot-list --tree`` do.

The text is virsh's to the byte (9.0), with siblings in the order of their names. Each generation stands four
columns further to the right, so that the text of a chain grows with the square of its length: 4 MB for 1,000 moments,
40 GB for 100,000. Lines are therefore made one at a time, and nothing is kept but the path to the one at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from vmkeep.moments.tree import M, MomentTree


def draw_tree(tree: MomentTree[M], start: str | None = None, *, descendants: bool = False) -> Iterator[str]:
    """Yield the lines of all moments, or of one and what descends from it.

    Of what descends from a start only its children are drawn unless ``descendants`` asks for all: so does virsh,
    against its manual. Raises MomentError, at the first line, for a start that is not there.
    """
    deep = start is None or descendants
    # Each with what stands before its children: how much of the path's text, and what comes after it.
    roots = tree.children() if start is None else (tree.find(start),)
    waiting: list[tuple[M, int, str]] = [(root, 0, "") for root in reversed(roots)]
    rails = ""
    while waiting:
        moment, kept, rail = waiting.pop()
        is_last_child = rail == "    "
        yield f"{rails[:kept]}  +- {moment.name}" if rail else f"{moment.name}"
        rails = rails[:kept] + rail
        children = tree.children(moment.name) if deep or moment.name == start else ()
        if children:
            yield f"{rails}  |"
            waiting.append((children[-1], len(rails), "    "))
            waiting.extend((child, len(rails), "  | ") for child in reversed(children[:-1]))
        elif is_last_child or not rail:
            yield rails
