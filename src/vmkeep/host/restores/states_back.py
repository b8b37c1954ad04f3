"""Kept versions of state files put back in place of what a VM has, with nothing of its disks.

Made like a restore in place: the VM is kept from starting, a journal is written and synced before anything is replaced,
and it decides what every later step does, in this process or in the one after a crash. What is replaced was kept as a
version before, lies aside until the VM may start again, and is put back when a step fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from vmkeep.commandline import command_line
from vmkeep.custody.encryption import is_encrypted
from vmkeep.custody.states import ChosenVersion, SecretSource
from vmkeep.custody.variables import QCOW2
from vmkeep.definition import Definition
from vmkeep.errors import InvalidRequest, StateTorn, StateUnsupported, VmBusy
from vmkeep.host.operation import Operation
from vmkeep.host.records.restore import RestoreJournal, RestoreStage, StatesReturn, journal_path
from vmkeep.host.restores.items import item_at, publish_items
from vmkeep.host.restores.selection import NAMES, TPM_ALONE, VARIABLES_ALONE, without_tpm
from vmkeep.host.restores.unfinished import Unfinished
from vmkeep.host.tasks.restores import (
    DeliveredItem,
    ParkForStates,
    PublishItems,
    StatesParked,
)
from vmkeep.host.tasks.unfinished import RestoreSettled
from vmkeep.host.vm.definition import read_definition, with_volumes_found
from vmkeep.host.vm.fitness import require_off
from vmkeep.host.vm.found_states import found_state
from vmkeep.host.vm.held import domain_of
from vmkeep.host.vm.secrets import (
    Holder,
    NeededSecret,
    SecretPlan,
    define_secrets,
    plan_secrets,
    refuse_another_key,
)
from vmkeep.host.vm.states import StateSource, chosen_state, state_sources
from vmkeep.host.vm.trial import try_with_kept_secret, try_with_secret
from vmkeep.hypervisor import Domain
from vmkeep.repository import StateVersion
from vmkeep.repository.chosen import read_chosen
from vmkeep.statefiles.capture import needs_another_file
from vmkeep.statefiles.installation import make_folder, stage_file, stage_tpm
from vmkeep.statefiles.location import StateRoots, swtpm_owner


def puts_states_back(operation: Operation) -> bool:
    """Return whether what an operation has begun is one of these, by its journal."""
    try:
        path = journal_path(operation.settings.restores_dir, operation.id)
        return RestoreJournal.load(path).states is not None
    except (OSError, ValueError):
        return False  # over just now, or not to be read: the restore in place says so


class StatesBack(Unfinished):
    """One such return."""

    kind = "state restore"
    doubt = "it is kept from starting, and its state files may be of two versions"

    # -- ParkForStates -----------------------------------------------------------------------------------------

    def park(self, task: ParkForStates) -> StatesParked:
        """Write the journal and keep the VM from starting; on failure nothing of it is left."""
        domain = domain_of(self._hypervisor, task.vm_uuid)
        self._parking.lock(domain, self._stop)
        try:
            require_off(domain)
            journal = self._parking.load()
            present = self._parking.definition_xml(domain, journal)
            definition = with_volumes_found(read_definition(present, domain), self._hypervisor)
            sources = self._sources(definition, task.versions)
            self._require_opens(task.versions, task.secret, definition)
            secrets = self._plan_secrets(task.secret, definition)
            if journal is None:
                self._refuse_changed(domain, sources, task.found)
                journal = self._new_journal(task, domain, present, definition, sources)
                self._parking.save(journal)
            self._parking.park(domain, journal)
        except BaseException:
            self._parking.unlock()
            raise
        return StatesParked(domain.uuid, domain.name, (*_told_of_pairing(definition, set(sources)), *secrets.warnings))

    def _sources(self, definition: Definition, versions: tuple[ChosenVersion, ...]) -> dict[str, StateSource]:
        """Return where what goes back lies, by kind."""
        present = {source.kind: source for source in state_sources(definition, StateRoots.of(self._hypervisor.uri))}
        for version in versions:
            if version.kind not in present and version.kind == "tpm":
                raise without_tpm(definition, version.sha256[:16])
            if version.kind not in present:
                raise InvalidRequest(
                    f"VM {definition.name!r} has no {NAMES[version.kind]}",
                    vm=definition.name,
                    hint="They belong to a VM whose definition has UEFI firmware.",
                )
        return {version.kind: present[version.kind] for version in versions}

    def _new_journal(
        self,
        task: ParkForStates,
        domain: Domain,
        present: str,
        definition: Definition,
        sources: dict[str, StateSource],
    ) -> RestoreJournal:
        path, target, element = self._parking.place(domain, present, definition)
        versions = {version.kind: version for version in task.versions}
        return RestoreJournal(
            operation=self._operation,
            uri=self._hypervisor.uri,
            vm=domain.name,
            vm_uuid=domain.uuid,
            point="",
            safety="",
            disks=(),
            items=tuple(self._item(source, versions[kind]) for kind, source in sources.items()),
            parked_path=path,
            parked_target=target,
            parked_element=element,
            whole=False,
            states=StatesReturn(task.found, task.secret),
        )

    def _item(self, source: StateSource, version: ChosenVersion) -> DeliveredItem:
        state = chosen_state(source)
        item = item_at(state.kind, state.kind, state.place, self._operation)
        return replace(item, file=state.file, version=version.id, sha256=version.sha256)

    def _refuse_changed(
        self, domain: Domain, sources: dict[str, StateSource], found: tuple[tuple[str, str], ...]
    ) -> None:
        """Refuse when a state file is not what was kept: the VM ran since, or something else wrote to it."""
        kept = dict(found)
        for kind, source in sources.items():
            now = found_state(source)
            if now.problem is not None or (now.sha256 or "") != kept.get(kind, ""):
                raise VmBusy(
                    f"the {NAMES[kind]} state of VM {domain.name!r} changed after it was kept: the VM was started "
                    f"meanwhile, or something else wrote to {source.path}",
                    vm=domain.name,
                    path=str(source.path),
                    hint="Nothing was put back. Run the command again while the VM stays off.",
                )

    # -- StageRestore ------------------------------------------------------------------------------------------

    def stage(self) -> tuple[str, ...]:
        """Write the versions beside their places, and let the journal allow the renaming."""
        journal, domain = self._parking.resume(self._stop)
        assert journal.states is not None
        definition = self._parking.definition(domain, journal)
        kinds = tuple(ChosenVersion(item.role, item.version, item.sha256) for item in journal.items)
        sources = self._sources(definition, kinds)
        if journal.stage is RestoreStage.PARKED:
            self._refuse_changed(domain, sources, journal.states.found)
        for item, chosen in zip(journal.items, kinds, strict=True):
            self._stop()
            version, content = read_chosen(self._repository, journal.vm_uuid, chosen)
            _require_fits(version, content, sources[item.role], domain.name)
            if item.role == "tpm":
                self._require_loads(version, content, journal.states.secret, definition)
                stage_tpm(Path(item.staged), item.file or version.file, content, owner=swtpm_owner(version.owner))
            else:
                make_folder(Path(item.staged).parent, 0o755)
                stage_file(Path(item.staged), content)
        self._parking.save(replace(journal, stage=RestoreStage.WRITING))
        return ()

    def _require_loads(
        self, version: StateVersion, content: bytes, secret: SecretSource | None, definition: Definition
    ) -> None:
        """Raise StateTorn for a TPM state that the VM would not start with; one that cannot be tried goes back."""
        if not self._settings.trial_start:
            return
        if secret is not None and is_encrypted(content):
            trial = try_with_kept_secret(content, version.file, secret, self._repository)
        else:
            trial = try_with_secret(content, version.file, definition, self._hypervisor)
        if trial.loads is False:
            raise StateTorn(
                f"the VM would not start with version {version.generation} of its TPM state: {trial.why}",
                vm=definition.name,
                hint="Nothing was replaced. `vmkeep state versions` lists the others; with "
                'trial_start = "off" in vmkeep.toml it is put back all the same.',
            )

    # -- the end -----------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Rename the state files into place; what they replace is kept beside."""
        journal, domain = self._parking.resume(self._stop)
        assert journal.states is not None
        secret = journal.states.secret
        if secret is not None:
            plan = self._plan_secrets(secret, self._parking.definition(domain, journal))
            # It stays when this is taken back: nothing needs it then, and nothing is harmed by it.
            define_secrets(self._hypervisor, self._repository, self._holder(secret), plan)
        publish_items(PublishItems(journal.items, force=True))

    def _require_opens(
        self, versions: tuple[ChosenVersion, ...], secret: SecretSource | None, definition: Definition
    ) -> None:
        for version in versions:
            if version.kind == "tpm":
                encrypted = is_encrypted(self._repository.state(version.id)[1])
                refuse_another_key(definition, None if secret is None else secret.uuid, encrypted=encrypted)

    def _plan_secrets(self, secret: SecretSource | None, definition: Definition) -> SecretPlan:
        if secret is None:
            return SecretPlan()
        return plan_secrets(
            self._hypervisor,
            self._repository,
            self._holder(secret),
            (NeededSecret(secret.uuid, "TPM state"),),
            vm=definition.name,
            must_open=True,
        )

    def _holder(self, secret: SecretSource) -> Holder:
        return self._repository.holder(secret.point, secret.pin)

    def release(self, vm_uuid: str) -> tuple[str, ...]:
        """Let the VM start again and remove what was replaced; only the former can fail."""
        return self._let_start(vm_uuid)

    def _settled(self, journal: RestoreJournal, *, forward: bool) -> RestoreSettled:
        how = "finished" if forward else "taken back: its state files are those from before"
        told = f"an interrupted return of VM {journal.vm!r} to {journal.aim} was {how}"
        return RestoreSettled(told, journal.vm_uuid, None, moved=False)


