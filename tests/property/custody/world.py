"""Installations that keep one VM in one repository, with hosts of which only the TPM state file is there.

What is read, stored, accepted, pinned, taken over and told the gate is decided by vmkeep's own code, on a real
repository; only the file on the host, and who answers when, are made up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from tests.integration.repository.samples import record_of
from vmkeep.catalog import Adopted, Catalog, CatalogSnapshot, CatalogState, KnownHostKey, OperationState, Trust
from vmkeep.custody.standing import NOTHING, FoundState, JudgedState, judge_state
from vmkeep.custody.states import KnownState
from vmkeep.errors import CatalogError, VmkeepError
from vmkeep.flows.catch_up import catch_up
from vmkeep.flows.catch_up_on_pins import catch_up_on_pins
from vmkeep.flows.gate import gated_vm
from vmkeep.flows.installation import catalog_point, catalog_states
from vmkeep.flows.settle_pins import settle_pins
from vmkeep.flows.take_point import descent, record_found
from vmkeep.flows.vm_states import doubtful_versions, grounds_of, is_tracked, known_states, new_state
from vmkeep.host.vm.versions import StoredStates, store_states
from vmkeep.keys.signing import SigningKey
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import PointRecord, Repository
from vmkeep.statefiles.capture import CapturedState

VM = "16b6c512-678b-44b6-a438-527ecc51f748"
FILE = "tpm2/tpm2-00.permall"
RULE = KeepRule(last=2)
_TIMES = {"seen_at", "since", "first_at", "last_at", "started", "updated", "finished"}


def content_of(number: int) -> bytes:
    """Return the content of the state file that the guest wrote as its n-th."""
    return hashlib.shake_256(b"%d" % number).digest(600)


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Compared:
    """Catalogues that are asked the same, and must answer the same."""

    def __init__(self, *catalogs: Catalog) -> None:
        self.catalogs = catalogs

    @classmethod
    def catalog(cls, *catalogs: Catalog) -> Catalog:
        return cast("Catalog", cls(*catalogs))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*given: Any, **named: Any) -> Any:
            outcomes = [_outcome(getattr(catalog, name), given, named) for catalog in self.catalogs]
            told = [_plain(outcome) for outcome in outcomes]
            assert told == told[:1] * len(told), name
            if isinstance(outcomes[0], VmkeepError):
                raise outcomes[0]
            return outcomes[0]

        return ask


def _outcome(method: Callable[..., Any], given: Sequence[Any], named: dict[str, Any]) -> Any:
    try:
        return method(*given, **named)
    except VmkeepError as error:
        return error


def _plain(value: Any) -> Any:
    """Return a value without times at which it was written, and sentences, whose words are each one's own."""
    if isinstance(value, VmkeepError):
        return type(value)
    if is_dataclass(value) and not isinstance(value, type):
        told = {each.name: _plain(getattr(value, each.name)) for each in fields(value) if each.name not in _TIMES}
        return told | ({"conflicts": len(value.conflicts)} if isinstance(value, Adopted) else {})
    if isinstance(value, tuple):
        return (
            len(value)
            if value and all(isinstance(each, str) and " " in each for each in value)
            else [*map(_plain, value)]
        )
    return value


@dataclass
class Reply:
    """What a host has read and stored, and the catalogue has not heard of yet. ``meant``: that may count as newest."""

    stored: StoredStates
    states: tuple[CatalogState, ...]


