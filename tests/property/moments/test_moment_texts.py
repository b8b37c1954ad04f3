"""Any moment survives its text, and any text is a moment or a MomentError."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from vmkeep.moments import (
    Backup,
    BackupDisk,
    BackupServer,
    BundledMoment,
    BundleError,
    Checkpoint,
    CheckpointDisk,
    DomainDisk,
    MomentBundle,
    MomentError,
    MomentKind,
    Snapshot,
    SnapshotDisk,
    SnapshotLocation,
    SnapshotMemory,
    align_snapshot,
    domain_disks,
    format_backup,
    format_bundle,
    format_checkpoint,
    format_snapshot,
    parse_backup,
    parse_bundle,
    parse_checkpoint,
    parse_snapshot,
)

# A carriage return is written as it is by libvirt, and read back as a line feed.
written = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"), max_size=9)
names = st.from_regex(r"[a-zA-Z0-9_\-][a-zA-Z0-9_\-.]{0,8}", fullmatch=True)
targets = st.from_regex(r"(fd|hd|sd|vd|xvd|ubd)[a-z0-9_]{1,3}", fullmatch=True)
paths = written.map(lambda text: f"/p{text}".replace("\u2028", "").replace("\u2029", ""))
domains = st.builds(
    lambda name, text: (
        f"<domain type='test'>\n  <name>{name}</name>\n"
        f'  <metadata>\n    <m k="{name}">\n{text}</m>\n  </metadata>\n</domain>\n'
    ),
    names,
    st.sampled_from(["a", "a\nb", "  a  ", "&amp;"]),
)
checkpoint_disks = st.one_of(
    st.builds(CheckpointDisk, name=st.one_of(targets, paths), type=st.just("bitmap"), bitmap=st.none() | written),
    st.builds(CheckpointDisk, name=targets, type=st.just("no")),
)
checkpoints = st.builds(
    Checkpoint,
    name=names,
    description=st.none() | written.filter(bool),
    parent_name=st.none() | names,
    creation_time=st.integers(1, (1 << 63) - 1),
    domain=st.none() | domains,
    disks=st.lists(checkpoint_disks, max_size=3).map(tuple),
)
servers = st.one_of(
    st.builds(BackupServer, transport=st.just("unix"), socket=paths, tls=st.none() | st.booleans()),
    st.builds(BackupServer, name=st.just("::1"), port=st.none() | st.integers(0, 65535)),
)
pull_disks = st.one_of(
    st.builds(
        BackupDisk,
        name=targets,
        mode=st.none() | st.just("incremental"),
        incremental=st.none() | written,
        export_name=st.none() | written,
        export_bitmap=st.none() | written,
        store_type=st.just("file"),
        store=paths,
        store_format=st.just("qcow2"),
    ),
    st.builds(BackupDisk, name=targets, export_name=st.none() | written, export_bitmap=st.none() | written),
    st.builds(BackupDisk, name=targets, backup=st.just(False)),
)
backups = st.builds(
    Backup,
    mode=st.just("pull"),
    incremental=st.none() | written.filter(bool),
    server=servers,
    disks=st.lists(pull_disks, max_size=3).map(tuple),
)
locations = st.sampled_from(["no", "internal", "external", "manual"])
contents = st.sampled_from(
    ["", "<seclabel model='dac' relabel='no'/>", "<encryption format='luks'>\n  <x/>\n</encryption>"]
)
snapshot_disks = st.one_of(
    st.builds(SnapshotDisk, name=st.one_of(targets, written), location=locations),
    st.builds(
        SnapshotDisk,
        name=targets,
        location=locations,
        source=paths,
        source_type=st.sampled_from(["file", "block"]),
        format=st.none() | st.sampled_from(["qcow2", "raw"]),
        source_content=contents,
        metadata_cache_bytes=st.integers(0, (1 << 64) - 1),
        delete_in_progress=st.booleans(),
    ),
    st.builds(
        SnapshotDisk,
        name=targets,
        location=locations,
        source=written.filter(bool),
        source_type=st.just("network"),
        source_attributes=st.just((("protocol", "nbd"), ("tls", "yes"))),
        source_content=st.just("<host name='h'/>"),
    ),
).filter(lambda disk: bool(disk.name))
no_memory = SnapshotMemory(SnapshotLocation.NO)
memories = st.one_of(
    st.builds(SnapshotMemory, location=st.sampled_from(["no", "internal"])),
    st.builds(SnapshotMemory, location=st.just("external"), file=paths),
)
cookies = st.sampled_from(["<cookie/>\n", "<cookie>\n  <a b='1'/>\n</cookie>\n"])
disk_lists = st.lists(snapshot_disks, max_size=3).map(tuple)
common = {
    "name": written.filter(bool),
    "description": st.none() | written.filter(bool),
    "parent_name": st.none() | written.filter(bool),
    "creation_time": st.integers(-(1 << 63), (1 << 63) - 1).filter(bool),
    "domain": st.none() | domains,
    "inactive_domain": st.none() | domains,
    "disks": disk_lists,
    "revert_disks": disk_lists,
}
snapshots = st.one_of(
    st.builds(
        Snapshot,
        **common,
        state=st.sampled_from(["running", "paused", "crashed", "pmsuspended"]),
        memory=memories,
        cookie=st.none() | cookies,
        active=st.booleans(),
    ),
    st.builds(Snapshot, **common, state=st.sampled_from(["shutoff", "disk-snapshot"]), memory=st.just(no_memory)),
)


DAMAGE = ["", "<", ">", "'", "&", "<!--", "<name>", "</disks>", "\x00", "ä", "checkpoint='no'"]


@given(checkpoints)
def test_checkpoint_survives_its_text(checkpoint: Checkpoint) -> None:
    text = format_checkpoint(checkpoint, secure=True)
    again = parse_checkpoint(text, redefine=True)
    assert again == checkpoint
    assert format_checkpoint(again, secure=True) == text


@given(snapshots)
def test_snapshot_survives_its_text(snapshot: Snapshot) -> None:
    text = format_snapshot(snapshot, internal=True, secure=True)
    again = parse_snapshot(text, redefine=True, internal=True)
    assert again == snapshot
    assert format_snapshot(again, internal=True, secure=True) == text


@given(backups)
def test_backup_survives_its_text(backup: Backup) -> None:
    assert parse_backup(format_backup(backup)) == backup


@given(st.text(max_size=40), st.booleans())
def test_any_text_is_a_moment_or_refused(text: str, redefine: bool) -> None:
    refused_or_read(text, redefine)


@given(checkpoints, backups, snapshots, st.data())
def test_any_damage_is_a_moment_or_refused(
    checkpoint: Checkpoint, backup: Backup, snapshot: Snapshot, data: st.DataObject
) -> None:
    snapshot_text = format_snapshot(snapshot, internal=True)
    for text in (format_checkpoint(checkpoint), format_backup(backup), snapshot_text):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 20)))
        put = data.draw(st.sampled_from(DAMAGE))
        refused_or_read(text[:start] + put + text[end:], True)


def refused_or_read(text: str, redefine: bool) -> None:
    error: MomentError | None = None
    snapshot = partial(parse_snapshot, redefine=redefine)
    readers = (snapshot, partial(snapshot, internal=True), partial(snapshot, validate=True))
    for read in (partial(parse_checkpoint, redefine=redefine), parse_backup, domain_disks, *readers):
        try:
            result = read(text)
            if isinstance(result, Snapshot):
                align_snapshot(result, (DomainDisk("vda", "/a"),), default="external")
                rewritten_is_read(result)
        except MomentError as refusal:
            error = refusal
        assert error is None or (error.message and error.code)


def rewritten_is_read(snapshot: Snapshot) -> None:
    """Whatever was read can be written, and what was written is read as the same."""
    internal = format_snapshot(snapshot, internal=True, secure=True)
    redefined = snapshot.state != "nostate"
    again = parse_snapshot(internal, redefine=redefined, internal=True)
    assert format_snapshot(again, internal=True, secure=True) == internal


bundled_checkpoints = st.lists(checkpoints, max_size=3, unique_by=lambda checkpoint: checkpoint.name).map(
    lambda listed: tuple(BundledMoment(moment, format_checkpoint(moment, secure=True)) for moment in listed)
)
bundles = st.builds(
    MomentBundle,
    kind=st.just(MomentKind.CHECKPOINT),
    vm_name=written,
    vm_uuid=st.uuids().map(str),
    moments=bundled_checkpoints,
    secure=st.booleans(),
)


@given(bundles)
def test_a_file_of_moments_holds_what_was_written(bundle: MomentBundle) -> None:
    read = parse_bundle(format_bundle(bundle))
    assert [moment.xml for moment in read.moments] == [moment.xml for moment in bundle.moments]
    assert [moment.name for moment in read.moments] == [moment.name for moment in bundle.moments]
    assert (read.vm_name, read.vm_uuid, read.secure) == (bundle.vm_name, bundle.vm_uuid, bundle.secure)


@given(bundles, st.integers(0), st.integers(0, 9), st.text(max_size=5))
def test_a_damaged_file_of_moments_is_read_or_refused(bundle: MomentBundle, at: int, gone: int, put: str) -> None:
    text = format_bundle(bundle)
    place = at % len(text)
    try:
        parse_bundle(text[:place] + put + text[place + gone :])
    except BundleError as error:
        assert str(error)  # noqa: PT017  it may also be read
