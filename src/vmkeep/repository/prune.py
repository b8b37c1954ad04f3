"""Prune: what no point needs is deleted, and packs that are mostly waste are made new.

There is no lock. Writers, readers and other prunes go on beside it, by the rules of section 10 of
docs/internals/repository-format.md. A prune that dies leaves what the next one takes away, or two copies.

1. Walk what all points reach (``reach``). What cannot be read keeps whatever it may reach.
2. Delete the packs of which nothing is reached: this makes room.
3. Copy what is needed out of packs that are mostly waste, as a writer (``compaction``); one forward is the commit.
4. Delete these packs, too.
5. Delete state versions and envelopes that nothing names, and what earlier runs left.

To delete packs is to condemn them, wait until every writer that may not have seen that is done, walk the points that
came since, spare what they reach, and only then delete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from vmkeep.errors import (
    IntegrityError,
    NoSpace,
    ObjectMissing,
    PermissionRefused,
    PointNotFound,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.repository import intents
from vmkeep.repository.compaction import Compaction, Source
from vmkeep.repository.forwards import MOST_FORWARDED, Forwards, put_forward
from vmkeep.repository.layout import (
    CONDEMNED,
    ENVELOPES,
    FEATURES,
    FORWARDS,
    FORWARDS_FEATURE,
    NAME_BYTES,
    PACKS,
    PINS,
    POINTS,
    PRUNED,
    RUN_PREFIX,
    STATES,
    PackKind,
    canonical,
    is_name,
    pack_name,
    pack_of_name,
)
from vmkeep.repository.packs import DATA_PACK_BYTES, METADATA_PACK_BYTES
from vmkeep.repository.pins import Pins
from vmkeep.repository.reach import DATA, NODES, Live, Packs, Reach
from vmkeep.repository.record import PointRecord
from vmkeep.repository.seal import Sealer
from vmkeep.repository.store import ObjectStore
from vmkeep.values import dataclass

YOUNG: Final = timedelta(days=2)
"""Packs that were put since are left alone: their points may still come, and what is new is seldom waste."""
LEFT: Final = timedelta(days=1)
"""States and envelopes that were put since are those of who is still at work; lists of other prunes may be, too."""
# Nobody believes for more than a day what it knows of packs without having looked at them all.
_TOLD: Final = timedelta(days=3)
_MARGIN_SECONDS: Final = 86400.0
_MOST_CONDEMNED: Final = 20_000
_DELETED_AT_ONCE: Final = 1000
_LOOK_SECONDS: Final = 1.0
# A pack of which less is waste is not worth it, whatever the goal: its index alone may take as much.
_LEAST_SHARE: Final = 1 / 32
_ROW_BYTES: Final = 48
_FRAME_BYTES: Final = 200
_MOST_FORWARDS: Final = 16
_UNREAD: Final = (IntegrityError, StoreError, PermissionRefused)


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """``waste``: how much of what is needed may be wasted beside it, as a share. ``max_copy_bytes``: copy no more."""

    waste: float = 0.2
    young: timedelta = YOUNG
    max_copy_bytes: int | None = None
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune found and did; with ``dry_run`` what it would do. All sizes in bytes.

    ``unused`` are packs of which nothing is reached, ``thin`` those that were made new, or would be; ``young`` and
    ``kept`` were left alone although nothing is reached of them: because they are new, or because ``problems`` (objects
    that could not be read, with why) may reach them. ``spared`` are condemned packs that a point came to reach.
    ``waste_bytes`` is what is wasted afterwards beside ``live_bytes``. ``locked_objects`` were locked anew in a bucket
    that locks, where all that is there is locked until ``locked_until``.
    """

    points: int = 0
    packs: int = 0
    size_bytes: int = 0
    live_bytes: int = 0
    unused_packs: int = 0
    unused_bytes: int = 0
    thin_packs: int = 0
    thin_bytes: int = 0
    copied_bytes: int = 0
    freed_bytes: int = 0
    waste_bytes: int = 0
    young_packs: int = 0
    young_bytes: int = 0
    kept_packs: int = 0
    kept_bytes: int = 0
    spared_packs: int = 0
    states: int = 0
    envelopes: int = 0
    locked_objects: int = 0
    locked_until: datetime | None = None
    out_of_room: bool = False
    dry_run: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a prune stands: a word for it, and how much of how much; ``note`` is to be said once."""

    name: str
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Choice:
    """Numbers of packs: of which nothing is reached, and which are to be made new, in the order of their age."""

    unused: Sequence[int]
    thin: Sequence[int]


class Prune:
    """One run; for one thread. ``tell`` is told where it stands, and may raise to stop it."""

    def __init__(
        self,
        store: ObjectStore,
        sealer: Sealer,
        point: Callable[[str], PointRecord],
        pins: Pins,
        options: PruneOptions,
        *,
        host: str,
        directory: Path,
        tell: Callable[[Stage], None] = lambda _stage: None,
        purpose: str = "prune",
        sleep: Callable[[float], None] = time.sleep,
        lapse_seconds: float = intents.LAPSE_SECONDS,
    ) -> None:
        """``directory`` takes temporary files; ``host`` and ``purpose`` are named in what others see."""
        self._store = store
        self._sealer = sealer
        self._point = point
        self._pins = pins
        self._options = options
        self._host = host
        self._directory = directory
        self._tell = tell
        self._purpose = purpose
        self._sleep = sleep
        self._lapse_seconds = lapse_seconds
        self._forwards = Forwards(store)
        self._walked: set[str] = set()
        self._named: set[str] = set()
        self._unread_points = False
        self._report = PruneReport(dry_run=options.dry_run)
        # Packs on lists of prunes that died: one that is reached is copied and goes, too, because whoever wrote such a
        # list may only be asleep, and may delete it at any time.
        self._listed: dict[str, set[bytes]] = {}
        # The forwards by which the packs to delete were chosen, and what this run has deleted.
        self._chosen_by: Mapping[bytes, Sequence[bytes]] = {}
        self._deleted: set[bytes] = set()
        self._known_forwards: Sequence[str] = ()
        self._told_before: Sequence[str] = ()

    def run(self) -> PruneReport:
        """Prune. Raises what the store raises; damage is reported (``problems``), and keeps what it may reach."""
        started = self._store.now()
        self._listed = self._old_lists(started)
        self._told_before = [item.name for item in self._store.list(PRUNED) if started - item.modified > _TOLD]
        states = self._old_names(STATES, started)
        envelopes = self._old_names(ENVELOPES, started)
        # Packs before points: a pack that is put later is none of this run's.
        packs = Packs((pack, item) for item in self._store.list(PACKS) if (pack := pack_of_name(item.name)) is not None)
        self._forwards.refresh()
        self._chosen_by = dict(self._forwards.targets)
        self._known_forwards = tuple(self._forwards.objects)
        reach = Reach(self._store, self._sealer, self._forwards, packs, self._directory, advance=self._told_of("walk"))
        try:
            self._walk(reach)
            choice = self._choose(reach, started)
            if not self._options.dry_run:
                self._sweep(reach, choice.unused)
                self._compact(reach, choice.thin)
                self._drop_states(reach, states)
                self._drop_envelopes(envelopes)
                self._settle_forwards(reach)
                self._drop_lists()
            return replace(self._report, problems={**self._report.problems, **reach.problems})
        finally:
            reach.close()

    # -- walking ---------------------------------------------------------------------------------------------------

    def _walk(self, reach: Reach) -> None:
        """Walk the points that were not walked yet, in the order in which the store took them."""
        listed = [item for item in self._store.list(POINTS) if is_name(item.name.removeprefix(POINTS))]
        for item in sorted(listed, key=lambda item: (item.modified, item.name)):
            point_id = item.name.removeprefix(POINTS)
            if point_id in self._walked:
                continue
            self._walked.add(point_id)
            put_at = item.modified.timestamp()
            try:
                record = self._point(point_id)
            except PointNotFound:
                continue  # deleted since the points were listed
            except _UNREAD as error:
                reach.problems[item.name] = error.message
                reach.keep_until(put_at)
                self._unread_points = True
                continue
            self._named.update(state.version_id for state in record.states)
            reach.walk(record, put_at)
        for name, unreadable in self._forwards.unreadable.items():
            reach.problems[FORWARDS + name] = unreadable.message
            reach.keep_until(float("inf"))
        self._report = replace(self._report, points=len(self._walked))

    def _told_of(self, stage: str, total: int = 0) -> Callable[[int], None]:
        return lambda done: self._tell(Stage(stage, done, total))

    # -- choosing --------------------------------------------------------------------------------------------------

    def _choose(self, reach: Reach, now: datetime) -> _Choice:
        packs, live = reach.packs, reach.live()
        listed = set().union(*self._listed.values())
        young = (now - self._options.young).timestamp()
        unread = self._forwards.unread_packs
        for pack, error in unread.items():
            reach.problems[pack_name(pack)] = error.message
        unused, thin, waste = [], [], 0
        count = {"young": [0, 0], "kept": [0, 0]}
        for number in range(packs.listed):
            size, left = packs.sizes[number], None
            if packs.names[number] in unread or packs.put_at[number] <= _until(reach):
                left = "kept"
            elif packs.put_at[number] > young and packs.names[number] not in listed:
                left = "young"
            if live.frames[number]:
                waste += _waste(size, live, number)
            if not live.frames[number] and left is None:
                unused.append(number)
            elif not live.frames[number] and left is not None:
                count[left][0] += 1
                count[left][1] += size
                waste += size
            elif left is None and packs.kinds[number] in (DATA, NODES):
                thin.append(number)
        chosen = self._thin(packs, live, thin, waste, listed)
        self._report = replace(
            self._report,
            packs=packs.listed,
            size_bytes=sum(packs.sizes),
            live_bytes=sum(live.size_bytes[: packs.listed]),
            unused_packs=len(unused),
            unused_bytes=sum(packs.sizes[number] for number in unused),
            thin_packs=len(chosen),
            thin_bytes=sum(packs.sizes[number] for number in chosen),
            copied_bytes=sum(live.size_bytes[number] for number in chosen),
            waste_bytes=waste - sum(_waste(packs.sizes[number], live, number) for number in chosen),
            young_packs=count["young"][0],
            young_bytes=count["young"][1],
            kept_packs=count["kept"][0],
            kept_bytes=count["kept"][1],
        )
        if self._options.dry_run:
            self._report = replace(
                self._report,
                freed_bytes=self._report.unused_bytes + self._report.thin_bytes - self._report.copied_bytes,
            )
        return _Choice(unused, chosen)

    def _thin(
        self, packs: Packs, live: Live, candidates: Sequence[int], waste: int, listed: set[bytes]
    ) -> Sequence[int]:
        """Return the packs to make new: the thinnest first, until little enough is wasted or enough is copied."""
        goal = self._options.waste * sum(live.size_bytes[: packs.listed])
        most = self._options.max_copy_bytes
        must = [number for number in candidates if packs.names[number] in listed]
        small = _small(packs, candidates)
        ranked = sorted(candidates, key=lambda number: (live.size_bytes[number] / packs.sizes[number], number))
        chosen: dict[int, None] = {}
        copied = 0
        for number in [*must, *ranked, *small]:
            wasted = _waste(packs.sizes[number], live, number)
            needed = number in must or number in small or (waste > goal and wasted > packs.sizes[number] * _LEAST_SHARE)
            if number in chosen or not needed:
                continue
            if most is not None and copied + live.size_bytes[number] > most:
                continue
            chosen[number] = None
            copied += live.size_bytes[number]
            waste -= wasted
        # In the order in which they were put: what was written together stays together.
        return sorted(chosen, key=lambda number: (packs.kinds[number], packs.put_at[number], packs.names[number]))

    # -- copying ---------------------------------------------------------------------------------------------------

    def _compact(self, reach: Reach, thin: Sequence[int]) -> None:
        """Copy what is needed of packs and delete them, as many at a time as there is room for."""
        packs = reach.packs
        self._report = replace(self._report, copied_bytes=0)
        total = sum(packs.sizes[number] for number in thin)
        waiting = list(thin)
        most = MOST_FORWARDED
        while waiting:
            batch = self._batch(packs, waiting[:most])
            done = total - sum(packs.sizes[number] for number in waiting)
            # What was walked since the last batch counts as well.
            moved, room = self._move(packs, batch, reach.offsets(set(batch)), done, total)
            self._sweep(reach, [packs.numbers[pack] for pack in moved])
            tried = set(batch) if room else {packs.numbers[pack] for pack in moved}
            waiting = [number for number in waiting if number not in tried]
            if not tried:
                if most == 1:
                    self._report = replace(self._report, out_of_room=True)
                    return
                most = 1

    def _batch(self, packs: Packs, waiting: Sequence[int]) -> Sequence[int]:
        """Return as many of the packs as three quarters of the free room take, and one at least."""
        free = self._store.free_bytes()
        if free is None:
            return waiting
        batch: list[int] = []
        taken = 0
        for number in waiting:
            taken += packs.sizes[number]
            if batch and taken > free * 3 // 4:
                break
            batch.append(number)
        return batch

    def _move(
        self, packs: Packs, batch: Sequence[int], offsets: Mapping[int, Sequence[int]], done: int, total: int
    ) -> tuple[dict[bytes, tuple[bytes, ...]], bool]:
        """Copy packs and commit that; return what is where now, and whether there was room for all."""
        name = self._sealer.random(NAME_BYTES).hex()
        intent = intents.Intent(
            self._store, name, host=self._host, purpose=self._purpose, lapse_seconds=self._lapse_seconds
        )
        copied = [0]

        def advance(count: int) -> None:
            copied[0] += count
            self._tell(Stage("copy", done + copied[0], total))

        moved: dict[bytes, tuple[bytes, ...]] = {}
        own: dict[bytes, int] = {}
        intent.begin()
        try:
            room = True
            for kind, word in ((PackKind.DATA, DATA), (PackKind.METADATA, NODES)):
                compaction = Compaction(self._store, self._sealer, kind)
                sources = [
                    Source(packs.names[number], packs.sizes[number], tuple(offsets[number]))
                    for number in batch
                    if packs.kinds[number] == word
                ]
                try:
                    room = compaction.copy(sources, advance) and room
                finally:
                    own |= compaction.own
                moved |= compaction.moved
                for pack, error in compaction.unfit.items():
                    self._problem(pack_name(pack), error.message)
            used = {target for targets in moved.values() for target in targets}
            try:
                self._commit(intent, name, moved, used)
            except NoSpace:
                room, moved, used = False, {}, set()
        except BaseException:
            self._delete_quietly(own)
            raise
        finally:
            intent.end()
        self._delete_quietly(own.keys() - used)
        self._report = replace(
            self._report,
            copied_bytes=self._report.copied_bytes + sum(own[pack] for pack in used),
            freed_bytes=self._report.freed_bytes - sum(own[pack] for pack in used),
        )
        return moved, room

    def _commit(
        self, intent: intents.Intent, name: str, moved: Mapping[bytes, Sequence[bytes]], own: set[bytes]
    ) -> None:
        """Put the forward by the rules that hold for a point: never when another prune may have taken the new packs."""
        if not moved:
            return
        with suppress(TargetExists):
            self._store.put(FEATURES + FORWARDS_FEATURE, canonical({"feature": FORWARDS_FEATURE}))
        if not intent.renew():
            self._require_unpruned(own)
        where = FORWARDS + name
        try:
            put_forward(self._store, name, moved)
            if not intent.in_force_at(self._store.stat(where).modified):
                self._require_unpruned(own)
        except VmkeepError:
            with suppress(VmkeepError):
                self._store.delete(where)
            raise
        self._forwards.refresh()

    def _require_unpruned(self, own: set[bytes]) -> None:
        if intents.unusable(self._store, own):
            raise StoreError(
                "another prune took what this one had copied: this host was asleep for longer than its word holds",
                path=self._store.location,
                hint="Nothing is lost. Run the command again.",
            )

    # -- deleting packs --------------------------------------------------------------------------------------------

    def _sweep(self, reach: Reach, numbers: Sequence[int]) -> None:
        """Delete packs of which nothing is needed, or all is copied, unless a point comes to reach them meanwhile."""
        if not numbers:
            return
        try:
            self._sweep_together(reach, numbers)
        except NoSpace:
            if len(numbers) == 1:
                raise
            # A list of one takes the least that a file takes; what it frees is enough for the list of the others.
            self._sweep_together(reach, numbers[:1])
            self._sweep_together(reach, numbers[1:])

    def _sweep_together(self, reach: Reach, numbers: Sequence[int]) -> None:
        packs = reach.packs
        with self._condemned([packs.names[number] for number in numbers]) as lists:
            reach.next_walk()
            since = reach.walks
            self._wait()
            self._forwards.refresh()
            self._walk(reach)
            live = reach.live(since)
            needed = self._newly_forwarded() | self._forwards.unread_packs.keys()
            spared = {
                number
                for number in numbers
                if live.frames[number] or packs.names[number] in needed or packs.put_at[number] <= _until(reach)
            }
            spared |= self._without_copies(packs, numbers, lists)
            self._delete(packs, [number for number in numbers if number not in spared], lists[0])
            self._report = replace(self._report, spared_packs=self._report.spared_packs + len(spared))

    def _newly_forwarded(self) -> set[bytes]:
        """Return the packs that forwards lead to which were not there when packs were chosen."""
        before = self._chosen_by
        return {
            target
            for old, targets in self._forwards.targets.items()
            for target in targets
            if target not in before.get(old, ())
        }

    def _without_copies(self, packs: Packs, numbers: Sequence[int], lists: Sequence[str]) -> set[int]:
        """Return which packs that were moved must stay: what they were moved to is gone, or somebody condemned it."""
        moved = [number for number in numbers if packs.names[number] in self._forwards.targets]
        if not moved:
            return set()
        others = [found for name, found in intents.condemned_lists(self._store).items() if name not in lists]
        condemned = set().union(*others)
        # What was moved on before this run began, or by it, is in the packs that come after.
        before = {target for targets in self._chosen_by.values() for target in targets}
        moved_on = {target for target in before if packs.numbers.get(target, packs.listed) >= packs.listed}
        moved_on |= self._deleted
        sound = {
            target: target in moved_on or (target not in condemned and self._store.exists(pack_name(target)))
            for target in {each for number in moved for each in self._all_targets(packs.names[number])}
        }
        return {
            number for number in moved if not all(sound[target] for target in self._all_targets(packs.names[number]))
        }

    def _all_targets(self, pack: bytes) -> set[bytes]:
        """Return all packs that forwards lead to from a pack."""
        found: set[bytes] = set()
        waiting = [pack]
        while waiting:
            new = set(self._forwards.targets.get(waiting.pop(), ())) - found - {pack}
            found |= new
            waiting += new
        return found

    @contextmanager
    def _condemned(self, packs: Sequence[bytes], states: Sequence[str] = ()) -> Iterator[Sequence[str]]:
        """Condemn objects for as long as the block takes. What a killed prune leaves of that, a later one settles."""
        lists: list[str] = []
        try:
            for at in range(0, max(len(packs), len(states)), _MOST_CONDEMNED):
                end = at + _MOST_CONDEMNED
                name = self._sealer.random(NAME_BYTES).hex()
                lists.append(intents.condemn_list(self._store, name, packs[at:end], states[at:end]))
            yield lists
        finally:
            for where in lists:
                with suppress(VmkeepError):
                    self._store.delete(where)

    def _wait(self) -> None:
        """Return when all who write now, and may not have seen what is condemned, are done or have lapsed."""
        waiting = intents.unlapsed(self._store)
        told: set[str] = set()
        while waiting:
            for name, writer in waiting.items():
                if name not in told:
                    told.add(name)
                    who = f"{writer.purpose} on {writer.host}" if writer else name
                    self._tell(Stage("wait", note=f"waiting for what is being written: {who}"))
            self._tell(Stage("wait"))
            self._sleep(_LOOK_SECONDS)
            now = intents.unlapsed(self._store)
            waiting = {name: now[name] for name in waiting if name in now}

    def _delete(self, packs: Packs, numbers: Sequence[int], condemned_by: str) -> None:
        if not numbers:
            return
        marked = intents.condemned_alone(self._store)
        name = condemned_by.removeprefix(CONDEMNED + RUN_PREFIX)
        told = self._tell_writers(name)
        for at in range(0, len(numbers), _DELETED_AT_ONCE):
            portion = numbers[at : at + _DELETED_AT_ONCE]
            self._tell(Stage("delete", at, len(numbers)))
            self._store.delete_all([pack_name(packs.names[number]) for number in portion])
            self._deleted.update(packs.names[number] for number in portion)
            freed = sum(packs.sizes[number] for number in portion)
            self._report = replace(self._report, freed_bytes=self._report.freed_bytes + freed)
            notes = [CONDEMNED + pack.hex() for number in portion if (pack := packs.names[number]) in marked]
            if notes:
                self._store.delete_all(notes)
        if not told:
            self._tell_writers(name)

    def _tell_writers(self, name: str) -> bool:
        """Have those who know packs look at them anew; False on a full disk, where it is told when there is room."""
        try:
            intents.tell_of_prune(self._store, name)
        except NoSpace:
            return False
        return True

    def _delete_quietly(self, packs: Iterable[bytes]) -> None:
        """Delete packs of this run that nothing names; what stays is taken away by a later one."""
        names = [pack_name(pack) for pack in packs]
        if names:
            with suppress(VmkeepError):
                self._store.delete_all(names)

    # -- what else nothing needs -----------------------------------------------------------------------------------

    def _old_names(self, prefix: str, now: datetime) -> set[str]:
        return {
            name
            for item in self._store.list(prefix)
            if is_name(name := item.name.removeprefix(prefix)) and now - item.modified > LEFT
        }

    def _drop_states(self, reach: Reach, old: set[str]) -> None:
        """Delete the old state versions that no point and no pin names; one that cannot be read keeps them all."""
        unneeded = self._unneeded(old)
        if not unneeded:
            return
        with self._condemned([], unneeded):
            self._wait()
            self._walk(reach)
            doomed = self._unneeded(set(unneeded))
            if doomed:
                self._store.delete_all([STATES + name for name in doomed])
        self._report = replace(self._report, states=len(doomed))

    def _unneeded(self, states: set[str]) -> Sequence[str]:
        pinned = self._pinned()
        return [] if pinned is None or self._unread_points else sorted(states - self._named - pinned)

    def _pinned(self) -> set[str] | None:
        """Return the state versions that pins name; None when one cannot be read, or is none."""
        named: set[str] = set()
        for item in self._store.list(PINS):
            try:
                named.update(state.version_id for state in self._pins.get(item.name.removeprefix(PINS)).states)
            except ObjectMissing:
                continue  # deleted since they were listed
            except _UNREAD as error:
                self._problem(item.name, error.message)
                return None
        return named

    def _drop_envelopes(self, old: set[str]) -> None:
        """Delete the old envelopes of whose name there is neither a point nor a pin."""
        unneeded = [name for name in sorted(old) if not self._is_held(name)]
        if not unneeded:
            return
        self._wait()
        doomed = [ENVELOPES + name for name in unneeded if not self._is_held(name)]
        if doomed:
            self._store.delete_all(doomed)
        self._report = replace(self._report, envelopes=len(doomed))

    def _is_held(self, name: str) -> bool:
        return self._store.exists(POINTS + name) or self._store.exists(PINS + name)

    # -- what earlier runs left ------------------------------------------------------------------------------------

    def _old_lists(self, now: datetime) -> dict[str, set[bytes]]:
        """Return what prunes have condemned that began long ago, and did not end."""
        old = {item.name for item in self._store.list(CONDEMNED) if now - item.modified > LEFT}
        try:
            return {name: packs for name, packs in intents.condemned_lists(self._store).items() if name in old}
        except IntegrityError as error:
            self._problem(CONDEMNED, error.message)
            return {}

    def _drop_lists(self) -> None:
        """Delete lists of prunes that died of which no pack is left."""
        for name, packs in self._listed.items():
            if not any(self._store.exists(pack_name(pack)) for pack in packs):
                with suppress(ObjectMissing):
                    self._store.delete(name)
        self._store.delete_all(self._told_before)

    def _settle_forwards(self, reach: Reach) -> None:
        """Write one forward of all that something needs, in place of many, when that is worth it."""
        if reach.kept_until or not self._worth_settling(reach):
            return
        self._wait()
        self._forwards.refresh()
        self._walk(reach)
        if reach.kept_until:
            return
        needed = {}
        for old in sorted(reach.forwarded):
            targets = self._all_targets(old)
            there = {target for target in targets if self._store.exists(pack_name(target))}
            needed[old] = sorted(there or targets)
        for at in range(0, len(needed), MOST_FORWARDED):
            portion = dict(list(needed.items())[at : at + MOST_FORWARDED])
            put_forward(self._store, self._sealer.random(NAME_BYTES).hex(), portion)
        self._store.delete_all([FORWARDS + name for name in self._known_forwards])

    def _worth_settling(self, reach: Reach) -> bool:
        """Of those that were there when the walk began: of later ones it is not known what needs them."""
        olds = sum(len(self._forwards.objects[name]) for name in self._known_forwards)
        return len(self._known_forwards) > _MOST_FORWARDS or olds > 2 * len(reach.forwarded)

    def _problem(self, name: str, what: str) -> None:
        self._report = replace(self._report, problems={**self._report.problems, name: what})


def _until(reach: Reach) -> float:
    """Return until when packs are kept: with a day to spare, as the times of a copied repository are not exact."""
    return reach.kept_until + _MARGIN_SECONDS if reach.kept_until else 0.0


def _waste(size_bytes: int, live: Live, number: int) -> int:
    """Return what of a pack is neither needed nor the index that a pack of what is needed has."""
    return max(0, size_bytes - live.size_bytes[number] - live.frames[number] * _ROW_BYTES - _FRAME_BYTES)


def _small(packs: Packs, candidates: Sequence[int]) -> Sequence[int]:
    """Return the packs that are much smaller than writers make them, where together they fill at least one."""
    found: list[int] = []
    for kind, full in ((DATA, DATA_PACK_BYTES), (NODES, METADATA_PACK_BYTES)):
        small = [number for number in candidates if packs.kinds[number] == kind and packs.sizes[number] < full // 4]
        if sum(packs.sizes[number] for number in small) >= full:
            found += small
    return found
