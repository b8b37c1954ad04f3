"""Let the catalogue take over pins of the repository that it does not know: versions that no point names, and what is
kept with snapshots.

As with points (``flows.catch_up``): the names are listed, and those are read that were never seen. No flow of DBOS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmkeep.catalog import Catalog, FoundPin
from vmkeep.errors import IntegrityError, ObjectMissing
from vmkeep.flows.hosts import meet_signers
from vmkeep.flows.installation import MetHost
from vmkeep.repository import PinRecord
from vmkeep.values import dataclass


class HeldPins(Protocol):
    """The part of a repository that is asked."""

    def ids(self) -> list[str]: ...

    def get(self, pin_id: str) -> PinRecord: ...


class HoldsPins(Protocol):
    """A repository, as far as its pins."""

    @property
    def pins(self) -> HeldPins: ...


@dataclass(frozen=True, slots=True)
class PinsTaken:
    """``taken`` are the VMs of pins that were taken over, ``told`` sentences about what could not be, and about
    versions that contradict known ones; ``hosts`` sign with keys that are new here.
    """

    taken: frozenset[str] = frozenset()
    told: tuple[str, ...] = ()
    hosts: tuple[MetHost, ...] = ()


def catch_up_on_pins(catalog: Catalog, repository: HoldsPins, counts: Callable[[str], bool]) -> PinsTaken:
    """Take over pins of VMs that count, by their UUIDs. Points come before: theirs are the versions that were first.

    Raises what listing the repository raises.
    """
    stored = repository.pins.ids()
    passed = catalog.passed_pins()
    known = catalog.pin_ids()
    found: list[FoundPin] = []
    records: list[PinRecord] = []
    told: list[str] = []
    strange: dict[str, str] = {}
    for pin_id in stored:
        if pin_id in known or (pin_id in passed and not counts(passed[pin_id])):
            continue
        try:
            record = repository.pins.get(pin_id)
        except ObjectMissing:
            continue  # deleted meanwhile
        except IntegrityError as error:
            told.append(f"a pin of the repository could not be taken over: {error.message}")
            continue
        if counts(record.vm_uuid):
            from vmkeep.flows.settle_pins import found_pin

            records.append(record)
            found.append(found_pin(record))
        else:
            strange[pin_id] = record.vm_uuid
    if strange:
        catalog.pass_pins(strange)
    if not found:
        return PinsTaken(told=tuple(told))
    hosts = meet_signers(catalog, ((record.signature, record.host) for record in records))
    told += catalog.adopt_pins(found)
    return PinsTaken(frozenset(record.vm_uuid for record in records), tuple(told), hosts)
