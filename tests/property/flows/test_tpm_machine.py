"""TPMs are taken out, put in, reset and rekeyed while steps fail, undos fail and processes die: nothing kept is lost.

The flows, the catalogue in memory and the repository are vmkeep's own; the host and what DBOS records are the twins of
``tpm_twin``. A flow that ended is done or all is as it was before; one whose undo failed waits, and ends undone. At no
moment has the VM a device whose state vmkeep took away, because libvirt would make a blank TPM then, nor one that names
a secret which libvirt lacks or which does not open the state. What opens a version is always kept somewhere.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.examples import examples
from tests.integration.catalog.examples import example_point, make_tables
from tests.integration.repository.samples import opener, sample_key
from tests.property.flows.tpm_twin import (
    NAME,
    SECRET,
    VM,
    Death,
    StepRecorder,
    TpmTwin,
    Truth,
    element_with,
    full,
    secret_in,
    state_of,
)
from tests.rig.database import shared_cluster
from tests.unit.repository.signed import SIGNER
from vmkeep.catalog import Catalog, CatalogState, KnownHostKey, MemoryCatalog, SqlCatalog, Trust
from vmkeep.custody.standing import NOTHING
from vmkeep.custody.states import ChosenVersion
from vmkeep.errors import Interrupted, UndoStopped, VmkeepError
from vmkeep.flows import plan
from vmkeep.flows.add_tpm import add_tpm
from vmkeep.flows.plan import Flow, Run, workflow_of
from vmkeep.flows.rekey_tpm import rekey_tpm
from vmkeep.flows.remove_tpm import remove_tpm
from vmkeep.flows.requests import AddTpm, RekeyTpm, RemoveTpm, ResetTpm
from vmkeep.flows.reset_tpm import reset_tpm
from vmkeep.flows.secret_holders import holder_for, secret_holders
from vmkeep.flows.services import Services
from vmkeep.flows.tpm_renewal import key_of_operation
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.tpms import LetTpmGo
from vmkeep.planning.retention import KeepRule
from vmkeep.repository import Repository

_RULE = KeepRule(last=50)
_GONE = "the process is dead"
faults = st.lists(
    st.tuples(
        st.integers(0, 18), st.sampled_from(["before", "after"]), st.sampled_from(["fails", "fails", "dies", "stops"])
    ),
    max_size=3,
    unique_by=lambda fault: fault[:2],
)


@dataclass
class _Started:
    """A flow that has not ended: its record, and what was there before it."""

    flow: Flow[Any, Any]
    request: Any
    steps: StepRecorder
    before: Truth
    placed: dict[str, str]
    versions: int
    undone: bool = False


class Tpms(RuleBasedStateMachine):
    """One VM; its guest writes, points are made and deleted, and one flow at a time is begun."""

    def __init__(self) -> None:
        super().__init__()
        self.places = ExitStack()
        directory = Path(self.places.enter_context(tempfile.TemporaryDirectory(dir=_memory())))
        Repository.create(str(directory / "repository"), sample_key())
        self.repository = Repository.open(str(directory / "repository"), opener(sample_key()))
        self.repository.sign_with(lambda: SIGNER)
        self.catalog = self.opened(directory)
        key = SIGNER
        self.catalog.see_host_key(
            KnownHostKey(
                key.fingerprint, key.public_key.hex(), key.installation, key.host, Trust.OWN, machine=key.machine
            )
        )
        self.number = 0
        self.started: _Started | None = None
        self.known: dict[str, str] = {}
        self.stopped = False

    def opened(self, directory: Path) -> Catalog:  # noqa: ARG002  it is kept there by others
        return MemoryCatalog()

    @initialize(encrypted=st.booleans())
    def begin(self, encrypted: bool) -> None:
        secret = SECRET if encrypted else ""
        self.truth = Truth(element_with(secret), secrets=frozenset({secret} - {""}))
        self.twin = TpmTwin(lambda: self.repository, self.truth)
        self.twin.look = self._look
        self.taken = False
        self._write()

    def teardown(self) -> None:
        self.catalog.close()
        self.places.close()

    # -- what happens besides --------------------------------------------------------------------------------------

    @precondition(lambda self: self.started is None and self.truth.element)
    @rule()
    def guest_runs_and_writes(self) -> None:
        """A blank TPM gets its state with that."""
        self._write()

    def _write(self) -> None:
        self.number += 1
        content = state_of(self.number, self.truth.secret)
        self.twin.opens[hashlib.sha256(content).hexdigest()] = self.truth.secret
        self.truth.content = content

    @precondition(lambda self: self.truth.secret == SECRET and not self.taken)
    @rule()
    def point_with_the_secret(self) -> None:
        self.taken = True
        point = example_point("point", vm=VM, vm_name=NAME)
        secrets = [{"uuid": SECRET, "usage": "vtpm"}]
        self.catalog.record_point(
            replace(point, document={**point.document, "secrets": secrets}, signed_by=SIGNER.fingerprint)
        )

    # -- the flows ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.started is None)
    @rule(faults=faults)
    def removed(self, faults: list[tuple[int, str, str]]) -> None:
        self._begin(remove_tpm, RemoveTpm(NAME), faults)

    @precondition(lambda self: self.started is None and not self.truth.element and not self.truth.content)
    @rule(faults=faults, pick=st.integers(0, 5), blank=st.sampled_from([True, False, False]))
    def added(self, faults: list[tuple[int, str, str]], pick: int, blank: bool) -> None:
        versions = self.catalog.states_of_vm(VM)
        request = AddTpm(NAME, VM, "tpm-crb")
        if versions and not blank:
            version = versions[pick % len(versions)]
            secret = self.twin.opens[version.sha256]
            holder = holder_for(secret_holders(self.catalog, VM), version.id, secret) if secret else None
            request = replace(
                request,
                version=ChosenVersion("tpm", version.id, version.sha256),
                secret=secret,
                secret_point="" if holder is None else holder.point,
                secret_pin="" if holder is None else holder.pin,
            )
        self._begin(add_tpm, request, faults)

    @precondition(lambda self: self.started is None)
    @rule(faults=faults)
    def reset(self, faults: list[tuple[int, str, str]]) -> None:
        self._begin(reset_tpm, ResetTpm(NAME), faults)

    @precondition(lambda self: self.started is None)
    @rule(faults=faults, plain=st.sampled_from([False, False, True]))
    def rekeyed(self, faults: list[tuple[int, str, str]], plain: bool) -> None:
        self._begin(rekey_tpm, RekeyTpm(NAME, plain=plain), faults)

    @precondition(lambda self: self.started is not None)
    @rule(faults=faults)
    def taken_up(self, faults: list[tuple[int, str, str]]) -> None:
        """By the next command, or by a person where an undo failed."""
        assert self.started is not None
        self._carry(self.started, faults)

    def _begin(self, flow: Flow[Any, Any], request: Any, faults: list[tuple[int, str, str]]) -> None:
        self.number += 1
        placed = {kind: each for kind, each in self.catalog.placed_states(VM).items() if each is not None}
        self.started = _Started(
            flow,
            request,
            StepRecorder(f"{self.number:032x}"),
            copy(self.truth),
            placed,
            len(self.catalog.states_of_vm(VM)),
        )
        self._carry(self.started, faults)

    def _carry(self, started: _Started, faults: list[tuple[int, str, str]]) -> None:
        started.steps.begin()
        self.stopped = False
        self.twin.fault = self._faults(faults)
        run = workflow_of(started.flow.name, lambda _name: started.flow, self._services, dict[str, Run]())
        try:
            with patch.object(plan, "DBOS", started.steps):
                run(started.request)
        except UndoStopped as stopped:
            started.undone = bool(stopped.error.left)
        except Death:
            pass
        except VmkeepError:
            self.started = None
            self._is_as_before(started)
        else:
            assert not started.undone, "what was being undone was carried on"
            self.started = None
            self._is_done(started)
        finally:
            self.twin.fault = lambda _task, _when: None

    def _faults(self, faults: list[tuple[int, str, str]]) -> Callable[[Task[Any], str], None]:
        """Let the n-th task of a run fail, the process die at it, or a stop come."""
        wanted = {(number, when): what for number, when, what in faults}
        seen = {"before": 0, "after": 0}

        def fault(task: Task[Any], when: str) -> None:
            what = wanted.get((seen[when], when))
            seen[when] += 1
            if what == "dies":
                raise Death(_GONE)
            self.stopped = self.stopped or what == "stops"
            if what == "fails" and not (when == "after" and isinstance(task, LetTpmGo)):
                raise full(task)

        return fault

    def _services(self) -> Services:
        return Services(
            hosts={"this": self.twin},
            at="this",
            catalog=self.catalog,
            repository=lambda: self.repository,
            stop=self._stop,
            watch=lambda _progress: None,
            stalled_after_seconds=60,
            keep_state_versions=lambda: _RULE,
        )

    def _stop(self) -> None:
        """A person presses Ctrl-C; what is being undone then is undone to its end, whoever dies meanwhile."""
        if self.stopped:
            assert self.started is not None
            self.started.undone = True
            raise Interrupted("Interrupted by Ctrl-C")

    # -- what is promised --------------------------------------------------------------------------------------------

    def _is_as_before(self, started: _Started) -> None:
        before = started.before
        assert (self.truth.element, self.truth.content) == (before.element, before.content)
        assert self.truth.secrets == before.secrets, "libvirt's secrets are not as they were"
        assert all(each.id != started.steps.workflow_id for each in self.catalog.deletions()), "a proof of nothing"
        placed = {kind: each for kind, each in self.catalog.placed_states(VM).items() if each is not None}
        if len(self.catalog.states_of_vm(VM)) == started.versions:  # one that was kept counts in its place
            assert placed == started.placed, "what counts as meant is not as it was"
        elif before.content is not None:
            newest = self.catalog.newest_state(VM, "tpm")
            counts = placed.get("tpm", "" if newest is None else newest.sha256)
            assert counts == hashlib.sha256(before.content).hexdigest(), "what lies there does not count"

    def _is_done(self, started: _Started) -> None:
        if started.flow is add_tpm:
            self._is_added(started.request.version, started.request.secret)
            return
        if started.before.element or started.before.content:
            self._is_proved(started)
        if started.flow is rekey_tpm:
            assert self.truth.content is not None
            self._is_renewed(started, plain=started.request.plain)
            return
        assert self.truth.content is None
        assert self.catalog.placed_states(VM).get("tpm") == NOTHING
        if started.flow is remove_tpm:
            assert self.truth.element == ""
        else:
            self._is_renewed(started, plain=not started.before.secret)

    def _is_renewed(self, started: _Started, *, plain: bool) -> None:
        key = "" if plain else key_of_operation(started.steps.workflow_id)
        assert secret_in(self.truth.element) == key
        assert self.truth.element == element_with(key)

    def _is_proved(self, started: _Started) -> None:
        """The proof is in the repository, and says of the old state and its secret what became of them."""
        before = started.before
        proof = self.repository.deletions.get(started.steps.workflow_id)
        assert proof.renewal == {reset_tpm: "reset", rekey_tpm: "rekey"}.get(started.flow)
        assert (proof.kept_until is None) == (proof.renewal is not None)
        deleted = [file.sha256 for file in proof.files if file.outcome == "deleted"]
        assert deleted == ([] if before.content is None else [hashlib.sha256(before.content).hexdigest()])
        gone = before.secret if before.secret not in self.truth.secrets else ""
        assert ("" if proof.secret is None or proof.secret.outcome != "undefined" else proof.secret.uuid) == gone
        assert not gone or proof.secret is None or proof.secret.held_by, "its value is nowhere"

    def _is_added(self, version: ChosenVersion | None, secret: str) -> None:
        assert self.truth.element
        if version is None:
            assert self.truth.content is None
        else:
            assert self.truth.content is not None
            assert hashlib.sha256(self.truth.content).hexdigest() == version.sha256
        assert self.truth.secret == secret
        assert secret in {"", *self.truth.secrets}

    def _look(self) -> None:
        """After each effect: no device without the state that vmkeep took or has to give, and no key destroyed."""
        started = self.started
        assert started is not None
        needs = started.request.version if started.flow is add_tpm else started.before.content
        content, secret = self.truth.content, self.truth.secret
        if needs is not None and self.truth.element and content is None:
            is_meant = started.flow is reset_tpm and self.catalog.placed_states(VM).get("tpm") == NOTHING
            assert is_meant, "a VM that can start would get a blank TPM"
        if self.truth.element:
            assert secret in {"", *self.truth.secrets}, "the device names a secret that libvirt lacks"
            if content is not None:
                assert self.twin.opens[hashlib.sha256(content).hexdigest()] == secret, "the state does not open"
        self.every_version_can_be_opened()

    @invariant()
    def every_version_can_be_opened(self) -> None:
        held = {"", *self.truth.secrets, *(holder.uuid for holder in secret_holders(self.catalog, VM))}
        for version in self.catalog.states_of_vm(VM):
            assert self.twin.opens[version.sha256] in held, "the secret is nowhere"

    @invariant()
    def every_version_can_be_read(self) -> None:
        for version in self.catalog.states_of_vm(VM):
            self._read(version)
            self.known[version.id] = version.sha256
        assert self.known.keys() == {version.id for version in self.catalog.states_of_vm(VM)}

    def _read(self, version: CatalogState) -> None:
        assert hashlib.sha256(self.repository.state(version.id)[1]).hexdigest() == version.sha256
        assert self.catalog.pins(version.id), "nothing holds the version"


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108  mkdtemp makes the name


_PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


class TpmsOnSqlite(Tpms):
    def opened(self, directory: Path) -> Catalog:
        return SqlCatalog.open(directory / "catalog.sqlite")


class TpmsOnPostgres(Tpms):
    def opened(self, directory: Path) -> Catalog:  # noqa: ARG002
        return SqlCatalog.connect(self.places.enter_context(shared_cluster().database(make_tables)))


TestTpms = Tpms.TestCase
TestTpms.settings = settings(max_examples=examples(25), stateful_step_count=12, deadline=None, phases=_PHASES)

# A step that is repeated after a death meets what the catalogue has: each keeps that in its own way.
_FEW = settings(max_examples=examples(3), stateful_step_count=10, deadline=None, phases=_PHASES)
TestTpmsOnSqlite = TpmsOnSqlite.TestCase
TestTpmsOnSqlite.settings = _FEW
TestTpmsOnPostgres = pytest.mark.usefixtures("cluster")(TpmsOnPostgres.TestCase)
TestTpmsOnPostgres.settings = _FEW
