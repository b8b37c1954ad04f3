"""Tombstones: what must still be deleted on a host, tried again, or let be.

No flow of DBOS: each deletion is one task, and what a kill leaves of it is found by the next try.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from vmkeep.catalog import Catalog
from vmkeep.catalog.texts import now
from vmkeep.commandline import command_line
from vmkeep.custody.states import ChosenVersion
from vmkeep.custody.tombstones import Ending, Tombstone, TombstoneKind, chosen_tombstones
from vmkeep.errors import GivenUp, Interrupted, InvalidRequest, VmBusy, VmkeepError
from vmkeep.flows.removals import fact_about, store_deletions
from vmkeep.flows.secret_holders import SecretHolder, secret_holders
from vmkeep.flows.services import Services, held_vm
from vmkeep.host.protocol import Host
from vmkeep.host.tasks.survey import Identify, Progress
from vmkeep.host.tasks.task import Task
from vmkeep.host.tasks.tpms import DeleteLeftTpmState, DropTpmSecret, JudgeTpmSecret, LeftTpmFile
from vmkeep.logs import get_logger
from vmkeep.repository.deletions import as_line
from vmkeep.values import dataclass

_log = get_logger(__name__)
_DOING = "deletion of what a TPM left"
_AT_ONCE = 4
"""Of tries that nobody asked for: a command is there for something else."""
_PATIENCE_SECONDS = 20.0
_SHORTEST_ID = 8
R = TypeVar("R")


class Ask(Protocol):
    """What carries a task out on the host of a tombstone."""

    def __call__(self, task: Task[R], /) -> R: ...


@dataclass(frozen=True, slots=True)
class TombstoneTried:
    """A tombstone as it is after a try. ``removed`` are paths that are gone by it, or the secret's UUID."""

    tombstone: Tombstone
    removed: tuple[str, ...] = ()


def find_tombstones(catalog: Catalog, host: Host, wanted: Sequence[str], *, every: bool) -> tuple[Tombstone, ...]:
    """Return the open tombstones of this host that are named by their ids, or the first digits of these; or all.

    Raises InvalidRequest for a name of none, of several, of one that is at its end, and of one of another host.
    """
    here = host.ask(Identify())
    if every:
        return chosen_tombstones(catalog.open_tombstones(), here.uuid)
    chosen: dict[str, Tombstone] = {}
    for text in wanted:
        named = the_tombstone(catalog, text)
        if named.is_open and named.host_uuid != here.uuid:
            raise InvalidRequest(
                f"tombstone {named.id} is of host {named.host_name}, and this is {here.name}: nothing was deleted",
                vm=named.vm_name,
                hint=f"Run `{command_line('vmkeep tombstones retry', named.id)}` there, with this home.",
            )
        chosen[named.id] = named
    return tuple(chosen.values())


def the_tombstone(catalog: Catalog, text: str) -> Tombstone:
    """Return the tombstone that an id, or the first digits of one, means. Raises InvalidRequest."""
    wanted = text.lower()
    digits = len(wanted) >= _SHORTEST_ID and set(wanted) <= set("0123456789abcdef")
    named = [each for each in catalog.tombstones() if digits and each.id.startswith(wanted)]
    if len(named) == 1:
        return named[0]
    what = "the beginning of several tombstones" if named else "no tombstone"
    raise InvalidRequest(f"{text!r} is {what}", hint="`vmkeep tombstones list --all` shows them with their ids.")


def retry_tombstones(
    catalog: Catalog, host: Host, chosen: Iterable[Tombstone], ended: Callable[[TombstoneTried], None]
) -> tuple[TombstoneTried, ...]:
    """Try them one by one; ``ended`` is told of each. What keeps one from being deleted stops no other.

    Raises InvalidRequest for one at its end, and what the catalogue raises.
    """
    tried = []
    for tombstone in chosen:
        try:
            with held_vm(host, tombstone.vm_uuid, tombstone.vm_name, _DOING):
                tried.append(_try(catalog, tombstone, host.ask))
        except VmBusy as error:
            tried.append(TombstoneTried(_move(catalog, tombstone, tombstone.failed(now(), as_line(error.message)))))
        ended(tried[-1])
    return tuple(tried)


def retry_quietly(services: Services) -> None:
    """Try what is due on each host, and store proofs that the repository has not; for a command that does other work.

    A few at most, and not for long: what is away, busy or silent is left for the next command. Raises Interrupted.
    """
    catalog = services.catalog
    impatient = replace(services, stalled_after_seconds=min(_PATIENCE_SECONDS, services.stalled_after_seconds))
    try:
        for each in impatient.on_each():
            mine = chosen_tombstones(catalog.open_tombstones(), each.host.ask(Identify()).uuid)
            due = [tombstone for tombstone in mine if tombstone.is_due(datetime.now(UTC))]
            for tombstone in due[:_AT_ONCE]:
                _try_quietly(each, tombstone)
        impatient.with_repository(lambda repository: store_deletions(catalog, repository, services.warn))
    except Interrupted:
        raise
    except (VmkeepError, GivenUp) as error:
        _log.info("what was left is tried again later", error=str(error))


