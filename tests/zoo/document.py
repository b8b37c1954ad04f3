"""docs/guide/configurations.md, made of the rows: `python -m tests.zoo.document` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.zoo.row import KEPT, NOT_TRIED, Outcome, Promise, Row
from tests.zoo.rows import ROWS, SECTIONS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/guide/configurations.md"

_HEAD = """\
# Configurations

What vmkeep does with VMs of many kinds. Each row is a test: `make zoo` makes such a VM and plays it whole, on Debian 12
(libvirt 9.0, QEMU 7.2) and on Debian 13 (libvirt 11.3, QEMU 10). It takes points while the VM runs and while it is off,
restores them as files, as a VM and in place, makes a snapshot, goes back to it, takes a TPM out, puts it back, resets
it and gives it another key, and compares every byte of disks, UEFI variables and TPM with what was written. There are
{count} of them.

- **yes**: it works, and what comes back is what was there.
- **no (`code`)**: refused before anything is changed, with this error ([errors](../operations.md#errors)). The message
  says what to do.
- **-**: has no meaning here, or cannot be tried in a test.

Disks are virtio-blk with qcow2 where nothing else is said, and machines are `q35` with BIOS. Their points are
incremental, except where the remark says that a disk is read whole each time: then only what is new is stored.
"""
_FOOT = """
## Try one

```
make zoo                            # all of them, about {minutes} minutes
make zoo ROWS=chain-of-3,tpm-1.2    # some; python -m tests.zoo --list prints their names
make zoo JOBS=1                     # one at a time; two is usual
```

A row is a value in `tests/zoo/rows`; a test holds this document against them.
"""
_MINUTES = 15


def text() -> str:
    """Return the whole document."""
    parts = [_HEAD.format(count=len(ROWS))]
    for title, rows in SECTIONS:
        parts.append(f"\n## {title}\n\n" + "\n".join(table(rows)) + "\n")
    return "".join(parts) + _FOOT.format(minutes=_MINUTES)


def table(rows: tuple[Row, ...]) -> Iterator[str]:
    """Yield the lines of a table."""
    meanwhile = any(row.condition for row in rows)
    tpm = _has_tpms(rows)
    titles = ["configuration", "backup, running", "off", "restore", "snapshot", "and back", "remark"]
    if meanwhile:
        titles.insert(1, "backup meanwhile")
    if tpm:
        titles.insert(-1, "TPM out and in, reset, rekeyed")
    yield _line(titles)
    yield "|---" * len(titles) + "|"
    for row in rows:
        yield _line(_cells(row, meanwhile=meanwhile, tpm=tpm))


def _has_tpms(rows: tuple[Row, ...]) -> bool:
    """Tell whether TPMs are the matter of a table: several of its rows have one."""
    return sum(row.tpm is not None for row in rows) > 1


def _cells(row: Row, *, meanwhile: bool, tpm: bool) -> list[str]:
    first, newer = row.promise, row.promise_of_libvirt_11
    if row.tpm is None:
        first, newer = replace(first, tpm=NOT_TRIED), None if newer is None else replace(newer, tpm=NOT_TRIED)
    names = [*(["meanwhile"] if meanwhile else []), "running", "off", "restore", "snapshot", "revert"]
    names += ["tpm"] if tpm else []
    cells = [row.what]
    for name in names:
        told = _told(first, name)
        later = _told(newer, name) if newer is not None else told
        cells.append(told if told == later else f"{told}; libvirt 11.3: {later}")
    return [*cells, row.remark]


def _told(promise: Promise, name: str) -> str:
    if name == "revert" and promise.snapshot != KEPT:
        return str(NOT_TRIED)
    if name != "restore":
        outcome = getattr(promise, name)
        assert isinstance(outcome, Outcome)
        return str(outcome)
    ways = {"as files": promise.files, "as a VM": promise.as_vm, "in place": promise.in_place}
    if all(outcome == KEPT for outcome in ways.values()):
        return str(KEPT)
    return "; ".join(f"{way}: {outcome}" for way, outcome in ways.items())


def _line(cells: list[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


if __name__ == "__main__":
    DOCUMENT.write_text(text(), encoding="utf-8")
