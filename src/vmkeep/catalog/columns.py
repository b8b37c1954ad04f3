"""The types of the catalogue's columns: on PostgreSQL they hold and sort what they do on SQLite.

SQLite keeps whole numbers of 64 bits and texts of any length, and sorts texts by their bytes, which in UTF-8 is by code
points. PostgreSQL is told to do the same, whatever the locale of its cluster. The revisions of the schema are made of
these too, so what is here stays as it is. One type serves all columns that have it: one for each of 136 columns took
some milliseconds to make, and again to compile statements for, in each command.
"""

from __future__ import annotations

from functools import cache

from sqlalchemy import BigInteger, Integer, String, Text
from sqlalchemy.types import TypeEngine


@cache
def text(length: int | None = None) -> TypeEngine[str]:
    """A text. ``length`` says what is put there; no database holds the text against it."""
    declared = Text() if length is None else String(length)
    return declared.with_variant(Text(collation="C"), "postgresql")


@cache
def whole() -> TypeEngine[int]:
    """A whole number of 64 bits."""
    return Integer().with_variant(BigInteger(), "postgresql")
