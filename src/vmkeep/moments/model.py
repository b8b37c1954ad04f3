"""The values: a moment, its disks, a backup and its disks.

Enumerations take their plain strings everywhere: ``CheckpointDisk("vda", "bitmap")`` is as good as naming the
member, and a wrong string raises ValueError when the value is made.
"""

from __future__ import annotations

from enum import StrEnum

from vmkeep.values import dataclass


class CheckpointType(StrEnum):
    """What a checkpoint does with a disk."""

    DEFAULT = "default"
    """Not decided; alignment decides. Never read from XML, where an absent attribute means bitmap."""
    NO = "no"
    BITMAP = "bitmap"


class BackupMode(StrEnum):
    """Who moves the data of a backup: QEMU into a target (push), or a client over NBD (pull)."""

    PUSH = "push"
    PULL = "pull"


class BackupDiskMode(StrEnum):
    """Whether a disk is backed up whole or since a checkpoint."""

    FULL = "full"
    INCREMENTAL = "incremental"


class ServerTransport(StrEnum):
    """Where the NBD server of a pull backup listens."""

    TCP = "tcp"
    UNIX = "unix"
    FD = "fd"
    """A socket that the client hands over (libvirt 11.10 and later)."""


class StoreType(StrEnum):
    """What kind of thing holds the target or scratch of a backup."""

    FILE = "file"
    BLOCK = "block"


class SnapshotState(StrEnum):
    """What the domain did when a snapshot of it was made, in libvirt's order; DISK_SNAPSHOT holds disks only."""

    NOSTATE = "nostate"
    """Not known yet; never written, and refused in a snapshot that is redefined."""
    RUNNING = "running"
    BLOCKED = "blocked"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    SHUTOFF = "shutoff"
    CRASHED = "crashed"
    PMSUSPENDED = "pmsuspended"
    DISK_SNAPSHOT = "disk-snapshot"

    @property
    def offline(self) -> bool:
        """Whether a snapshot in this state holds no memory."""
        return self in (SnapshotState.SHUTOFF, SnapshotState.DISK_SNAPSHOT)


class SnapshotLocation(StrEnum):
    """Where a snapshot keeps a disk or the memory."""

    DEFAULT = "default"
    """Not decided; alignment decides. Never written: it is the absent attribute."""
    NO = "no"
    INTERNAL = "internal"
    """In the disk's own image."""
    EXTERNAL = "external"
    """For a disk a new overlay, the old image staying as it was; for memory a file."""
    MANUAL = "manual"
    """Somebody else keeps the disk; never for memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A named point in a domain's life that libvirt knows.

    ``name`` is None only until one is given at creation. ``creation_time`` is in whole seconds since 1970, 0
    when absent. ``domain`` is the domain's XML at that time, as a document of its own.
    """

    name: str | None = None
    description: str | None = None
    parent_name: str | None = None
    creation_time: int = 0
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointDisk:
    """A disk in a checkpoint. ``name`` is its target, or before alignment the absolute path of its source.

    ``size`` is the number of bytes dirtied since, where libvirt was asked for it.
    """

    name: str
    type: CheckpointType = CheckpointType.DEFAULT
    bitmap: str | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", CheckpointType(self.type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(Moment):
    """A moment recorded as dirty bitmaps in the disks."""

    disks: tuple[CheckpointDisk, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "disks", tuple(self.disks))


@dataclass(frozen=True, slots=True)
class SnapshotMemory:
    """Where a snapshot keeps the memory; ``file`` is its absolute path when it is external."""

    location: SnapshotLocation = SnapshotLocation.DEFAULT
    file: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "location", SnapshotLocation(self.location))


@dataclass(frozen=True, slots=True)
class SnapshotDisk:
    """A disk in a snapshot. ``name`` is its target, or before alignment the absolute path of its source.

    ``source`` is the new overlay's path (the image's name for a network disk), ``source_type`` is libvirt's
    disk type, and ``format`` its image format. What else stands in ``<source>`` is kept: ``source_attributes``
    and, as XML, ``source_content``. ``metadata_cache_bytes`` is the cache for the qcow2 tables, 0 for none.
    ``delete_in_progress`` marks a disk into whose overlay that of a later snapshot was being merged (9.0 and later).
    """

    name: str
    location: SnapshotLocation = SnapshotLocation.DEFAULT
    source: str | None = None
    source_type: str = "file"
    format: str | None = None
    source_attributes: tuple[tuple[str, str], ...] = ()
    source_content: str = ""
    metadata_cache_bytes: int = 0
    delete_in_progress: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "location", SnapshotLocation(self.location))
        object.__setattr__(self, "source_attributes", tuple(self.source_attributes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot(Moment):
    """A moment kept as a snapshot.

    ``domain`` is the definition then, the live one of a domain that ran; ``inactive_domain`` is its persistent
    one, as a ``<domain>`` document too. ``cookie`` is what the hypervisor driver keeps, as a ``<cookie>``
    document. ``active`` says whether it is the current snapshot, which only libvirt's own files tell.
    ``revert_disks`` are the overlays of a revert to it while it had children (9.9 and later).
    ``other_elements`` are elements of a redefined snapshot that are not known here, as XML.
    """

    state: SnapshotState = SnapshotState.NOSTATE
    memory: SnapshotMemory = SnapshotMemory()
    disks: tuple[SnapshotDisk, ...] = ()
    inactive_domain: str | None = None
    cookie: str | None = None
    active: bool = False
    revert_disks: tuple[SnapshotDisk, ...] = ()
    other_elements: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "state", SnapshotState(self.state))
        for field in ("disks", "revert_disks", "other_elements"):
            object.__setattr__(self, field, tuple(getattr(self, field)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupServer:
    """The NBD server of a pull backup; ``socket`` for unix, ``name`` and ``port`` for tcp, ``fd_group`` for fd."""

    transport: ServerTransport = ServerTransport.TCP
    tls: bool | None = None
    name: str | None = None
    port: int | None = None
    socket: str | None = None
    fd_group: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "transport", ServerTransport(self.transport))


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupDisk:
    """A disk in a backup. ``name`` is its target.

    ``store`` is the path of the target (push) or of the scratch (pull), ``store_type`` its kind, and
    ``store_format`` its image format; ``store_content`` is the XML inside that element (security labels,
    encryption), kept as it was read. ``state`` and ``index`` are libvirt's output only. A disk that is listed
    for a pull backup needs a store: libvirt 9.0 generates no path then and fails with an internal error.
    """

    name: str
    backup: bool = True
    mode: BackupDiskMode | None = None
    incremental: str | None = None
    export_name: str | None = None
    export_bitmap: str | None = None
    store_type: StoreType | None = None
    store: str | None = None
    store_format: str | None = None
    store_content: str = ""
    state: str | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        if self.mode is not None:
            object.__setattr__(self, "mode", BackupDiskMode(self.mode))
        if self.store_type is not None:
            object.__setattr__(self, "store_type", StoreType(self.store_type))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup job as libvirt is asked for it; ``incremental`` names the checkpoint all disks start from."""

    mode: BackupMode = BackupMode.PUSH
    incremental: str | None = None
    server: BackupServer | None = None
    disks: tuple[BackupDisk, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", BackupMode(self.mode))
        object.__setattr__(self, "disks", tuple(self.disks))
