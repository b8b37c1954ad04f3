"""Either kind of moment, read and written by one name each."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from vmkeep.moments.checkpoints import format_checkpoint, parse_checkpoint
from vmkeep.moments.model import Checkpoint, Snapshot
from vmkeep.moments.snapshots import format_snapshot, parse_snapshot
from vmkeep.moments.tree import MomentKind
from vmkeep.moments.writing import without_passwords

AnyMoment = Checkpoint | Snapshot
_ROOT: Final = re.compile(r"<domain(checkpoint|snapshot)>")


def parse_moment(kind: MomentKind, xml: str, *, validate: bool = False) -> AnyMoment:
    """Return a moment that exists, as libvirt tells it or takes it to redefine it. Raises MomentError.

    ``validate`` applies the schema of snapshots; checkpoints always meet theirs.
    """
    if kind is MomentKind.CHECKPOINT:
        return parse_checkpoint(xml, redefine=True)
    return parse_snapshot(xml, redefine=True, validate=validate)


def format_moment(moment: AnyMoment, *, secure: bool = False) -> str:
    """Return a moment as libvirt 9.0 writes it; ``secure`` keeps passwords."""
    if isinstance(moment, Checkpoint):
        return format_checkpoint(moment, secure=secure)
    return format_snapshot(moment, secure=secure)


def redefinable(xml: str) -> str:
    """Return a document of libvirt's as libvirt takes it again.

    A creation time of 0 is not written by libvirt, and demanded when the moment is redefined. One that is indented
    deeper is in the metadata of the domain.
    """
    if "\n  <creationTime>" in xml:
        return xml
    return _ROOT.sub(r"\g<0>\n  <creationTime>0</creationTime>", xml, count=1)


def with_domain_kept(moment: AnyMoment, existing: AnyMoment) -> AnyMoment:
    """Return the moment with what it leaves out of the definition of the VM that the existing one holds.

    libvirt takes a checkpoint without a domain as it is, and forgets the one that it had. A document that was
    asked for without passwords has them again.
    """
    kept = replace(moment, domain=_kept(moment.domain, existing.domain))
    if isinstance(kept, Snapshot) and isinstance(existing, Snapshot):
        kept = replace(kept, inactive_domain=_kept(kept.inactive_domain, existing.inactive_domain))
    return kept


def _kept(domain: str | None, existing: str | None) -> str | None:
    if existing is None or (domain is not None and domain != without_passwords(existing)):
        return domain
    return existing
