"""State in words: certificates, variables and ranges of bytes, for people and as JSON. Never a content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vmkeep.cli.console import size_text
from vmkeep.cli.tables import Table

if TYPE_CHECKING:
    from vmkeep.custody.certificates import Certificate, Signatures
    from vmkeep.custody.differences import StateDifference, VariableChange, VariableOutline


def certificate_text(certificate: Certificate) -> str:
    """Return a certificate for people: whose it is and until when."""
    if certificate.expires is None:
        return f"a certificate that cannot be read (SHA-256 {certificate.sha256[:16]})"
    ended = certificate.has_expired(datetime.now(UTC))
    return f"{certificate.subject}, {'expired' if ended else 'until'} {certificate.expires[:10]}"


def certificate_document(certificate: Certificate) -> dict[str, Any]:
    """Return a certificate as JSON."""
    return {**asdict(certificate), "expired": certificate.has_expired(datetime.now(UTC))}


def signatures_text(signatures: Signatures) -> str:
    """Return what lies in PK, KEK, db or dbx, a line each."""
    lines = [certificate_text(each) for each in signatures.certificates]
    if signatures.others:
        lines.append(f"{signatures.others} {'hash' if signatures.others == 1 else 'hashes'}")
    if signatures.problem is not None:
        lines.append(f"not all of it could be read: {signatures.problem}")
    return "\n".join(lines) or "empty"


def signatures_document(signatures: Signatures) -> dict[str, Any]:
    """Return what lies in PK, KEK, db or dbx as JSON."""
    return {
        "certificates": [certificate_document(each) for each in signatures.certificates],
        "others": signatures.others,
        "problem": signatures.problem,
    }


def difference_parts(difference: StateDifference) -> Iterator[str | Table]:
    """Yield what differs, for people."""
    if not difference.ranges:
        yield "nothing differs"
        return
    if difference.variables:
        yield Table(
            columns=("variable", "of", "change", "size", "SHA-256"),
            rows=[_variable_row(change) for change in difference.variables],
            names={"variable": 12},
            drop=("of",),
        )
        yield from (line for change in difference.variables for line in _certificates_told(change))
        return
    if difference.kind == "nvram" and difference.unread is None:
        yield "no variable differs, only bytes that do not count: what was deleted or replaced, and what lies between"
    if difference.unread is not None:
        yield f"the variables could not be read ({difference.unread}), so bytes were compared"
    if difference.encrypted:
        yield "the TPM state is encrypted: all of it changes with each write, whatever the guest changed"
    yield from _ranges_told(difference)


def difference_document(difference: StateDifference) -> dict[str, Any]:
    """Return what differs as JSON."""
    return {
        "kind": difference.kind,
        "equal": not difference.ranges,
        "before_bytes": difference.before_bytes,
        "after_bytes": difference.after_bytes,
        "differing_bytes": difference.differing_bytes,
        "ranges": [{"start": each.start, "length": each.length} for each in difference.ranges],
        "more_ranges": difference.more_ranges,
        "encrypted": difference.encrypted,
        "unread": difference.unread,
        "variables": [_change_document(change) for change in difference.variables],
    }


def _variable_row(change: VariableChange) -> tuple[str, ...]:
    before, after = change.before, change.after
    if before is None or after is None:
        only = after or before
        assert only is not None
        what = "added" if before is None else "removed"
        return change.name, change.vendor_name, what, size_text(only.size_bytes), only.sha256[:16]
    same = before.sha256 == after.sha256
    return (
        change.name,
        change.vendor_name,
        f"now {', '.join(after.attributes)}" if same else "changed",
        _both(size_text(before.size_bytes), size_text(after.size_bytes)),
        _both(before.sha256[:16], after.sha256[:16]),
    )


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _certificates_told(change: VariableChange) -> Iterator[str]:
    for word, certificates in (("added", change.certificates_added), ("removed", change.certificates_removed)):
        yield from (f"{change.name}: {word}: {certificate_text(each)}" for each in certificates)
    if change.others_added:
        word = "more" if change.others_added > 0 else "less"
        yield f"{change.name}: {abs(change.others_added)} hashes {word}"


def _ranges_told(difference: StateDifference) -> Iterator[str | Table]:
    size = _both(size_text(difference.before_bytes), size_text(difference.after_bytes))
    ranges = len(difference.ranges) + difference.more_ranges
    told = "1 range of bytes differs" if ranges == 1 else f"{ranges} ranges of bytes differ"
    yield f"{told}, {size_text(difference.differing_bytes)} in all, of {size}"
    rows = [(str(each.start), str(each.length)) for each in difference.ranges]
    yield Table(columns=("from byte", "bytes"), rows=rows, right=("from byte", "bytes"))
    if difference.more_ranges:
        yield f"and {difference.more_ranges} more"


def _change_document(change: VariableChange) -> dict[str, Any]:
    return {
        "name": change.name,
        "vendor": change.vendor,
        "vendor_name": change.vendor_name,
        "before": _outline_document(change.before),
        "after": _outline_document(change.after),
        "certificates_added": _certificate_documents(change.certificates_added),
        "certificates_removed": _certificate_documents(change.certificates_removed),
        "others_added": change.others_added,
    }


def _outline_document(outline: VariableOutline | None) -> dict[str, Any] | None:
    if outline is None:
        return None
    return {"attributes": list(outline.attributes), "size_bytes": outline.size_bytes, "sha256": outline.sha256}


def _certificate_documents(certificates: Iterable[Certificate]) -> list[dict[str, Any]]:
    return [certificate_document(each) for each in certificates]
