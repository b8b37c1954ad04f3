"""All rows, in the order of the document."""

from __future__ import annotations

from tests.zoo.row import Row
from tests.zoo.rows import buses, formats, machines, names, places, situations

SECTIONS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("Buses, controllers and I/O", buses.ROWS),
    ("Image formats", formats.ROWS),
    ("Where disks are, and how they are used", places.ROWS),
    ("Machine, firmware and TPM", machines.ROWS),
    ("Names and paths", names.ROWS),
    ("What goes on meanwhile", situations.ROWS),
)
ROWS: dict[str, Row] = {row.name: row for _title, rows in SECTIONS for row in rows}
