"""Tables for people. Where they end on a terminal they fit it, and what somebody may want to copy stays in one piece.

- Read by a program (a pipe, a file) nothing is cut or left out: each column is as wide as its longest text.
- On a terminal that is too narrow, in this order: ``texts`` are cut at their end, ``drop`` columns are left out, and
  ``names`` that stand beside an id are cut in their middle; a cut is marked by an ellipsis. If that is not enough, long
  cells stick out to the right and the terminal goes on in its next line. Nothing is folded within a column: ids, times
  and names of checkpoints are taken with a double click.
- Sentences of a last column go on below themselves, broken at blanks, or in lines of their own below their row.
- No line ends in blanks, and a last column that is empty in every row is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from vmkeep.cli.terminal import one_line, printable
from vmkeep.values import dataclass

GAP = "  "
ELLIPSIS = "…"
_BELOW = "    "
_LEAST_SENTENCE = 28  # narrower than this, a sentence is easier to read below its row


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns with a head, and what may give way on a narrow terminal.

    ``texts`` and ``names`` say how narrow (in cells of a terminal) their columns may become. ``sentences``: the last
    column holds sentences. ``grouped``: the first column is the name of a group of rows, given in its first row only;
    where the table does not fit, it gets a line of its own.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[str] = ()
    texts: Mapping[str, int] = field(default_factory=dict)
    drop: Sequence[str] = ()
    names: Mapping[str, int] = field(default_factory=dict)
    sentences: bool = False
    grouped: bool = False

    def lines(self, width: int | None) -> Iterator[str]:
        """Yield the lines, the head first. ``width`` is the terminal's; None for none."""
        return (line.rstrip() for line in _Layout(self, width).lines())


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one thing, a line each: its name, and its text, of which nothing is ever cut."""

    facts: Sequence[tuple[str, str]]

    def lines(self, _width: int | None) -> Iterator[str]:
        """Yield the lines. Further lines of a text stand below its first one."""
        indent = max((cells(name) for name, _ in self.facts), default=0)
        for name, text in self.facts:
            for shown in printable(text).split("\n"):
                yield f"{_padded(one_line(name), indent)}{GAP}{shown}".rstrip()
                name = ""


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def cut_end(text: str, width: int) -> str:
    """Return the text in at most ``width`` cells, with an ellipsis in place of its end."""
    return text if cells(text) <= width else f"{_first(text, width - 1).rstrip()}{ELLIPSIS}"


def cut_middle(text: str, width: int) -> str:
    """Return the text in at most ``width`` cells, with an ellipsis in its middle: names often differ at their ends."""
    if cells(text) <= width:
        return text
    behind = _first(text[::-1], (width - 1) // 2)[::-1]
    return f"{_first(text, width - 1 - cells(behind))}{ELLIPSIS}{behind}"


def wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines of at most ``width`` cells, broken at blanks only: a long word stays whole.

    So does a path, which may hold blanks.
    """
    if text.startswith("/"):
        return [text]
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and cells(joined) > width:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines


def _first(text: str, width: int) -> str:
    taken = ""
    for char in text:
        if cells(taken + char) > width:
            break
        taken += char
    return taken


def _padded(text: str, width: int, *, right: bool = False) -> str:
    blanks = " " * (width - cells(text))
    return blanks + text if right else text + blanks


