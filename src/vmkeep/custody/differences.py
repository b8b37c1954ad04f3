"""What differs between two contents of a state file, in words: names, sizes and hashes, never the contents. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from vmkeep.custody.certificates import Certificate, read_signatures
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.variables import Variable, read_variables
from vmkeep.values import dataclass

_PIECE_BYTES: Final = 4096
_GAP_BYTES: Final = 16
_MOST_RANGES: Final = 20


@dataclass(frozen=True, slots=True)
class DifferingRange:
    """A range of bytes in which two contents differ."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class VariableOutline:
    """What is told of a variable's content."""

    attributes: tuple[str, ...]
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VariableChange:
    """A variable that differs. ``before`` is None for one that was added, ``after`` for one that was removed.

    Of PK, KEK, db and dbx the certificates are told that came and went, and by how much the number of all else grew.
    """

    name: str
    vendor: str
    vendor_name: str
    before: VariableOutline | None
    after: VariableOutline | None
    certificates_added: tuple[Certificate, ...] = ()
    certificates_removed: tuple[Certificate, ...] = ()
    others_added: int = 0


@dataclass(frozen=True, slots=True)
class StateDifference:
    """How two contents of a state file differ.

    ``variables`` are told where both could be read; ``unread`` says why not. ``ranges`` are the first ranges of bytes
    that differ, close ones as one, and ``more_ranges`` how many follow; ``differing_bytes`` lie in all of them. What
    one has beyond the end of the other differs.
    ``encrypted``: one of them is an encrypted TPM state, of which everything differs after each write.
    """

    kind: str
    before_bytes: int
    after_bytes: int
    differing_bytes: int
    ranges: tuple[DifferingRange, ...]
    more_ranges: int
    encrypted: bool = False
    variables: tuple[VariableChange, ...] = ()
    unread: str | None = None


def compare_states(kind: str, before: bytes, after: bytes) -> StateDifference:
    """Return how two contents of a kind of state file differ."""
    ranges: list[DifferingRange] = []
    differing = more = 0
    for each in _differing_ranges(before, after):
        differing += each.length
        if len(ranges) < _MOST_RANGES:
            ranges.append(each)
        else:
            more += 1
    variables: tuple[VariableChange, ...] = ()
    unread = None
    if kind == "nvram":
        old, new = read_variables(before), read_variables(after)
        told = [f"{which}: {store.problem}" for which, store in (("before", old), ("after", new)) if store.problem]
        unread = "; ".join(told) or None
        if unread is None:
            variables = tuple(_changes({each.key: each for each in old.variables}, {v.key: v for v in new.variables}))
    return StateDifference(
        kind,
        len(before),
        len(after),
        differing,
        tuple(ranges),
        more,
        kind == "tpm" and (is_encrypted(before) or is_encrypted(after)),
        variables,
        unread,
    )


def _changes(before: Mapping[bytes, Variable], after: Mapping[bytes, Variable]) -> Iterator[VariableChange]:
    both = {**before, **after}
    for key, of in sorted(both.items(), key=lambda each: (each[1].vendor_name, each[1].name, each[0])):
        old, new = before.get(key), after.get(key)
        if old is not None and new is not None and (old.sha256, old.attributes) == (new.sha256, new.attributes):
            continue
        came: tuple[Certificate, ...] = ()
        went: tuple[Certificate, ...] = ()
        grown = 0
        if of.holds_signatures:
            had = read_signatures(old.content if old else b"")
            has = read_signatures(new.content if new else b"")
            came = tuple(each for each in has.certificates if each not in had.certificates)
            went = tuple(each for each in had.certificates if each not in has.certificates)
            grown = has.others - had.others
        yield VariableChange(of.name, of.vendor, of.vendor_name, _outline(old), _outline(new), came, went, grown)


def _outline(variable: Variable | None) -> VariableOutline | None:
    if variable is None:
        return None
    return VariableOutline(variable.attribute_words, variable.size_bytes, variable.sha256)


def _differing_ranges(before: bytes, after: bytes) -> Iterator[DifferingRange]:
    """Yield the ranges in which they differ, ascending; those with less than 16 equal bytes between them as one."""
    shared = min(len(before), len(after))
    start = end = -1
    for piece in range(0, shared, _PIECE_BYTES):
        ours, theirs = (
            before[piece : min(piece + _PIECE_BYTES, shared)],
            after[piece : min(piece + _PIECE_BYTES, shared)],
        )
        if ours == theirs:
            continue
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True), start=piece):
            if one == other:
                continue
            if start >= 0 and place - end >= _GAP_BYTES:
                yield DifferingRange(start, end - start)
                start = -1
            start = place if start < 0 else start
            end = place + 1
    longest = max(len(before), len(after))
    if longest > shared:
        if start >= 0 and shared - end >= _GAP_BYTES:
            yield DifferingRange(start, end - start)
            start = -1
        start, end = (shared if start < 0 else start), longest
    if start >= 0:
        yield DifferingRange(start, end - start)