def _try_quietly(services: Services, tombstone: Tombstone) -> None:
    def ask(task: Task[R]) -> R:
        return services.on_host(uuid.uuid4().hex, task)

    with suppress(VmBusy), held_vm(services.host, tombstone.vm_uuid, tombstone.vm_name, _DOING, wait=False):
        try:
            tried = _try(services.catalog, tombstone, ask)
        except GivenUp as given:
            # So it is not due for a while: what comes after it, here and on other hosts, has its turn before.
            _move(services.catalog, tombstone, tombstone.failed(now(), as_line(given.error.message)))
            raise
        for path in tried.removed:
            services.watch(Progress("deleting", note=f"deleted now, which could not be deleted before: {path}"))


def waive_tombstone(catalog: Catalog, text: str, who: str, why: str) -> Tombstone:
    """Let a tombstone be: nothing of it is tried again. Raises InvalidRequest for none, and for one at its end."""
    known = the_tombstone(catalog, text)
    return _move(catalog, known, known.waived(now(), who, as_line(why)))


def supersede_tombstones(catalog: Catalog, host: Host, vm_uuid: str, places: Iterable[str]) -> None:
    """End what was still to be deleted of a VM's TPM on the host, because it is needed again.

    ``places`` are the directory and the secret of the TPM that it has by now.
    """
    mine = [each for each in catalog.tombstones(vm_uuid) if each.is_open]
    if mine:
        here = host.ask(Identify()).uuid
        for each in mine:
            if each.host_uuid == here and each.place in places:
                _move(catalog, each, each.settled(now(), Ending.SUPERSEDED))


def settle_deleted(
    catalog: Catalog, host: Host, vm_uuid: str, directory: str, failed: Iterable[str], *, but: str
) -> None:
    """End tombstones of a directory of which a later removal, ``but``, has deleted all."""
    still = set(failed)
    earlier = [each for each in catalog.tombstones(vm_uuid) if each.is_open and each.origin != but]
    if earlier:
        here = host.ask(Identify()).uuid
        for each in earlier:
            if (each.host_uuid, each.place) == (here, directory) and not still & set(each.paths):
                _move(catalog, each, each.settled(now(), Ending.DELETED))


def _try(catalog: Catalog, tombstone: Tombstone, ask: Ask) -> TombstoneTried:
    try:
        if tombstone.kind is TombstoneKind.STATE:
            outcome = _delete_state(tombstone, ask)
        else:
            outcome = _drop_secret(tombstone, secret_holders(catalog, tombstone.vm_uuid), ask)
    except Interrupted:
        raise
    except VmkeepError as error:
        outcome = _Outcome(why=error.message)
    if outcome.ending is Ending.NONE:
        moved = tombstone.failed(now(), as_line(outcome.why))
    else:
        moved = tombstone.settled(now(), outcome.ending)
    return TombstoneTried(_move(catalog, tombstone, moved), outcome.removed)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """``why`` it could not be deleted, a sentence, where it did not come to an end."""

    ending: Ending = Ending.NONE
    removed: tuple[str, ...] = ()
    why: str = ""


def _delete_state(tombstone: Tombstone, ask: Ask) -> _Outcome:
    for file in tombstone.files:
        if file.sha256 and not file.version_id:
            return _Outcome(why=f"{file.path} is no version that is kept")
    kept = {
        each.version_id: ChosenVersion("tpm", each.version_id, each.sha256) for each in tombstone.files if each.sha256
    }
    files = tuple(LeftTpmFile(each.path, each.sha256) for each in tombstone.files)
    ended = ask(DeleteLeftTpmState(tombstone.vm_uuid, tombstone.place, files, tuple(kept.values())))
    if ended.superseded:
        return _Outcome(Ending.SUPERSEDED)
    if ended.replaced or ended.failed:
        told = (*ended.replaced, *(each.why for each in ended.failed))
        return _Outcome(removed=ended.removed, why=told[0])
    return _Outcome(Ending.DELETED if ended.removed else Ending.GONE, ended.removed)


def _drop_secret(tombstone: Tombstone, holders: Iterable[SecretHolder], ask: Ask) -> _Outcome:
    vm_uuid, secret = tombstone.vm_uuid, tombstone.place
    mine = [holder for holder in holders if holder.uuid == secret]
    points = tuple(each.point for each in mine if each.point)
    pins = tuple(each.pin for each in mine if each.pin)
    judged = ask(JudgeTpmSecret(uuid.uuid4().hex, vm_uuid, secret, points, pins))
    if judged.can_go:
        judged = ask(DropTpmSecret(uuid.uuid4().hex, vm_uuid, secret, judged.point, judged.pin))
    if judged.can_go:
        return _Outcome(Ending.DELETED, (secret,))
    ending = {"absent": Ending.GONE, "named": Ending.SUPERSEDED}.get(judged.code, Ending.NONE)
    return _Outcome(ending, why=judged.why)


def _move(catalog: Catalog, known: Tombstone, to: Tombstone) -> Tombstone:
    catalog.move_tombstone(known, to, fact_about(to, catalog.deletions(known.vm_uuid)))
    return to
