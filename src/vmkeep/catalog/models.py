"""The catalogue's tables. A test holds the migrations against this declaration.

Times are ISO 8601 texts in UTC with microseconds, so that they sort as text; JSON is text with sorted keys.
"""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    MetaData,
    Table,
    UniqueConstraint,
    false,
)

from vmkeep.catalog.columns import text, whole

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

repositories = Table(
    "repositories",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("location", text(), nullable=False),
    Column("since", text(32), nullable=False),
    # The keyring in force as it was met last, JSON of a ``KnownKeyring``. Null: none was, as of an older release.
    Column("keyring", text()),
)

hosts = Table(
    "hosts",
    metadata,
    Column("uuid", text(36), primary_key=True),
    Column("name", text(), nullable=False),
    Column("seen_at", text(32), nullable=False),
)

vms = Table(
    "vms",
    metadata,
    Column("uuid", text(36), primary_key=True),
    Column("name", text(), nullable=False, index=True),
    Column("host_uuid", text(36), ForeignKey("hosts.uuid")),
    Column("seen_at", text(32), nullable=False),
    Column("adopted", Boolean, nullable=False),
    # The point that the VM's state descends from: the last one taken, or the one it was restored to. Empty: it is as
    # before its first one. Not a foreign key: a point may be deleted while the VM goes on.
    Column("current_point", text(32)),
    # The greatest order number of a point or snapshot of the VM that was ever seen here, also of one that is deleted.
    Column("sequence", whole(), nullable=False, server_default="0"),
    # Somebody said that the VM is gone for good: until then its state versions are kept. Null once it is seen again.
    Column("forgotten_until", text(32)),
)

points = Table(
    "points",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), nullable=False),
    Column("vm_name", text(), nullable=False),
    Column("kind", text(16), CheckConstraint("kind in ('full', 'incremental')", name="kind"), nullable=False),
    # Not a foreign key: the parent may be deleted, and the point stays complete without it.
    Column("parent", text(32)),
    Column("created", text(32), nullable=False),
    Column("host", text(), nullable=False),
    Column("checkpoint", text()),
    Column("pause_ms", Float, nullable=False),
    Column("labels", text(), nullable=False),
    # What a listing shows, so that it need not read the documents: those hold whole domain definitions.
    Column("summary", text(), nullable=False),
    Column("document", text(), nullable=False),
    # The order number that the point carries; null for one of an older release.
    Column("sequence", whole()),
    # Where it stands among the VM's points (vmkeep.planning.order): what everything here is ordered by.
    Column("place", whole(), nullable=False, server_default="0"),
    # SHA-256 of the record in the repository, as it was when the point was written here or adopted: another one under
    # its id is not this point. Null for one that an older release recorded, until it is read.
    Column("digest", text(64)),
    # The fingerprint of the key that signed the point; null for none. Empty: none, and it was known here before points
    # were signed. Not a foreign key: what signed a point is told although nobody ever looked at its key.
    Column("signed_by", text(32)),
    Index(None, "vm_uuid", "place"),
    Index(None, "vm_name"),
)

state_versions = Table(
    "state_versions",
    metadata,
    Column("id", text(64), primary_key=True),
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), nullable=False),
    Column("kind", text(16), CheckConstraint("kind in ('tpm', 'nvram')", name="kind"), nullable=False),
    Column("generation", whole(), CheckConstraint("generation > 0", name="generation"), nullable=False),
    Column("sha256", text(64), nullable=False),
    Column("size_bytes", whole(), nullable=False),
    Column("created", text(32), nullable=False),
    # A late capture: its generation was claimed by another version first. It is kept for whatever pins it, and is
    # never the current one.
    Column("conflict", Boolean, nullable=False, server_default="0"),
    # Why it was given its number (vmkeep.custody.states.Because); empty for one of an older release.
    Column("because", text(32), nullable=False, server_default=""),
    # By this installation; so is all that an older release knew.
    Column("made_here", Boolean, nullable=False, server_default="1"),
)
Index(
    "uq_state_versions_accepted",
    state_versions.c.vm_uuid,
    state_versions.c.kind,
    state_versions.c.generation,
    unique=True,
    # Of SQLite alone: a clause for another database has SQLAlchemy load that one's dialect, here a tenth of a point. On
    # PostgreSQL the same index is made by its revision, 0003.
    sqlite_where=state_versions.c.conflict == false(),
)