def _require_fits(version: StateVersion, content: bytes, source: StateSource, vm: str) -> None:
    """Raise StateUnsupported for a content that is of another kind of firmware or TPM than the VM has."""
    if version.file != source.file:
        raise StateUnsupported(
            f"the {NAMES[version.kind]} of VM {vm!r} is of another version now: {source.file}, and what was kept is "
            f"{version.file}",
            vm=vm,
            hint=f"`{command_line('vmkeep tpm remove', vm)}`, then add one --from that version.",
        )
    if version.kind == "nvram" and (content.startswith(QCOW2) != (source.format == "qcow2")):
        raise StateUnsupported(
            f"the UEFI variables of VM {vm!r} are {source.format} now, and what was kept is not",
            vm=vm,
            hint="Define the VM with the format that it had then, or choose another version.",
        )
    if version.kind == "nvram" and needs_another_file(content):
        raise StateUnsupported(
            "the UEFI variables that were kept are a qcow2 image that names another file of the host",
            vm=vm,
            hint="vmkeep keeps none like that: the version was made by something else. Choose another one.",
        )


def _told_of_pairing(definition: Definition, kinds: set[str]) -> Iterator[str]:
    """Say what it risks when state files and disks are of different times afterwards."""
    if "tpm" in kinds:
        yield TPM_ALONE
    elif definition.tpm is not None:
        yield VARIABLES_ALONE
