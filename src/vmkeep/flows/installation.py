"""What an installation has: settings, catalogue, key and repository; opened when first asked for.

The repository, and with it cryptography and obstore, is imported only by what needs it: a command that lists
points reads the catalogue alone and must start fast.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from vmkeep.catalog import Catalog, CatalogPoint, CatalogState, KnownRepository, SqlCatalog, Trust
from vmkeep.config import ALWAYS, Settings, prepare_home, resolve_location, save_repository_location
from vmkeep.errors import (
    IntegrityError,
    InvalidRequest,
    KeyMissing,
    KeyringReplaced,
    RepositoryForeign,
    RepositoryNotFound,
    TargetExists,
    VmkeepError,
)
from vmkeep.filesystem import HOME_ROOM_BYTES, OF_STORAGE, file_error, make_private_file, require_room
from vmkeep.flows.identity import fault_of_keyring, known_keyring, meet_keyring, recognise
from vmkeep.flows.standin import StandIn
from vmkeep.locks import FileLock
from vmkeep.planning.model import KnownDisk, KnownPoint
from vmkeep.values import dataclass

if TYPE_CHECKING:
    from vmkeep.flows.keychain import HeldKey, Keychain
    from vmkeep.flows.own_key import OwnKey
    from vmkeep.keys import KeyFile, KeyMaterial
    from vmkeep.keys.signing import SigningKey
    from vmkeep.planning.retention import KeepRule
    from vmkeep.repository import PinRecord, PointRecord, Repository
    from vmkeep.repository.probe import BucketReport
    from vmkeep.repository.seal import Compress

_WAIT_SECONDS = 0.05
_UNUSED = ".unused"


@dataclass(frozen=True, slots=True)
class DamagedPoint:
    """A point object that could not be adopted, and why."""

    point: str
    message: str


@dataclass(frozen=True, slots=True)
class MetHost:
    """An installation that signs points with a key which is new here.

    ``former`` is the fingerprint of the key that it had when it was met first, None for one that was never met.
    """

    fingerprint: str
    installation: str
    host: str
    former: str | None = None
    trust: str = str(Trust.UNKNOWN)


@dataclass(frozen=True, slots=True)
class InitReport:
    """What `vmkeep init` did. ``created``: the repository is new; ``adopted_*`` count what the catalogue gained.

    ``moved_from`` is where this installation's repository was before, None when it is where it was. ``hosts`` are those
    that sign points in it, and that nobody here has decided about. ``bucket`` is what its server was found to do, None
    for a directory.
    """

    repository: str
    location: str
    key: str
    key_path: str
    created: bool
    moved_from: str | None = None
    adopted_points: int = 0
    adopted_vms: int = 0
    damaged: tuple[DamagedPoint, ...] = ()
    warnings: tuple[str, ...] = ()
    hosts: tuple[MetHost, ...] = ()
    bucket: BucketReport | None = None


@dataclass(frozen=True, slots=True)
class ImportedKey:
    """A key that is on this host now; ``new`` is False when it was there already."""

    key: str
    path: str
    new: bool


class Premises:
    """Settings, catalogue, key and repository of one installation. Close it, or use it with ``with``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._keys_dir = settings.keys_dir
        self._key: HeldKey | None = None
        self._stand_in: StandIn | None = None
        self._own_key: OwnKey | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened."""
        opened = self.__dict__.pop("catalog", None)
        if opened is not None:
            opened.close()
        self.__dict__.pop("repository", None)
        keychain = self.__dict__.pop("keychain", None)
        if keychain is not None:
            keychain.close()
        if self._stand_in is not None:
            self._stand_in.close()
            self._stand_in = None

    @cached_property
    def catalog(self) -> Catalog:
        """The catalogue; made if there is none. Raises CatalogError, PermissionRefused, NoSpace, StoreError.

        Where it can be read and its home cannot be written it is a copy, which refuses to be written with the reason.
        """
        path = self.settings.catalog_path
        try:
            prepare_home(self.settings)
            return SqlCatalog.open(path)
        except OF_STORAGE as error:
            if not os.access(path, os.R_OK):
                raise
            copy = self._copied(error)
            copy.refuse_writing(error)
            return copy

    def require_home(self) -> None:
        """Raise what an operation would meet that must write to vmkeep's home: NoSpace, PermissionRefused, StoreError.

        To be called before anything is begun. Nothing is changed.
        """
        home = self.settings.home
        try:
            prepare_home(self.settings)
            require_room(home, HOME_ROOM_BYTES)
        except OF_STORAGE as error:
            raise type(error)(
                f"vmkeep's home cannot be written: {error.message}",
                path=str(home),
                hint=f"{error.hint} Nothing was begun. Points can be listed, verified and restored all the same "
                "(--output, --as).",
            ) from error

    def leave_home(self, reason: VmkeepError) -> None:
        """Go on with a home for this command alone: what it records there is gone with it. The keys stay.

        For what need not be recorded: restores of points to files, and as VMs.
        """
        if self._stand_in is None:
            opened = self.__dict__.pop("catalog", None)
            if opened is not None:
                opened.close()
            self.__dict__["catalog"] = self._copied(reason)
        assert self._stand_in is not None
        self.catalog.allow_writing()
        self.settings = replace(self.settings, home=self._stand_in.directory)

    def _copied(self, reason: VmkeepError) -> Catalog:
        """Open a copy of the catalogue. Raises ``reason`` when none can be made, and CatalogError of what it holds."""
        try:
            self._stand_in = StandIn.of(self.settings)
        except OF_STORAGE as error:
            reason.add_note(f"nor could the catalogue be copied: {error.message}")
            raise reason from error
        return SqlCatalog.open_copy(self._stand_in.catalog_path, of=self.settings.catalog_path)

    @cached_property
    def repository(self) -> Repository:
        """The repository that this catalogue's points are in.

        Raises RepositoryNotFound, KeyMissing, WrongKey, or RepositoryForeign when another one is at its place.
        """
        repository = self._open(self.settings.repository)
        known = self.catalog.repository()
        if known is not None and known.id != repository.id:
            raise RepositoryForeign(
                f"{repository.location} is not the repository of this installation's points",
                path=repository.location,
                hint=f"The one it was is {known.id}, last seen at {known.location}. "
                "To use this one, take it over with `vmkeep init --adopt` under another VMKEEP_HOME.",
            )
        self._require_in_force(repository)
        return repository

    def _require_in_force(self, repository: Repository) -> None:
        """Raise KeyringReplaced when the keyring is an older or another one than was in force before; remember it."""
        opened = repository.keyring
        try:
            meet_keyring(self.catalog, repository.id, opened)
        except KeyringReplaced:
            repository.follow_keyring()  # another process may have written one since this was opened
            if repository.keyring is opened:
                raise

    @cached_property
    def keychain(self) -> Keychain:
        """The keys that are at hand here."""
        from vmkeep.flows.keychain import Keychain

        return Keychain(self.settings)

    @property
    def key(self) -> HeldKey:
        """The key that opens the repository; raises as opening it does."""
        self.repository  # noqa: B018  opening it is what chooses the key that opens it
        assert self._key is not None
        return self._key

    @property
    def keep_state_versions(self) -> KeepRule:
        """The rule by which versions of state files are kept that nothing holds; raises InvalidRequest for no rule."""
        from vmkeep.planning.retention import KeepRule

        return KeepRule.parse(self.settings.state_versions)

    def prepare_to_sign(self) -> tuple[str, ...]:
        """Have the key ready with which points are signed; return what a person must hear of it, once.

        Raises PermissionRefused, NoSpace or StoreError when it can be neither read nor made.
        """
        from vmkeep.flows.own_key import own_key

        if self._own_key is not None:
            return ()
        self._own_key = own_key(self.settings, self.catalog)
        return self._own_key.told

    def _signer(self) -> SigningKey:
        self.prepare_to_sign()
        assert self._own_key is not None
        return self._own_key.key

    def ensure(self) -> InitReport | None:
        """Initialise on first use; return the report then, and None when there was nothing to do.

        An installation that had a repository never gets another one by itself: when its directory is empty, a
        mount is missing, and a new repository there would hide the points.
        """
        if self.catalog.repository() is not None:
            return None
        return self.initialise()

    def initialise(self, repository: str | None = None, *, adopt: bool = False) -> InitReport:
        """Make catalogue, key and repository, or take over an existing repository and rebuild the catalogue.

        Doing it again changes nothing. Raises TargetExists for a repository with points that is not this
        installation's (``adopt`` takes it over), InvalidRequest when this installation's points are elsewhere,
        RepositoryForeign, RepositoryNotFound, KeyMissing, WrongKey.
        """
        location = resolve_location(repository if repository is not None else self.settings.repository)
        prepare_home(self.settings)
        with self._alone():
            if adopt:
                return self._with_bucket(self._adopt(location))
            try:
                found = self._open(location)
            except RepositoryNotFound:
                found = None
            if found is not None:
                return self._with_bucket(self._use_existing(found))
            return self._with_bucket(self._create(location))

    def _with_bucket(self, report: InitReport) -> InitReport:
        """Return the report with what the server of a bucket was found to do, and warnings of what it does not."""
        try:
            bucket = self.repository.probe_bucket()
        except VmkeepError as error:
            told = f"it could not be tried out what the bucket's server does: {error.message}"
            return replace(report, warnings=(*report.warnings, told))
        if bucket is None:
            return report
        from vmkeep.repository.probe import weaknesses

        told_of = (f"of the bucket's server: {told}" for _, told in weaknesses(bucket))
        return replace(report, bucket=bucket, warnings=(*report.warnings, *told_of))

    def key_to_export(self, key_id: str | None = None) -> KeyFile:
        """Return the key that `key export` prints: the one that opens the repository, or another one that does.

        Raises InvalidRequest for a key that its provider does not give out, or that does not open the repository.
        """
        from vmkeep.keys import KeyFile

        found = self.key if key_id is None else self.keychain.named(key_id)
        recipients = {each.key_id for each in self.repository.keyring.recipients}
        if found.key_id not in recipients:
            raise InvalidRequest(
                f"key {found.key_id} does not open the repository",
                hint="`vmkeep key recipients list` names those that do.",
            )
        if not isinstance(found, KeyFile):
            raise InvalidRequest(
                f"the repository is opened with {found.where}, which gives no key out",
                hint="For a copy on paper, add a key that is a file: `vmkeep key recipients add --new-key`; "
                "then export that one with --key.",
            )
        return found

    def key_import(self, text: str, passphrase: str) -> ImportedKey:
        """Store an exported key on this host. Raises WrongKey, InvalidRequest, PermissionRefused, NoSpace."""
        from vmkeep.keys import import_key

        key = import_key(text, passphrase)
        prepare_home(self.settings)
        try:
            stored = key.save(self._keys_dir)
        except TargetExists:
            # Loading proves that what is there is sound and is this key.
            present = self.keychain.file(key.key_id)
            return ImportedKey(present.key_id, str(present.path), new=False)
        return ImportedKey(stored.key_id, str(stored.path), new=True)

    def _create(self, location: str) -> InitReport:
        from vmkeep.repository import Repository

        known = self.catalog.repository()
        if known is not None and self.catalog.points():
            raise InvalidRequest(
                f"The points of this installation are in {known.location}, and {location} has no repository",
                path=location,
                hint="Mount or put back the repository there; for another one, set another VMKEEP_HOME.",
            )
        found = self._unused_key()
        key = found or self._new_key()
        try:
            access = self.settings.access_to(location)
            repository = self._equipped(Repository.create(location, key, compress=self._compress(), access=access))
        except BaseException as error:
            # A key that opens nothing must not be taken for the one that matters. One that what is left there was begun
            # with stays: without it nothing could ever be made at that place, or, when all but the last sync was done,
            # nothing opens what is there.
            refused = isinstance(error, RepositoryForeign | TargetExists | InvalidRequest)
            if found is None and key.path is not None and (refused or not self._is_begun(location)):
                key.path.unlink(missing_ok=True)
                self._mark(key.key_id).unlink(missing_ok=True)
            raise
        self._key = key
        return self._take(repository, created=True)

    def _is_begun(self, location: str) -> bool:
        from vmkeep.repository import Repository

        try:
            return Repository.is_begun(location, self.settings.access_to(location))
        except VmkeepError:
            return False  # without access to a bucket nothing was put there

    def _new_key(self) -> KeyFile:
        from vmkeep.keys import KeyFile

        key = KeyFile.draw()
        try:
            self._keys_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private_file(self._mark(key.key_id))
        except OSError as error:
            raise file_error(error, self._mark(key.key_id)) from error
        return key.save(self._keys_dir)

    def _unused_key(self) -> KeyFile | None:
        """Return the key of an initialisation that was killed before it was done: this one goes on with it."""
        for mark in sorted(self._keys_dir.glob("*" + _UNUSED)):
            try:
                return self.keychain.file(mark.name.removesuffix(_UNUSED))
            except KeyMissing:
                mark.unlink(missing_ok=True)
        return None

    def _mark(self, key_id: str) -> Path:
        """Return the mark of a key whose repository is being made. An imported key has none, and is never taken."""
        return self._keys_dir / f"{key_id}{_UNUSED}"

    def _use_existing(self, repository: Repository) -> InitReport:
        known = self.catalog.repository()
        if known is not None and known.id == repository.id:
            self._require_in_force(repository)
        if (known is None or known.id != repository.id) and next(iter(repository.point_ids()), None) is not None:
            raise TargetExists(
                f"{repository.location} is a repository with points already",
                path=repository.location,
                hint="Take it over with `vmkeep init --adopt`; that adds its points to the catalogue.",
            )
        return self._take(repository, created=False)

    def _adopt(self, location: str) -> InitReport:
        from vmkeep.flows.catch_up import hidden_points, hide_marked
        from vmkeep.flows.catch_up_on_deletions import catch_up_on_deletions
        from vmkeep.flows.catch_up_on_pins import catch_up_on_pins
        from vmkeep.flows.hosts import meet_hosts, meet_keys, undecided
        from vmkeep.flows.own_key import pin_own_key

        repository = self._open(location)
        fault = fault_of_keyring(self.catalog, repository.id, repository.keyring)
        report = self._take(repository, created=False)
        pin_own_key(self.settings, self.catalog)
        found: list[tuple[CatalogPoint, tuple[CatalogState, ...]]] = []
        damaged: list[DamagedPoint] = []
        stored = repository.point_ids()
        under_way = {operation.id for operation in self.catalog.unfinished_operations()}  # they record their points
        marks = hide_marked(self.catalog, repository)
        hidden = hidden_points(self.catalog)
        for point_id in (point_id for point_id in stored if point_id not in under_way | hidden):
            try:
                record = repository.point(point_id)
            except IntegrityError as error:
                damaged.append(DamagedPoint(point_id, error.message))
            else:
                found.append((catalog_point(record), catalog_states(record)))
        meet_keys(self.catalog, repository.host_keys())
        meet_hosts(self.catalog, (point for point, _ in found))
        adopted = self.catalog.adopt(found)
        pins = catch_up_on_pins(self.catalog, repository, lambda _vm_uuid: True)
        deletions = catch_up_on_deletions(self.catalog, repository)
        return replace(
            report,
            hosts=undecided(self.catalog),
            adopted_points=adopted.points,
            adopted_vms=adopted.vms,
            damaged=tuple(damaged),
            warnings=(
                *((f"the keyring was taken as it is: {fault}",) if fault else ()),
                *adopted.conflicts,
                *marks,
                *pins.told,
                *deletions,
            ),
        )

    def _take(self, repository: Repository, *, created: bool) -> InitReport:
        """Make the repository this installation's own: in the settings, then in the catalogue."""
        known = self.catalog.repository()
        if known is not None and known.id != repository.id and self.catalog.points():
            raise InvalidRequest(
                f"The points of this installation are in another repository ({known.location})",
                path=repository.location,
                hint="Use another VMKEEP_HOME for another repository.",
            )
        if repository.location != self.settings.repository:
            self.settings = save_repository_location(self.settings, repository.location)
        self.catalog.use_repository(repository.id, repository.location)
        self.catalog.see_keyring(repository.id, known_keyring(repository.keyring))
        self.__dict__["repository"] = repository
        assert self._key is not None
        self._mark(self._key.key_id).unlink(missing_ok=True)
        return InitReport(
            repository=repository.id,
            location=repository.location,
            key=self._key.key_id,
            key_path=self._key.where,
            created=created,
            moved_from=_former_place(known, repository),
        )

    def _open(self, location: str) -> Repository:
        from vmkeep.repository import Repository

        try:
            access = self.settings.access_to(location)
            return self._equipped(Repository.open(location, self._find_key, compress=self._compress(), access=access))
        finally:
            # A provider is not asked again for as long as this runs, which may be weeks.
            self.keychain.close()

    def _equipped(self, repository: Repository) -> Repository:
        repository.sign_with(self._signer)
        repository.recognise = self._recognise
        repository.meet_keyring = partial(meet_keyring, self.catalog, repository.id)
        return repository

    def _recognise(self, record: PointRecord) -> None:
        recognise(self.catalog, record)

    def _compress(self) -> Compress:
        from vmkeep.repository.compression import zstd, zstd_well

        return zstd_well if self.settings.compression == ALWAYS else zstd

    def _find_key(self, recipients: Sequence[str]) -> KeyMaterial:
        self._key = self.keychain.find(recipients)
        return self._key

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep two commands from initialising at once: the second then finds what the first has made."""
        path = Path(self.settings.locks_dir) / "init.lock"
        while (lock := FileLock.try_acquire(path, "init")) is None:
            time.sleep(_WAIT_SECONDS)
        with lock:
            yield


def _former_place(known: KnownRepository | None, repository: Repository) -> str | None:
    if known is None or known.id != repository.id or known.location == repository.location:
        return None
    return known.location


def catalog_point(record: PointRecord) -> CatalogPoint:
    """Return the catalogue's row for a point of the repository.

    The domain's definition stays in the repository, where it is sealed: it may hold passwords of consoles.
    """
    from vmkeep.repository.signatures import signature_of

    signature = signature_of(record)
    document = record.as_json()
    del document["definition"]
    return CatalogPoint(
        id=record.id,
        vm_uuid=record.vm_uuid,
        vm_name=record.vm_name,
        kind=cast('Literal["full", "incremental"]', record.kind),
        parent=record.parent,
        created=record.created,
        host=record.host,
        checkpoint=record.checkpoint,
        pause_ms=record.pause_ms,
        labels=dict(record.labels),
        document=document,
        sequence=record.sequence,
        digest=record.digest or None,
        signed_by=None if signature is None else signature.fingerprint,
    )


def known_from_catalogue(point: CatalogPoint) -> KnownPoint:
    """Return what a host must know of a point to read another one against it."""
    disks = tuple(
        KnownDisk(
            disk["target"],
            disk["source"],
            disk["stored"]["size_bytes"],
            disk["format"],
            bitmap=disk["mode"] != "scan",
        )
        for disk in point.document["disks"]
    )
    return KnownPoint(point.id, disks, point.created, point.parent, point.sequence)


def catalog_states(record: PointRecord | PinRecord) -> tuple[CatalogState, ...]:
    """Return the catalogue's rows for the state versions that a point or a pin holds."""
    return tuple(
        CatalogState(
            id=state.version_id,
            vm_uuid=record.vm_uuid,
            kind=cast('Literal["tpm", "nvram"]', state.kind),
            generation=state.generation,
            sha256=state.sha256,
            size_bytes=state.size_bytes,
            created=record.created,
            because=state.because,
        )
        for state in record.states
    )