placed_states = Table(
    "placed_states",
    metadata,
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), primary_key=True),
    Column("kind", text(16), CheckConstraint("kind in ('tpm', 'nvram')", name="kind"), primary_key=True),
    # What was put in place on purpose; empty for nothing, so that libvirt makes it anew.
    Column("sha256", text(64), nullable=False),
    # The newest generation at that time, 0 for none: once there is a newer one, this says nothing any more.
    Column("generation", whole(), nullable=False),
)

pins = Table(
    "pins",
    metadata,
    Column("version_id", text(64), ForeignKey("state_versions.id"), primary_key=True),
    Column(
        "reason", text(16), CheckConstraint("reason in ('point', 'snapshot', 'pin')", name="reason"), primary_key=True
    ),
    # The id of a point, of a snapshot, or of a pin in the repository.
    Column("holder", text(64), primary_key=True),
    Index(None, "reason", "holder"),
)

# The pins of the repository: what keeps versions that no point names. A snapshot has one as well, of which the columns
# that are named for it tell what stands in ``snapshots``, until who signed it is trusted.
pin_objects = Table(
    "pin_objects",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), nullable=False, index=True),
    Column("vm_name", text(), nullable=False),
    Column("host", text(), nullable=False),
    Column("created", text(32), nullable=False),
    Column("why", text(32), nullable=False),
    Column("until", text(32)),
    # As that of a point.
    Column("signed_by", text(32)),
    Column("snapshot_id", text(32), index=True),
    Column("snapshot_name", text()),
    Column("snapshot_time", whole()),
    Column("snapshot_point", text(32)),
    # JSON: usage and UUID of the secrets in its envelope.
    Column("secrets", text(), nullable=False, server_default="[]"),
)

# Pins of the repository that were read here and are of VMs which this installation has nothing to do with.
passed_pins = Table(
    "passed_pins",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("vm_uuid", text(36), nullable=False),
)

# Where state files lie, as they were found last.
state_files = Table(
    "state_files",
    metadata,
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), primary_key=True),
    Column("host_uuid", text(36), ForeignKey("hosts.uuid"), primary_key=True),
    Column("kind", text(16), CheckConstraint("kind in ('tpm', 'nvram')", name="kind"), primary_key=True),
    Column("path", text(), nullable=False),
    # Null: no file was there.
    Column("sha256", text(64)),
    Column("size_bytes", whole()),
    Column("standing", text(16), nullable=False),
    # When it was seen for the first time as it is, and for the last time.
    Column("since", text(32), nullable=False),
    Column("seen_at", text(32), nullable=False),
)

# Which host may run a VM and write its state (vmkeep.custody.leases).
leases = Table(
    "leases",
    metadata,
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), primary_key=True),
    Column("host_uuid", text(36), ForeignKey("hosts.uuid"), nullable=False),
    # Rises with each holding that begins, and what was read under an earlier one never counts.
    Column("epoch", whole(), CheckConstraint("epoch > 0", name="epoch"), nullable=False),
    # Rises with each change.
    Column("serial", whole(), CheckConstraint("serial > 0", name="serial"), nullable=False),
    Column("state", text(16), CheckConstraint("state in ('held', 'free', 'fenced')", name="state"), nullable=False),
    # When another host may take it, by the clock of the database.
    Column("until", text(32), nullable=False),
    Column("who", text(), nullable=False),
    Column("why", text(), nullable=False),
)

# What kept a state file from being captured, until one of its kind was.
state_alerts = Table(
    "state_alerts",
    metadata,
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), primary_key=True),
    Column("code", text(64), primary_key=True),
    Column("message", text(), nullable=False),
    Column("first_at", text(32), nullable=False),
    Column("last_at", text(32), nullable=False),
    Column("times", whole(), nullable=False),
)