class _Layout:
    """One table on one width: how wide each column is, and where sentences and groups go."""

    def __init__(self, table: Table, width: int | None) -> None:
        self._table = table
        self._width = width
        self._cells = [list(table.columns)]
        self._cells += [[one_line(text) for text in row] for row in table.rows]  # a line end would break the row
        self._shown = list(range(len(table.columns)))
        if table.rows and not any(row[-1] for row in self._cells[1:]):
            self._shown.pop()
        self._sentence = self._shown[-1] if table.sentences and self._shown[-1] == len(table.columns) - 1 else None
        self._widths = [max(cells(row[column]) for row in self._cells) for column in range(len(table.columns))]
        self._own_line = False
        self._below = False
        if width is not None and self._total() > width:
            self._fit(width)

    def lines(self) -> Iterator[str]:
        for number, row in enumerate(self._cells):
            shown = list(self._shown)
            if self._own_line:
                shown.remove(0)
                if row[0]:
                    yield row[0]
            sentence = row[self._sentence] if self._sentence is not None and number else ""
            if self._sentence is not None and (sentence or self._below):
                shown.remove(self._sentence)
            line = self._line(row, shown)
            if not sentence:
                yield line
            elif self._below:
                yield line
                assert self._width is not None
                yield from (f"{_BELOW}{part}" for part in wrapped(sentence, self._width - len(_BELOW)))
            else:
                yield from self._beside(line, sentence)

    def _beside(self, line: str, sentence: str) -> Iterator[str]:
        before = f"{line}{GAP}" if line else ""
        if self._width is None:
            yield before + sentence
            return
        indent = sum(self._widths[column] + len(GAP) for column in self._shown[:-1] if not self._is_group(column))
        indent += len(GAP) if self._own_line else 0
        for part in wrapped(sentence, self._width - indent):
            yield before + part
            before = " " * indent

    def _is_group(self, column: int) -> bool:
        return self._own_line and column == 0

    def _line(self, row: Sequence[str], shown: Sequence[int]) -> str:
        parts = [self._cell(row[column], column) for column in shown]
        return (GAP if self._own_line else "") + GAP.join(parts)

    def _cell(self, text: str, column: int) -> str:
        name = self._table.columns[column]
        if name in self._table.texts:
            text = cut_end(text, self._widths[column])
        elif name in self._table.names:
            text = cut_middle(text, self._widths[column])
        return _padded(text, self._widths[column], right=name in self._table.right)

    # -- fitting a terminal ------------------------------------------------------------------------------------

    def _total(self) -> int:
        shown = [column for column in self._shown if not self._is_group(column)]
        widths = [self._widths[column] for column in shown if column != self._sentence]
        if self._sentence is not None and not self._below:
            widths.append(min(self._widths[self._sentence], _LEAST_SENTENCE))
        return sum(widths) + len(GAP) * (len(widths) - 1) + (len(GAP) if self._own_line else 0)

    def _fit(self, width: int) -> None:
        columns = list(self._table.columns)
        for name, least in self._table.texts.items():
            self._narrow(columns.index(name), least, width)
        for name in self._table.drop:
            if self._total() > width and columns.index(name) in self._shown:
                self._shown.remove(columns.index(name))
        for name, least in self._table.names.items():
            self._narrow(columns.index(name), least, width)
        if self._total() > width:
            self._own_line = self._table.grouped
        if self._total() > width:
            self._below = self._sentence is not None
        self._give_back(width)
        self._let_stick_out(width)

    def _narrow(self, column: int, least: int, width: int) -> None:
        if column in self._shown:
            floor = max(least, cells(self._table.columns[column]))
            self._widths[column] = max(min(floor, self._widths[column]), self._widths[column] - self._over(width))

    def _give_back(self, width: int) -> None:
        """Let texts have what a column that was left out made free."""
        for name in self._table.texts:
            column = list(self._table.columns).index(name)
            if column in self._shown and self._total() < width:
                longest = max(cells(row[column]) for row in self._cells)
                self._widths[column] = min(longest, self._widths[column] + width - self._total())

    def _let_stick_out(self, width: int) -> None:
        """Align a column by its shorter cells only: the few long ones push the rest of their rows to the right."""
        fixed = {*self._table.texts, *self._table.names, *self._table.right}
        movable = [column for column in self._shown[:-1] if self._table.columns[column] not in fixed]
        if self._own_line and 0 in movable:
            movable.remove(0)
        # What stands last needs no alignment.
        last = 0 if self._shown[-1] == self._sentence else self._widths[self._shown[-1]]
        while self._total() - last > width:
            shorter = {
                column: max(lengths)
                for column in movable
                if (lengths := [n for row in self._cells if (n := cells(row[column])) < self._widths[column]])
            }
            if not shorter:
                return
            widest = max(shorter, key=lambda column: self._widths[column])
            self._widths[widest] = shorter[widest]

    def _over(self, width: int) -> int:
        return max(0, self._total() - width)