@dataclass
class Home:
    """An installation: its catalogue, its key, and the file of the VM on its host, None for none.

    ``made`` are the ids of all versions that it stored, in that order. ``lost``: its catalogue was lost once, so where
    the VM came from may be nothing that it knows. ``seen``: it kept something of the VM. ``repeated`` are the versions
    of ``made`` that may have an older content: somebody put it there on purpose, or nobody knew where the VM was.
    """

    name: str
    key: SigningKey
    catalog: Catalog
    repository: Repository
    cache: Path
    file: bytes | None = None
    torn: bool = False
    lost: bool = False
    seen: bool = False
    repeated: set[str] = field(default_factory=set)
    made: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    committed: list[PointRecord] = field(default_factory=list)

    def begin(self) -> None:
        """Know one's own key, as every installation does before anything else."""
        self.repository.sign_with(lambda: self.key)
        key = self.key
        self.catalog.see_host_key(
            KnownHostKey(
                key.fingerprint, key.public_key.hex(), key.installation, key.host, Trust.OWN, machine=key.machine
            )
        )

    # -- what is kept ------------------------------------------------------------------------------------------

    def read(self) -> Reply:
        """Read the file and put what is new into the repository; the catalogue hears of it later, or never."""
        known = known_states(self.catalog, VM, self.catalog.points_of_vm(VM))
        stored = store_states(self.repository, self.repository, self._found(known), known, VM)
        states = tuple(replace(new_state(VM, each), kind="tpm") for each in stored.new_versions())
        self.made += [state.id for state in states]
        self.repeated |= {state.id for state in states if self._may_repeat(state.sha256)}
        return Reply(stored, states)

    def _may_repeat(self, sha256: str) -> bool:
        if sha256 == self.catalog.placed_states(VM).get("tpm"):
            return True
        doubtful = self.doubtful()
        same = {each.id for each in self.catalog.states_of_vm(VM) if each.sha256 == sha256 and not each.conflict}
        return not self.knows_where and bool(same - doubtful)

    @property
    def knows_where(self) -> bool:
        """Whether an older file is known for one: by what this installation sees, and not by what is told to it."""
        return is_tracked(self.catalog, VM) or (self.seen and not self.lost)

    def doubtful(self) -> frozenset[str]:
        """Return the versions that say nothing about a content."""
        return doubtful_versions(self.catalog, VM)

    def read_alone(self) -> Reply:
        """Read the file as a capture does."""
        self.catch_up()
        return self.read()

    def _found(self, known: Sequence[KnownState]) -> Iterator[CapturedState]:
        if self.torn or (self.file is None and known):
            raise CatalogError("the file is no state")  # as StateTorn and HostFileMissing: nothing is kept
        if self.file is not None:
            yield CapturedState("tpm", FILE, self.file, "tss", "tss", 0o600, "host")

    def accept(self, reply: Reply) -> None:
        """Let the catalogue hear of it, as ``capture_states`` does."""
        self.catalog.see_vm(VM, "win11")
        self.seen = True
        self.catalog.accept_states(reply.states)
        self.settle()

    def settle(self, without: str | None = None) -> None:
        settle_pins(self.catalog, self.repository, VM, RULE, without=without)

    def catch_up(self) -> None:
        catch_up(self.catalog, self.repository, lambda point: point.vm_uuid == VM)

    def commit(self, labels: dict[str, str]) -> PointRecord:
        """Take a point up to where it stands in the repository."""
        self.catch_up()
        reply = self.read()
        with self.repository.begin(purpose="point", host=self.name, cache=self.cache, workers=1) as writer:
            record = record_of((), states=reply.stored.refs)
            return writer.commit(
                replace(
                    record,
                    vm_uuid=VM,
                    vm_name="win11",
                    host=self.name,
                    parent=descent(self.catalog, VM),
                    labels=labels,
                    sequence=self.catalog.next_sequence(VM),
                )
            )

    def record(self, point: PointRecord) -> None:
        self.seen = True
        self.catalog.record_point(catalog_point(point), catalog_states(point))

    def die(self, point: PointRecord) -> None:
        """Be killed after a point was committed: its operation stays begun, and nobody else takes the point over."""
        self.catalog.begin_operation(point.id, "point.take", "win11", self.name, {})
        self.committed.append(point)

    def recover(self) -> None:
        """Record the points of killed processes, as each command does before it begins."""
        for point in self.committed:
            record_found(self.catalog, point)
            self.seen = True
            self.catalog.move_operation(point.id, self.name, OperationState.DONE)
        self.committed.clear()

    def snapshot(self, number: int, name: str) -> None:
        self.catch_up()
        reply = self.read()
        states = tuple(
            CatalogState(
                ref.version_id,
                VM,
                "tpm",
                ref.generation,
                ref.sha256,
                ref.size_bytes,
                "2026-01-01T00:00:00.000000+00:00",
                because=ref.because,
            )
            for ref in reply.stored.refs
        )
        self.catalog.see_vm(VM, "win11")
        self.seen = True
        here = descent(self.catalog, VM)
        created = "2026-01-01T00:00:00.000000+00:00"
        self.catalog.record_snapshot(CatalogSnapshot(f"{number:032x}", VM, name, number, here, created, states))
        self.settle()

    def adopt_all(self) -> None:
        """Take over what the repository holds, as `vmkeep init --adopt` does."""
        records = [self.repository.point(point_id) for point_id in self.repository.point_ids()]
        self.catalog.adopt([(catalog_point(record), catalog_states(record)) for record in records])
        catch_up_on_pins(self.catalog, self.repository, lambda _vm: True)

    # -- what is so ----------------------------------------------------------------------------------------------

    def judged(self) -> JudgedState:
        """Return how the file stands."""
        found = FoundState("tpm", FILE, None if self.file is None else hash_of(self.file))
        return judge_state(found, grounds_of(self.catalog, VM))

    def may_start(self) -> bool:
        """Return what the gate, which goes by the catalogue as it is now, says to a start with this file."""
        for state in gated_vm(self.catalog, VM).states:
            content = NOTHING if self.file is None else hash_of(self.file)
            if content in state.allowed:
                return True
            return bool(content) and content not in state.superseded
        return True