# What must still be deleted on a host (vmkeep.custody.tombstones). No column is a foreign key: the VM is gone, perhaps.
tombstones = Table(
    "tombstones",
    metadata,
    Column("id", text(32), primary_key=True),
    # The operation that could not delete it.
    Column("origin", text(64), nullable=False, index=True),
    Column("kind", text(16), CheckConstraint("kind in ('state', 'secret')", name="kind"), nullable=False),
    Column("host_uuid", text(36), nullable=False),
    Column("host_name", text(), nullable=False),
    Column("vm_uuid", text(36), nullable=False, index=True),
    Column("vm_name", text(), nullable=False),
    Column("place", text(), nullable=False),
    Column("since", text(32), nullable=False),
    # JSON: each with path, hash, size, version and what kept it.
    Column("files", text(), nullable=False),
    Column("protection", text(16), nullable=False),
    Column("secret", text(36), nullable=False),
    Column(
        "state",
        text(16),
        CheckConstraint("state in ('open', 'retried', 'settled', 'waived')", name="state"),
        nullable=False,
    ),
    Column("tries", whole(), nullable=False),
    Column("last_at", text(32)),
    Column("last_error", text(), nullable=False),
    Column("ended", text(32)),
    Column("ending", text(16), nullable=False),
    Column("who", text(), nullable=False),
    Column("why", text(), nullable=False),
)

# Proofs of deletion, and later facts about them, which ``of`` names.
deletions = Table(
    "deletions",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("of", text(32), index=True),
    Column("event", text(16), nullable=False),
    Column("vm_uuid", text(36), nullable=False, index=True),
    Column("created", text(32), nullable=False),
    Column("kept_until", text(32)),
    # The record as JSON, without its signature.
    Column("document", text(), nullable=False),
    # Whether the repository has it: until then it is written by the next command that can.
    Column("stored", Boolean, nullable=False),
    # As that of a point.
    Column("signed_by", text(32)),
)

# What is kept beside libvirt's record of a snapshot that was made here: the state files of its instant (as pins), and
# the point that the VM descended from then.
snapshots = Table(
    "snapshots",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("vm_uuid", text(36), ForeignKey("vms.uuid"), nullable=False),
    Column("name", text(), nullable=False),
    Column("creation_time", whole(), nullable=False),
    # Not a foreign key: the point may be deleted while the snapshot stays.
    Column("current_point", text(32)),
    Column("created", text(32), nullable=False),
    # Its order number, among those of the VM's points; 0 for one that was made by an older release.
    Column("sequence", whole(), nullable=False, server_default="0"),
    UniqueConstraint("vm_uuid", "name"),
)

# The keys of installations that sign points, pinned as they were met first.
host_keys = Table(
    "host_keys",
    metadata,
    Column("fingerprint", text(32), primary_key=True),
    Column("key", text(64), nullable=False),
    Column("installation", text(32), nullable=False, index=True),
    Column("host", text(), nullable=False),
    Column("seen_at", text(32), nullable=False),
    Column(
        "trust",
        text(16),
        CheckConstraint("trust in ('own', 'trusted', 'unknown', 'distrusted')", name="trust"),
        nullable=False,
    ),
    # Of a key of one's own: the machine that it is used on, as points say it.
    Column("machine", text(32), nullable=False, server_default=""),
    # Of a key of one's own: the host on which a copy of this home was seen at work; null for none.
    Column("copied_to", text()),
)

# Who a host of a fleet is (vmkeep.identity.hosts). A row is moved by compare-and-set of its revision.
host_identities = Table(
    "host_identities",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("name", text(64), nullable=False),
    # The name again, null once it is free for another host.
    Column("taken_name", text(64), unique=True),
    Column(
        "status",
        text(16),
        CheckConstraint("status in ('invited', 'enrolled', 'revoked', 'forgotten')", name="status"),
        nullable=False,
    ),
    Column("revision", whole(), CheckConstraint("revision > 0", name="revision"), nullable=False),
    Column("changed_at", text(32), nullable=False),
    # SHA-256 of the secret of its token, empty for none; until when; and the certificate it was used for.
    Column("invite", text(64), nullable=False, index=True),
    Column("invite_until", text(32), nullable=False),
    Column("invite_serial", text(40), nullable=False),
)

