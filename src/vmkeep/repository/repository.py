"""The repository: the one way in for those who write points, read them, or prove them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from vmkeep.errors import (
    FeatureUnknown,
    InvalidRequest,
    ObjectDamaged,
    ObjectMissing,
    PointNotFound,
    RepositoryForeign,
    RepositoryNotFound,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.keys import KeyMaterial
from vmkeep.repository import envelopes, fetch, fields, intents, signatures, states
from vmkeep.repository.compression import zstd
from vmkeep.repository.deletions import Deletions
from vmkeep.repository.keyring import (
    Keyring,
    Recipient,
    highest_generation,
    keyring_name,
    keyring_recipients,
    new_keyring,
    open_keyring,
    read_keyring,
    recipients_since,
)
from vmkeep.repository.known import KnownBlocks
from vmkeep.repository.layout import (
    CONDEMNED,
    ENVELOPES,
    FEATURES,
    FORMAT_OBJECT,
    HOSTS,
    KNOWN_FEATURES,
    NAME_BYTES,
    PINS,
    POINTS,
    PROTECTIONS,
    REMOVALS,
    RUN_PREFIX,
    FrameKind,
    PackEntry,
    format_object,
    is_name,
    parse_canonical,
    parse_format,
)
from vmkeep.repository.manifest import Runs, comparable, sample_blocks, walk_blocks, walk_difference
from vmkeep.repository.packs import read_index
from vmkeep.repository.pins import PinRecord, Pins
from vmkeep.repository.record import BlockRef, PointRecord, StateVersion, StoredDisk
from vmkeep.repository.seal import Compress, Domain, Random, Sealer, frame_bytes_limit
from vmkeep.repository.store import ObjectStore, create_store, open_store
from vmkeep.repository.writer import PointWriter

if TYPE_CHECKING:
    from vmkeep.buckets import BucketAccess
    from vmkeep.planning.rota import Budget
    from vmkeep.repository.marks import Marks
    from vmkeep.repository.probe import BucketReport
    from vmkeep.repository.proofs import Proofs
    from vmkeep.repository.prune import PruneOptions, PruneReport, Stage
    from vmkeep.repository.reports import PointReport, RepositoryReport
    from vmkeep.repository.verify import Progress, Verification

# No put takes longer, and no writer is silent for so long.
_LEFT = timedelta(hours=1)
_SILENT = timedelta(days=1)
# How often a change of the keyring is made again because another process was first.
_ATTEMPTS = 20


Recognise: TypeAlias = Callable[[PointRecord], None]
"""Raises PointChanged for a record that is not the one which is known under its id."""


class Repository:
    """Points, blocks and state versions in a store, opened with a key. Safe to use from many threads.

    ``recognise`` is set by who knows points: every record that is read goes by it, whoever reads it.
    ``meet_keyring`` is set by who knows which keyring was in force: each that comes into force later goes by it.
    """

    def __init__(
        self,
        store: ObjectStore,
        format_bytes: bytes,
        keyring: Keyring,
        key: KeyMaterial,
        *,
        random: Random = os.urandom,
        compress: Compress = zstd,
    ) -> None:
        self.id = parse_format(format_bytes, store.location)
        self.location = store.location
        self.keyring = keyring
        self.recognise: Recognise | None = None
        self.meet_keyring: Callable[[Keyring], None] = lambda _keyring: None
        self._store = store
        store.recognise(FORMAT_OBJECT, format_bytes)
        self._format = format_bytes
        self._key = key
        self._random = random
        self._compress = compress
        self._sealer = self._new_sealer()
        self._signer: Callable[[], signatures.Signer] | None = None

    def sign_with(self, signer: Callable[[], signatures.Signer]) -> None:
        """Sign the points that are begun from now on; ``signer`` is called for each. Without this none is signed."""
        self._signer = signer

    @classmethod
    def create(
        cls,
        location: str,
        key: KeyMaterial,
        *,
        random: Random = os.urandom,
        compress: Compress = zstd,
        access: BucketAccess | None = None,
    ) -> Repository:
        """Make a repository in a directory that is absent or empty, with ``key`` as the keyring's one recipient.

        Or in a bucket that is reached by ``access``, where nothing is below the prefix.

        One that was begun with the same key and is not finished counts as empty.

        Raises TargetExists when a repository is there, RepositoryForeign when anything else is.
        """
        store = create_store(location, access)
        names = store.names()
        if names:
            if FORMAT_OBJECT in names:
                parse_format(store.get(FORMAT_OBJECT), location)
                raise TargetExists(
                    f"{location} is a vmkeep repository already", path=location, hint="Nothing was changed in it."
                )
            if not store.unfinished() or not _is_only_recipient(store, key.key_id):
                raise RepositoryForeign(f"{location} is not empty", path=location)
            # Made by a process that was killed before it was done. Nothing refers to it; it is made anew.
            with suppress(ObjectMissing):
                store.delete(keyring_name(1))
        store.protect()
        format_bytes = format_object(random(NAME_BYTES).hex())
        keyring = new_keyring(format_bytes, key, random=random)
        name, content = keyring_name(keyring.generation), keyring.to_bytes()
        store.put(name, content)
        # Last, as it is what makes the directory a repository.
        store.put(FORMAT_OBJECT, format_bytes)
        if not (store.is_kept(FORMAT_OBJECT, format_bytes) and store.get(name) == content):
            raise TargetExists(
                f"another process made a repository at {location} at the same time",
                path=location,
                hint="Both hold nothing yet: empty the place, and make the repository once.",
            )
        return cls(store, format_bytes, keyring, key, random=random, compress=compress)

    @staticmethod
    def is_begun(location: str, access: BucketAccess | None = None) -> bool:
        """Return whether a creation that failed may have left something there; true where that cannot be looked at."""
        try:
            names = open_store(location, access).names()
        except RepositoryNotFound:
            return False
        except VmkeepError:
            return True
        return bool(names)

    @classmethod
    def open(
        cls,
        location: str,
        keys: Callable[[Sequence[str]], KeyMaterial],
        *,
        compress: Compress = zstd,
        access: BucketAccess | None = None,
    ) -> Repository:
        """Open a repository with the key that ``keys`` finds for one of the recipients' key ids.

        Raises RepositoryNotFound, RepositoryForeign, ObjectMissing or ObjectDamaged (keyring), WrongKey, and what
        ``keys`` raises (KeyMissing).
        """
        store = open_store(location, access)
        try:
            format_bytes = store.get(FORMAT_OBJECT)
        except ObjectMissing as error:
            if store.names() and not store.unfinished():
                raise RepositoryForeign(
                    f"{location} holds something that is not a vmkeep repository", path=location
                ) from error
            raise store.absence() from error
        parse_format(format_bytes, location)
        found: list[KeyMaterial] = []

        def remembered(recipients: Sequence[str]) -> KeyMaterial:
            found.append(keys(recipients))
            return found[0]

        keyring = open_keyring(store, highest_generation(store), format_bytes, remembered)
        repository = cls(store, format_bytes, keyring, found[0], compress=compress)
        repository._require_known_features()
        return repository

    def _require_known_features(self) -> None:
        """Raise FeatureUnknown when the repository has something that this vmkeep does not know, and must."""
        names = {item.name.removeprefix(FEATURES) for item in self._store.list(FEATURES)}
        unknown = sorted(fields.as_lines(name) for name in names - KNOWN_FEATURES)
        if unknown:
            raise FeatureUnknown(
                f"the repository at {self.location} uses {', '.join(unknown)}, which this vmkeep does not know",
                path=self.location,
            )

    def add_data_key(self, *others: KeyMaterial) -> None:
        """Seal what is written from now on with a new data key; what is stored stays readable, with its own.

        ``others`` are the keys of the recipients besides the one that opened this. Raises as ``rewrite_keyring``.
        """
        self.rewrite_keyring(proof=self._key, new_data_key_for=(self._key, *others))

    def rewrite_keyring(
        self,
        *,
        proof: KeyMaterial,
        add: KeyMaterial | None = None,
        remove: str | None = None,
        new_data_key_for: Sequence[KeyMaterial] = (),
    ) -> None:
        """Write the next generation of the keyring, which is in force from then on; earlier ones stay as they are.

        ``add`` opens it too, and the key with the id ``remove`` does not. ``new_data_key_for`` are the keys of all its
        recipients: then what is written from now on is sealed with a new data key. Before it is written it is opened
        with ``proof``, which asks the provider of that key. When another process was first with that generation, the
        change is made again, of what that one wrote. A death leaves the former generation in force, or the new one.

        Raises InvalidRequest for a recipient that is there already, is none, or is the last one; KeyMissing when the
        key of one is not among ``new_data_key_for``; what the keys raise; StoreError, TargetExists, NoSpace and
        PermissionRefused.
        """
        for _ in range(_ATTEMPTS):
            self.follow_keyring()
            changed = self.keyring
            if add is not None:
                changed = changed.with_recipient(self._format, add)
            if remove is not None:
                changed = changed.without_recipient(remove)
            if new_data_key_for:
                changed = changed.with_new_data_key(self._format, *new_data_key_for, random=self._random)
            changed = changed.as_next_of(self.keyring)
            opened = read_keyring(changed.to_bytes(), changed.generation, self._format, lambda _recipients: proof)
            if self._put_keyring(changed):
                if self._key.key_id not in {each.key_id for each in changed.recipients}:
                    self._key = proof
                self.meet_keyring(opened)
                self.keyring = opened
                self._sealer = self._new_sealer()
                return
        raise StoreError(
            f"others went on changing the keyring of {self.location}", path=self.location, hint="Run it again."
        )

    def _put_keyring(self, changed: Keyring) -> bool:
        """Write a generation and read it again; return False when another process was first with it."""
        name, content = keyring_name(changed.generation), changed.to_bytes()
        try:
            self._store.put(name, content)
        except TargetExists:
            if self._is_rewritten():
                return False
            raise
        if self._store.is_kept(name, content):
            return True
        if self._store.directory is None:
            return False  # two won, as not every bucket's server prevents; what the other wrote is there
        with suppress(VmkeepError):
            self._store.delete(name)  # the former generation is in force again
        raise StoreError(f"the storage did not keep {name} as it was written", path=name)

    def follow_keyring(self) -> None:
        """Use the keyring that is in force now: another process may have written one.

        Raises as opening it does: WrongKey, for instance, when the key that opened this is no recipient's any more;
        and what ``meet_keyring`` raises.
        """
        if self._is_rewritten():
            keyring = self._keyring_in_force()
            self.meet_keyring(keyring)
            self.keyring = keyring
            self._sealer = self._new_sealer()

    def require_opened_by(self, key: KeyMaterial) -> None:
        """Raise what opening the keyring that is in force with a key raises: nothing when that key opens it."""
        open_keyring(self._store, highest_generation(self._store), self._format, lambda _recipients: key)

    def probe_bucket(self) -> BucketReport | None:
        """Try out what the server of the bucket does, on objects made for it; None for a repository in a directory.

        Raises StoreError and PermissionRefused when it cannot be tried.
        """
        if self._store.directory is not None:
            return None
        from vmkeep.repository.bucket import Bucket
        from vmkeep.repository.probe import probe

        assert isinstance(self._store, Bucket)
        return probe(self._store)

    def recipients_since(self) -> dict[Recipient, datetime]:
        """Return who opened the repository ever, and since when as the storage dates it."""
        return recipients_since(self._store)

    @staticmethod
    def told_recipients(location: str, access: BucketAccess | None = None) -> tuple[Recipient, ...]:
        """Return who opens a repository as it says itself, without any key: nothing of it is proved.

        Raises as opening it does, but for keys.
        """
        store = open_store(location, access)
        return keyring_recipients(store, highest_generation(store))

    def _new_sealer(self) -> Sealer:
        return Sealer(
            self.keyring.domains,
            self.keyring.default,
            random=self._random,
            compress=self._compress,
            later=self._later_domains,
        )

    def _later_domains(self) -> Mapping[bytes, Domain]:
        """Return the domains with the keys of the keyring that is in force, where it can be opened."""
        with suppress(VmkeepError):
            if self._is_rewritten():
                return self._keyring_in_force().domains
        return self.keyring.domains

    def _is_rewritten(self) -> bool:
        return self._store.exists(keyring_name(self.keyring.generation + 1))

    def _keyring_in_force(self) -> Keyring:
        generation = highest_generation(self._store)
        return open_keyring(self._store, generation, self._format, lambda _recipients: self._key)

    def point_ids(self) -> list[str]:
        """Return the ids of all points, sorted, without opening them."""
        return sorted(self.stored_points())

    def stored_points(self) -> dict[str, datetime]:
        """Return when the store got each point, by its id, also of those that are to be removed."""
        items = ((item.name.removeprefix(POINTS), item.modified) for item in self._store.list(POINTS))
        return {name: modified for name, modified in items if is_name(name)}

    def holds_point(self, point_id: str) -> bool:
        """Return whether the object of a point is there."""
        return self._store.exists(POINTS + point_id)

    def store_time(self) -> datetime:
        """Return the time of the store, which is what times of objects are compared with."""
        return self._store.now()

    def points(self) -> Iterator[PointRecord]:
        """Yield every point in order of id; raises ObjectDamaged naming one that cannot be trusted."""
        for point_id in self.point_ids():
            yield self.point(point_id)

    def point(self, point_id: str) -> PointRecord:
        """Return a point's record, with its signature proved, if it has one.

        Raises PointNotFound, ObjectDamaged, and what ``recognise`` raises.
        """
        if not is_name(point_id):
            raise PointNotFound(f"{point_id!r} is not the id of a point")
        name = POINTS + point_id
        try:
            frame = self._store.get(name, most_bytes=frame_bytes_limit(FrameKind.POINT))
        except ObjectMissing as error:
            raise PointNotFound(f"point {point_id} is not in the repository", path=self.location) from error
        plain = self._sealer.open_alone(FrameKind.POINT, point_id, frame, name)
        value = parse_canonical(plain, name)
        signatures.prove_point(value, self.id, point_id, name)
        record = PointRecord.from_json(value, name, digest=hashlib.sha256(plain).hexdigest())
        if record.id != point_id:
            raise ObjectDamaged(f"{name} holds another point", path=name)
        if self.recognise is not None:
            self.recognise(record)
        return record

    def host_keys(self) -> tuple[signatures.HostKey, ...]:
        """Return the public keys of the installations that sign points here, by fingerprint; damaged ones are left out.

        ``verify_all`` names those.
        """
        found = []
        for item in self._store.list(HOSTS):
            with suppress(ObjectDamaged, ObjectMissing):
                name = item.name.removeprefix(HOSTS)
                found.append(signatures.get_host_key(self._store, self._sealer, self.id, name))
        return tuple(sorted(found, key=lambda key: key.fingerprint))

    def delete_point(self, point_id: str) -> None:
        """Remove a point and its secrets; its blocks stay until a prune finds that no other point needs them.

        Raises PointNotFound, also then without leaving an envelope: one that a killed writer or deletion left.
        """
        missing: ObjectMissing | None = None
        try:
            self._store.delete(POINTS + point_id)
        except ObjectMissing as error:
            missing = error
        # Only when the point is gone: it cannot be restored without them.
        # A pin of its name has the envelope of that name, and a point that somebody gave it takes none with it.
        if not self._store.exists(PINS + point_id):
            with contextlib.suppress(ObjectMissing):
                self._store.delete(ENVELOPES + point_id)
        if missing is not None:
            raise PointNotFound(f"point {point_id} is not in the repository", path=self.location) from missing

    def holder(self, point_id: str, pin_id: str) -> PointRecord | PinRecord:
        """Return the point, or without one the pin. Raises PointNotFound, ObjectMissing or ObjectDamaged."""
        return self.point(point_id) if point_id else self.pins.get(pin_id)

    def secrets(self, record: PointRecord | PinRecord) -> tuple[envelopes.PointSecret, ...]:
        """Return the secrets that a point or a pin holds; raises ObjectMissing or ObjectDamaged."""
        if isinstance(record, PinRecord):
            return self.pins.secrets(record)
        return envelopes.get_envelope(self._store, self._sealer, record)

    def state(self, version_id: str) -> tuple[StateVersion, bytes]:
        """Return a state version and its content; raises ObjectMissing or ObjectDamaged."""
        if not is_name(version_id):
            raise ObjectMissing(f"{version_id!r} is not the id of a state version")
        return states.get_state(self._store, self._sealer, version_id)

    def state_of(self, record: PointRecord, version_id: str) -> tuple[StateVersion, bytes]:
        """Return a state version of a point, as it was when the point was signed; raises as ``state`` does."""
        version, content = self.state(version_id)
        signatures.require_signed_state(record, version)
        return version, content

    def put_state(
        self,
        content: bytes,
        *,
        vm_uuid: str,
        kind: str,
        generation: int,
        file: str,
        owner: str,
        group: str,
        mode: int,
        created: str | None = None,
    ) -> StateVersion:
        """Store a state version outside a point; raises StateTorn for content that cannot be right."""
        self.follow_keyring()
        return states.put_state(
            self._store,
            self._sealer,
            content,
            vm_uuid=vm_uuid,
            kind=kind,
            generation=generation,
            file=file,
            owner=owner,
            group=group,
            mode=mode,
            created=created,
        )

    @property
    def pins(self) -> Pins:
        """What keeps state versions besides points."""
        return Pins(self._store, self._sealer, self.id, self._signer)

    @property
    def deletions(self) -> Deletions:
        """Proofs of what was deleted on hosts."""
        return Deletions(self._store, self._sealer, self.id, self._signer)

    def is_to_be_removed(self, point_id: str) -> bool:
        """Return whether a removal of the point is there, whoever put it: nothing new should build on it."""
        return self._store.exists(REMOVALS + point_id)

    def marked(self) -> frozenset[str]:
        """Return the names of all objects that are marks of points: removals and protections."""
        return frozenset(item.name for prefix in (REMOVALS, PROTECTIONS) for item in self._store.list(prefix))

    @property
    def removals(self) -> Marks:
        """What hides points until they are gone."""
        from vmkeep.repository.marks import REMOVAL, Marks  # most commands meet none

        return Marks(REMOVAL, self._store, self._sealer, self.id, self._signer)

    @property
    def protections(self) -> Marks:
        """What keeps points from being removed."""
        from vmkeep.repository.marks import PROTECTION, Marks

        return Marks(PROTECTION, self._store, self._sealer, self.id, self._signer)

    def begin(
        self,
        *,
        purpose: str,
        host: str,
        cache: Path,
        workers: int = 2,
        lapse_seconds: float = intents.LAPSE_SECONDS,
        point_id: str | None = None,
    ) -> PointWriter:
        """Begin a point: put an intent and bring the index of known blocks, a file below ``cache``, up to date.

        ``workers`` is the number of threads that put packs. ``point_id`` (32 hexadecimal digits, never used
        before) is chosen by whoever must know it before the commit, else drawn. Raises NoSpace, PermissionRefused
        or StoreError.
        """
        if point_id is not None and not is_name(point_id):
            raise InvalidRequest(f"{point_id!r} cannot be the id of a point: 32 hexadecimal digits are")
        # First of all: without its key nothing is begun.
        signer = None if self._signer is None else self._signer()
        self.follow_keyring()
        intent = intents.Intent(
            self._store, self._random(NAME_BYTES).hex(), host=host, purpose=purpose, lapse_seconds=lapse_seconds
        )
        known = KnownBlocks(cache / self.id / f"{self._sealer.domain.id.hex()}.sqlite")
        try:
            # Before the store is looked at: a prune that condemns from here on waits for this writer.
            intent.begin()
            self._require_known_features()
            usable = intents.usable_packs(self._store)
            known.refresh(set(usable), lambda pack: self._entries(pack, usable[pack]))
            return PointWriter(
                self._store,
                self._sealer,
                known,
                intent,
                uploaders=workers,
                point_id=point_id,
                repository=self.id,
                signer=signer,
            )
        except BaseException:
            known.close()
            intent.end()
            raise

    def writers(self) -> tuple[intents.Writer, ...]:
        """Return the writers that say they are at work, whether they live or not."""
        return intents.writers(self._store)

    def forget_writer(self, writer: str) -> None:
        """Delete the intent of a writer that is known to be gone."""
        intents.forget_writer(self._store, writer)

    def read_disk(self, disk: StoredDisk, *, workers: int = 2) -> Iterator[tuple[int, bytes]]:
        """Yield (start in bytes, content) of every block that is not zero, ascending and proved by its id.

        Raises ObjectMissing or ObjectDamaged; never yields other data than was stored.
        """
        return fetch.read_disk(self._store, self._sealer, disk, workers=workers)

    def disk_windows(self, disk: StoredDisk) -> Iterator[fetch.Window]:
        """Yield functions that each read a part of the disk, as ``read_disk`` does, for threads of the caller's."""
        return fetch.disk_windows(self._store, self._sealer, disk)

    def blocks(self, disk: StoredDisk) -> Iterator[tuple[int, BlockRef]]:
        """Yield (block, where it is) of every block that is not zero, ascending, reading only the manifest."""
        return walk_blocks(disk, fetch.node_reader(self._store, self._sealer))

    def comparable(self, have: StoredDisk, want: StoredDisk) -> bool:
        """Return whether ``difference`` can be asked for: both have one geometry and one domain."""
        return comparable(have, want)

    def difference(self, have: StoredDisk, want: StoredDisk) -> Iterator[tuple[int, BlockRef | None]]:
        """Yield (block, where ``want`` has it; None for zero) of every block that differs, ascending.

        Only manifest nodes that are not in both are read. Raises InvalidRequest when they are not comparable.
        """
        return walk_difference(have, want, fetch.node_reader(self._store, self._sealer))

    def read_runs(self, disk: StoredDisk, runs: Runs, *, workers: int = 2) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield (start, length, content; None for zero) of runs of blocks (first, count), ascending, without a gap.

        Every block is proved by its id. Raises ObjectMissing or ObjectDamaged.
        """
        return fetch.read_runs(self._store, self._sealer, disk, runs, workers=workers)

    def sample_blocks(self, disk: StoredDisk, count: int) -> dict[int, BlockRef]:
        """Return at most ``count`` blocks of a disk that are not zero, drawn at random, and where each one is."""
        reader = fetch.node_reader(self._store, self._sealer)
        return sample_blocks(disk, reader, count, secrets.choice)

    def verify_point(self, point_id: str, *, sample: float = 1.0, progress: Progress | None = None) -> PointReport:
        """Read and prove what the point needs (of the blocks, the share ``sample``); damage is reported, not raised.

        Raises StoreError when much of it cannot be read.
        """
        return self._verification(sample, progress).point(point_id)

    def verify_all(
        self, *, sample: float = 1.0, progress: Progress | None = None, proofs: Proofs | None = None
    ) -> RepositoryReport:
        """Read every object, and say of each that is damaged, missing, foreign or unreadable which points it harms.

        ``proofs`` takes note of what was read whole. Raises StoreError when many of them cannot be read.
        """
        return self._verification(sample, progress).everything(self._format, self._key, self.keyring, proofs)

    def verify_portion(self, budget: Budget, proofs: Proofs, *, progress: Progress | None = None) -> RepositoryReport:
        """Read what ``proofs`` says was longest not read, as much as the budget allows; as ``verify_all``."""
        return self._verification(1.0, progress).portion(self._format, self._key, self.keyring, proofs, budget)

    def proofs(self, cache: Path) -> Proofs:
        """Open the record of what was verified, a file below ``cache``. Raises as ``Proofs``."""
        from vmkeep.repository.proofs import Proofs, proofs_path

        return Proofs(proofs_path(cache, self.id))

    def prune(
        self,
        options: PruneOptions,
        *,
        host: str,
        directory: Path,
        tell: Callable[[Stage], None],
        purpose: str = "prune",
    ) -> PruneReport:
        """Delete what no point and no pin needs, and make packs new that are mostly waste; others may go on beside it.

        ``directory`` takes temporary files, ``tell`` is told where it stands and may raise to stop it; ``host`` and
        ``purpose`` are named in what others see of it. Damage keeps what it may reach, and is reported. Raises NoSpace,
        PermissionRefused and StoreError; what was done until then stands.
        """
        from vmkeep.repository.prune import Prune

        self.follow_keyring()
        self._require_known_features()
        return Prune(
            self._store,
            self._sealer,
            self.point,
            self.pins,
            options,
            host=host,
            directory=directory,
            tell=tell,
            purpose=purpose,
        ).run()

    def unfinished_prunes(self) -> Sequence[str]:
        """Return the objects with what prunes condemned that began a day ago or more: they are dead, or wait long."""
        listed = [item for item in self._store.list(CONDEMNED) if item.name.startswith(CONDEMNED + RUN_PREFIX)]
        if not listed:
            return ()
        now = self._store.now()
        return sorted(item.name for item in listed if now - item.modified > _SILENT)

    def condemn(self, packs: Sequence[bytes], *, reason: str = intents.DAMAGED) -> None:
        """Keep damaged packs from being used by later points: a full backup then stores their blocks again."""
        intents.condemn(self._store, packs, reason=reason)

    def pardon(self, packs: Sequence[bytes]) -> int:
        """Let later points use packs again that were condemned as damaged and are proved sound; return how many."""
        return intents.pardon(self._store, packs)

    def staged(self, is_gone: Callable[[intents.Writer], bool]) -> Sequence[Path]:
        """Return the files that puts of killed processes left: older than an hour, which no put takes.

        By the storage's clock, which may have been set meanwhile. So none is left while a writer may live: one that is
        not known to be gone (``is_gone``) and that renewed its intent within a day.
        """
        staged = self._store.staged()
        if not staged or self._has_writer(is_gone):
            return ()
        now = self._store.now()
        return sorted(path for path, written in staged.items() if now - written > _LEFT)

    def remove_staged(self, path: Path, is_gone: Callable[[intents.Writer], bool]) -> None:
        """Remove such a file; raises StoreError for any other, and while a writer may live."""
        if path in self._store.staged():
            if path not in self.staged(is_gone):
                raise StoreError(f"{path} may be written just now", path=str(path))
            self._store.remove_staged(path)

    def _has_writer(self, is_gone: Callable[[intents.Writer], bool]) -> bool:
        unsure = [writer for writer in self.writers() if not is_gone(writer)]
        return bool(unsure) and self._store.now() - max(writer.renewed for writer in unsure) < _SILENT

    def _verification(self, sample: float, progress: Progress | None) -> Verification:
        from vmkeep.repository.verify import Verification

        return Verification(self._store, self._sealer, self.point, self.id, sample=sample, progress=progress)

    def _entries(self, pack: bytes, size_bytes: int) -> Sequence[PackEntry] | None:
        try:
            return read_index(self._store, self._sealer, pack, size_bytes)
        except VmkeepError:
            # Damaged, or swept meanwhile: its blocks count as unknown and are stored again.
            return None


def _is_only_recipient(store: ObjectStore, key_id: str) -> bool:
    """Return whether the keyring of a repository that is not finished is for this key, or not there yet."""
    try:
        value = parse_canonical(store.get(keyring_name(1)), keyring_name(1))
    except ObjectMissing:
        return True
    except ObjectDamaged:
        return False
    recipients = value.get("recipients")
    ids = [each.get("key_id") for each in recipients if isinstance(each, dict)] if isinstance(recipients, list) else []
    return ids == [key_id]