# Certificates of hosts: the one in use, the one that follows it, and former ones as long as their term goes on.
host_certificates = Table(
    "host_certificates",
    metadata,
    Column("serial", text(40), primary_key=True),
    Column("identity_id", text(32), ForeignKey("host_identities.id"), nullable=False, index=True),
    # In the order in which they were made.
    Column("place", whole(), nullable=False),
    Column(
        "state",
        text(16),
        CheckConstraint("state in ('issued', 'current', 'superseded', 'revoked')", name="state"),
        nullable=False,
    ),
    Column("key", text(64), nullable=False),
    Column("begins", text(32), nullable=False),
    Column("ends", text(32), nullable=False),
    Column("authority", text(64), nullable=False),
    Column("pem", text(), nullable=False),
)

# What was done about a host, one for each revision of its identity.
host_events = Table(
    "host_events",
    metadata,
    Column("identity_id", text(32), ForeignKey("host_identities.id"), primary_key=True),
    Column("revision", whole(), primary_key=True),
    Column("at", text(32), nullable=False),
    Column("what", text(16), nullable=False),
    Column("who", text(), nullable=False),
    Column("serial", text(40), nullable=False),
)

# Removals of the repository: what hides points until they are gone. One that nobody trusted has signed hides none.
point_removals = Table(
    "point_removals",
    metadata,
    Column("point_id", text(32), primary_key=True),
    # Null for a point that nobody could read.
    Column("vm_uuid", text(36), index=True),
    Column("vm_name", text()),
    Column("taken", text(32)),
    Column("host", text(), nullable=False),
    Column("created", text(32), nullable=False),
    # When the store got it: the grace is counted from then, by the store's clock.
    Column("stored_at", text(32), nullable=False),
    Column("grace_seconds", whole(), nullable=False),
    Column("why", text(), nullable=False),
    # As that of a point.
    Column("signed_by", text(32)),
)

# Protections of the repository: what keeps points from being removed.
point_protections = Table(
    "point_protections",
    metadata,
    Column("point_id", text(32), primary_key=True),
    Column("stored_at", text(32), nullable=False),
    Column("host", text(), nullable=False),
    Column("created", text(32), nullable=False),
    # Null: for good.
    Column("until", text(32)),
    Column("why", text(), nullable=False),
    Column("signed_by", text(32)),
)

# Points of which something was found to be damaged or lost, until they are proved sound.
harmed_points = Table(
    "harmed_points",
    metadata,
    Column("point_id", text(32), primary_key=True),
    Column("found_at", text(32), nullable=False),
)

# Which points are kept: by the name of what they are of ("all", "vm:UUID", "label:NAME" or "label:NAME=VALUE").
policies = Table(
    "policies",
    metadata,
    Column("subject", text(), primary_key=True),
    # As people write it: "last=3, daily=7".
    Column("keep", text(), nullable=False),
    Column("within_seconds", whole(), nullable=False),
    Column("zone", text(), nullable=False),
    Column("grace_seconds", whole(), nullable=False),
    Column("changed_at", text(32), nullable=False),
)

# Points of the repository that were read here and are of VMs which this installation has nothing to do with.
passed_points = Table(
    "passed_points",
    metadata,
    Column("id", text(32), primary_key=True),
    Column("vm_uuid", text(36), nullable=False),
    Column("vm_name", text(), nullable=False),
)

operations = Table(
    "operations",
    metadata,
    Column("id", text(64), primary_key=True),
    Column("kind", text(32), nullable=False),
    Column("vm", text()),
    Column("owner", text(64), nullable=False),
    Column(
        "state",
        text(16),
        CheckConstraint("state in ('queued', 'running', 'undoing', 'needs-operator', 'done', 'failed')", name="state"),
        nullable=False,
    ),
    Column("started", text(32), nullable=False),
    Column("updated", text(32), nullable=False),
    Column("finished", text(32)),
    Column("stage", text(), nullable=False),
    Column("done_bytes", whole(), nullable=False),
    Column("total_bytes", whole(), nullable=False),
    Column("cancel", Boolean, nullable=False),
    Column("error", text()),
    Column("request", text(), nullable=False),
    Index(None, "state", "owner"),
)
