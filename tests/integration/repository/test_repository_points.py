"""Points: what is written comes back, shared blocks are stored once, and nothing exists before its commit."""

from __future__ import annotations

import os
import random
import sqlite3
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tests.integration.repository.samples import (
    BLOCK,
    SIZE,
    Sample,
    image,
    make_sample,
    opener,
    read_whole,
    record_of,
    sample_key,
    seeded,
    write_disk,
)
from vmkeep.errors import (
    InvalidRequest,
    KeyMissing,
    NoSpace,
    ObjectDamaged,
    ObjectMissing,
    PointNotFound,
    RepositoryForeign,
    RepositoryNotFound,
    StateTorn,
    StoreError,
    TargetExists,
    WrongKey,
)
from vmkeep.keys import KeyFile, KeyMaterial
from vmkeep.repository import BlockRef, PointRecord, PointWriter, Repository, StoredDisk
from vmkeep.repository.layout import Buffer
from vmkeep.repository.store import ObjectStore


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path)


def begin(repository: Repository, tmp_path: Path, **options: float | str) -> PointWriter:
    return repository.begin(purpose="test", host="here", cache=tmp_path / "cache", **options)  # type: ignore[arg-type]  # options are the optional ones


def write_point(repository: Repository, tmp_path: Path, blocks: dict[int, bytes | None]) -> tuple[PointRecord, int]:
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, blocks, size_bytes=SIZE)
        record = writer.commit(record_of([disk]))
        return record, writer.bytes_stored


def test_points_come_back_as_written(sample: Sample) -> None:
    repository = sample.reopen()
    assert {point.id: point for point in repository.points()} == {point.id: point for point in sample.points}
    for point in sample.points:
        for disk, truth in zip(point.disks, sample.images[point.id], strict=True):
            assert read_whole(repository, disk.stored) == truth


def test_unknown_fields_of_a_later_minor_version_survive(sample: Sample) -> None:
    point = sample.repository.point(sample.points[1].id)
    assert point.extra == {"note": {"kept": True}}
    assert point.as_json()["note"] == {"kept": True}


def test_default_block_size_with_real_compression(tmp_path: Path) -> None:
    source = seeded(7)
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    size = 100 * 65536 + 5
    text = b"words that repeat, " * 5000
    blocks: dict[int, bytes | None] = {0: text[:65536], 3: source(65536), 99: b"\1" * 65536, 100: b"12345"}
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, blocks, size_bytes=size, block_bytes=65536)
        point = writer.commit(record_of([disk]))
    found = dict(repository.read_disk(point.disks[0].stored, workers=3))
    assert found == {block * 65536: data for block, data in blocks.items()}
    assert writer.bytes_stored < 70000


def test_same_content_is_stored_once_also_by_another_writer_and_after_the_cache_is_lost(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    source = seeded(3)
    blocks: dict[int, bytes | None] = {block: source(BLOCK) for block in range(40)}
    _, first = write_point(repository, tmp_path, blocks)
    assert first > 40 * BLOCK
    _, second = write_point(repository, tmp_path, blocks)
    assert second == 0
    for damage in (None, b"no database" * 1000):
        for path in list((tmp_path / "cache").rglob("*.sqlite*")):
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
        point, third = write_point(repository, tmp_path, blocks)
        assert third == 0
        assert read_whole(repository, point.disks[0].stored) == image(blocks, SIZE)


def test_same_content_within_one_point_is_stored_once(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    data = seeded(1)(BLOCK)
    _, stored = write_point(repository, tmp_path, dict.fromkeys(range(70), data))
    assert stored < 2 * BLOCK + 8000


def test_index_of_known_blocks_from_another_boot_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    blocks: dict[int, bytes | None] = {0: seeded(1)(BLOCK)}
    write_point(repository, tmp_path, blocks)
    (cache,) = (tmp_path / "cache").rglob("*.sqlite")
    with closing(sqlite3.connect(cache)) as database, database:
        database.execute("CREATE TABLE mark (x)")
    database.close()
    monkeypatch.setattr("vmkeep.repository.known._boot", lambda: "another")
    _, stored = write_point(repository, tmp_path, blocks)
    with closing(sqlite3.connect(cache)) as database, database:
        assert ("mark",) not in database.execute("SELECT name FROM sqlite_master").fetchall()
        assert database.execute("SELECT id FROM boot").fetchall() == [("another",)]
    database.close()
    assert stored == 0


def test_point_without_commit_leaves_nothing_to_see(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    with begin(repository, tmp_path) as writer:
        write_disk(writer, {0: b"x" * BLOCK}, size_bytes=SIZE)

    def die() -> None:
        with begin(repository, tmp_path) as writer:
            write_disk(writer, {0: b"y" * BLOCK}, size_bytes=SIZE)
            raise RuntimeError("job died")

    with pytest.raises(RuntimeError, match="job died"):
        die()
    assert repository.point_ids() == []
    assert list((tmp_path / "r" / "intents").iterdir()) == []
    assert repository.verify_all().sound


def test_writer_dropped_without_a_word_leaves_no_point_and_the_next_one_works(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    blocks: dict[int, bytes | None] = {0: seeded(1)(BLOCK)}
    writer = begin(repository, tmp_path)
    write_disk(writer, blocks, size_bytes=SIZE)
    assert repository.point_ids() == []
    point, _ = write_point(repository, tmp_path, blocks)
    assert repository.point_ids() == [point.id]
    assert repository.verify_all().sound
    writer.abort()


def test_unfinished_disk_second_commit_and_base_without_parent_are_refused(sample: Sample, tmp_path: Path) -> None:
    repository, base = sample.repository, sample.points[0].disks[0].stored
    with begin(repository, tmp_path) as writer:
        writer.disk(size_bytes=SIZE)
        with pytest.raises(InvalidRequest, match="not finished"):
            writer.commit(record_of([]))
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, {}, size_bytes=SIZE, base=base)
        with pytest.raises(InvalidRequest, match="parent"):
            writer.commit(record_of([disk]))
        with pytest.raises(InvalidRequest, match="another size"):
            writer.disk(size_bytes=SIZE + BLOCK, block_bytes=BLOCK, base=base)
        writer.commit(record_of([disk], parent=sample.points[0]))
        with pytest.raises(InvalidRequest, match="already"):
            writer.commit(record_of([disk], parent=sample.points[0]))


def test_blocks_out_of_order_or_of_a_wrong_length_are_refused(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    with begin(repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=SIZE, block_bytes=BLOCK)
        short, whole = disk.seal(b"s" * 1000), disk.seal(b"w" * BLOCK)
        with pytest.raises(InvalidRequest, match="bytes"):
            disk.seal(b"x" * 999)
        with pytest.raises(InvalidRequest, match="length"):
            disk.record(0, short)
        disk.record(3, whole)
        for block in (3, 2, 71):
            with pytest.raises(InvalidRequest, match="order"):
                disk.record(block, whole)
        with pytest.raises(InvalidRequest, match="length"):
            disk.record(70, whole)
        disk.record(70, short)
        disk.finish()
        with pytest.raises(InvalidRequest, match="finished"):
            disk.record_zero(70, 1)


def test_run_may_come_in_pieces_of_whole_blocks_and_in_no_others(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    with begin(repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=3 * BLOCK + 1000, block_bytes=BLOCK)
        first, second, zero, short = disk.seal_run(b"1" * BLOCK, b"2" * BLOCK + bytes(BLOCK), b"3" * 1000)
        assert (first, second) == tuple(disk.seal_run(b"1" * BLOCK + b"2" * BLOCK))
        assert zero is None
        assert short == disk.seal(b"3" * 1000)
        for pieces in ((b"1" * 1000, b"2" * BLOCK), (b"1" * BLOCK, b"2" * 999), ()):
            with pytest.raises(InvalidRequest, match="does not fit"):
                disk.seal_run(*pieces)


def test_huge_sparse_disk_takes_no_time_and_few_nodes(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    blocks = 2 * 1024**4 // 65536
    with begin(repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=blocks * 65536)
        data = disk.seal(b"d" * 65536)
        disk.record_zero(0, 17_000_003)
        disk.record(17_000_003, data)
        disk.record_zero(17_000_004, blocks - 17_000_004)
        first = disk.finish()
        one = writer.commit(record_of([first]))
    assert [block for block, _ in repository.blocks(first)] == [17_000_003]
    with begin(repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=blocks * 65536, base=first)
        disk.record_zero(0, blocks)
        assert disk.finish().root is None
        writer.commit(record_of([disk.finish()], parent=one))


def test_many_threads_seal_and_order_is_kept(tmp_path: Path) -> None:
    repository = Repository.create(str(tmp_path / "r"), sample_key())
    count = 2000
    contents = [block.to_bytes(4, "little") * (BLOCK // 4) for block in range(1, count + 1)]
    with begin(repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=count * BLOCK, block_bytes=BLOCK)
        refs: list[BlockRef | None] = [None] * count

        def work(first: int) -> None:
            for block in range(first, count, 4):
                refs[block] = disk.seal(memoryview(contents[block]))

        threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for block, ref in enumerate(refs):
            disk.record(block, ref)
        point = writer.commit(record_of([disk.finish()]))
    assert read_whole(repository, point.disks[0].stored) == b"".join(contents)


def test_point_gets_the_id_that_was_chosen_and_never_another_points(sample: Sample, tmp_path: Path) -> None:
    chosen = "0123456789abcdef" * 2
    with begin(sample.repository, tmp_path, point_id=chosen) as writer:
        assert writer.commit(record_of([])).id == chosen
    with pytest.raises(InvalidRequest):
        begin(sample.repository, tmp_path, point_id="../x")
    before = sample.repository.point(chosen)
    with begin(sample.repository, tmp_path, point_id=chosen) as writer, pytest.raises(TargetExists):
        writer.commit(record_of([], note=2))
    assert sample.repository.point(chosen) == before


# -- states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "size"), [("tpm", 0), ("tpm", 1024 * 1024 + 1), ("nvram", 8 * 1024 * 1024 + 1)])
def test_state_of_impossible_size_is_refused_never_cut(sample: Sample, kind: str, size: int) -> None:
    with pytest.raises(StateTorn):
        sample.repository.put_state(
            bytes(size), vm_uuid="vm", kind=kind, generation=1, file="f", owner="tss", group="tss", mode=0o600
        )


def test_state_version_of_an_unknown_id_is_missing(sample: Sample) -> None:
    with pytest.raises(ObjectMissing):
        sample.repository.state("ab" * 16)


# -- opening -----------------------------------------------------------------------------------------------------


def test_place_that_is_no_repository_is_told_apart(sample: Sample, tmp_path: Path) -> None:
    keys = opener(sample.key)
    with pytest.raises(RepositoryNotFound):
        Repository.open(str(tmp_path / "absent"), keys)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryNotFound):
        Repository.open(str(tmp_path / "empty"), keys)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "photo.jpg").write_text("x")
    with pytest.raises(RepositoryForeign):
        Repository.open(str(foreign), keys)
    foreign.chmod(0o755)
    with pytest.raises(RepositoryForeign):
        Repository.create(str(foreign), sample.key)
    assert stat.S_IMODE(foreign.stat().st_mode) == 0o755
    assert [path.name for path in foreign.iterdir()] == ["photo.jpg"]
    with pytest.raises(TargetExists):
        Repository.create(str(sample.location), sample.key)
    with pytest.raises(InvalidRequest):
        Repository.open("s3://bucket", keys)


def test_newer_major_version_is_refused(sample: Sample) -> None:
    path = sample.location / "format"
    path.write_bytes(path.read_bytes().replace(b'"major":1', b'"major":2'))
    with pytest.raises(RepositoryForeign, match="newer"):
        sample.reopen()


def test_wrong_or_absent_key_does_not_open(sample: Sample, tmp_path: Path) -> None:
    other = KeyFile.generate(tmp_path / "keys")
    with pytest.raises(WrongKey):
        Repository.open(str(sample.location), opener(other))

    def none(recipients: object) -> KeyMaterial:
        assert recipients == [sample.key.key_id]
        raise KeyMissing("no key")

    with pytest.raises(KeyMissing):
        Repository.open(str(sample.location), none)


def test_rotation_keeps_old_points_readable_and_blocks_shared(sample: Sample, tmp_path: Path) -> None:
    repository = sample.repository
    before = repository.keyring.default.active
    repository.add_data_key()
    again = sample.reopen()
    assert again.keyring.generation == 2
    assert again.keyring.default.active != before
    content = dict(again.read_disk(sample.points[0].disks[0].stored))
    point, _ = write_point(again, tmp_path, {0: content[0], 2: b"new" + bytes(BLOCK - 3)})
    assert [ref.pack for block, ref in again.blocks(point.disks[0].stored) if block == 0] == [
        ref.pack for block, ref in again.blocks(sample.points[0].disks[0].stored) if block == 0
    ]
    assert again.verify_all().sound


def test_files_and_directories_are_for_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        sample = make_sample(tmp_path)
    finally:
        os.umask(old)
    for path in [sample.location, *sample.location.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# -- removing and pruning ----------------------------------------------------------------------------------------


def test_deleted_point_is_gone_and_the_other_is_whole(sample: Sample) -> None:
    one, two = sample.points
    sample.repository.delete_point(one.id)
    for call in (sample.repository.point, sample.repository.delete_point, sample.repository.verify_point):
        with pytest.raises(PointNotFound):
            call(one.id)
    assert read_whole(sample.repository, two.disks[0].stored) == sample.images[two.id][0]
    assert sample.repository.verify_all().sound


def data_packs(repository: Repository, disk: StoredDisk) -> set[bytes]:
    return {ref.pack for _, ref in repository.blocks(disk)}


def test_condemned_pack_is_not_used_again_and_a_full_point_heals(sample: Sample, tmp_path: Path) -> None:
    repository, one = sample.repository, sample.points[0]
    blocks = {start // BLOCK: data for start, data in repository.read_disk(one.disks[0].stored)}
    packs = data_packs(repository, one.disks[0].stored)
    repository.condemn(sorted(packs), reason="damaged")
    point, stored = write_point(repository, tmp_path, dict(blocks))
    assert stored > 3 * BLOCK
    assert not data_packs(repository, point.disks[0].stored) & packs


@pytest.mark.parametrize("how", ["condemned", "deleted"])
def test_pack_pruned_while_a_point_reuses_it_fails_the_commit(sample: Sample, tmp_path: Path, how: str) -> None:
    repository, one = sample.repository, sample.points[0]
    blocks = {start // BLOCK: data for start, data in repository.read_disk(one.disks[0].stored)}
    packs = data_packs(repository, one.disks[0].stored)
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, dict(blocks), size_bytes=SIZE)
        for pack in packs:
            if how == "condemned":
                repository.condemn([pack], reason="prune")
            else:
                (sample.location / "packs" / pack.hex()[:2] / pack.hex()).unlink()
        with pytest.raises(StoreError, match="pruned"):
            writer.commit(record_of([disk]))
    assert len(repository.point_ids()) == 2
    again, stored = write_point(repository, tmp_path, dict(blocks))
    assert stored > 3 * BLOCK
    assert repository.verify_point(again.id).sound


def test_base_point_deleted_while_the_next_is_written_fails_the_commit(sample: Sample, tmp_path: Path) -> None:
    repository, one = sample.repository, sample.points[0]
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, {0: b"z" * BLOCK}, size_bytes=SIZE, base=one.disks[0].stored)
        repository.delete_point(one.id)
        with pytest.raises(StoreError, match="base"):
            writer.commit(record_of([disk], parent=one))


def test_writer_whose_intent_lapsed_checks_its_own_packs_too(sample: Sample, tmp_path: Path) -> None:
    repository = sample.repository
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, {0: seeded(9)(BLOCK)}, size_bytes=SIZE)
        writer._placer.finish()  # the packs are stored, and a prune takes them
        (intent,) = (sample.location / "intents").iterdir()
        intent.unlink()
        own = data_packs(repository, disk)
        repository.condemn(sorted(own), reason="prune")
        with pytest.raises(StoreError, match="pruned"):
            writer.commit(record_of([disk]))


def test_writer_that_slept_between_the_last_check_and_the_commit_takes_its_point_back(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = sample.repository
    with begin(repository, tmp_path) as writer:
        disk = write_disk(writer, {0: seeded(9)(BLOCK)}, size_bytes=SIZE)
        writer._placer.finish()
        check = writer._check_not_pruned

        def sleep_after(record: PointRecord, *, in_force: bool) -> None:
            check(record, in_force=in_force)
            (intent,) = (sample.location / "intents").iterdir()
            os.utime(intent, (0, 0))
            for pack in data_packs(repository, disk):
                (sample.location / "packs" / pack.hex()[:2] / pack.hex()).unlink(missing_ok=True)

        monkeypatch.setattr(writer, "_check_not_pruned", sleep_after)
        with pytest.raises(StoreError, match="pruned"):
            writer.commit(record_of([disk]))
    assert len(repository.point_ids()) == 2


def test_intent_is_renewed_by_the_store_time_and_deleted_at_the_end(sample: Sample, tmp_path: Path) -> None:
    with begin(sample.repository, tmp_path, lapse_seconds=0.4) as writer:
        (intent,) = (sample.location / "intents").iterdir()
        first = intent.stat().st_mtime_ns
        deadline = threading.Event()
        for _ in range(100):
            if intent.stat().st_mtime_ns > first:
                break
            deadline.wait(0.05)
        assert intent.stat().st_mtime_ns > first
        assert b'"purpose":"test"' in intent.read_bytes()
        writer.commit(record_of([]))
    assert not intent.exists()


# -- failures of the store ---------------------------------------------------------------------------------------


class FullStore(ObjectStore):
    """A store on a file system with room for a number of puts."""

    def __init__(self, room: int, location: Path) -> None:
        from obstore.store import LocalStore

        super().__init__(LocalStore(location), location=str(location), directory=location)
        self.room = room

    def put(
        self, name: str, content: Buffer | Sequence[Buffer], *, replace: bool = False, durable: bool = True
    ) -> None:
        self.room -= 1
        if self.room < 0:
            raise NoSpace("full", path=name)
        super().put(name, content, replace=replace, durable=durable)


@pytest.fixture
def full(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> Iterator[FullStore]:
    store = FullStore(1, sample.location)
    monkeypatch.setattr(sample.repository, "_store", store)
    return store  # type: ignore[return-value]  # pytest wants no generator here


def test_full_file_system_surfaces_everywhere_and_leaves_earlier_points_whole(
    sample: Sample, tmp_path: Path, full: FullStore
) -> None:
    # Room for the intent, then for ever one put more, until a commit succeeds.
    for room in range(1, 6):
        full.room = room
        source = seeded(100 + room)
        blocks: dict[int, bytes | None] = {block: source(BLOCK) for block in range(20)}
        try:
            write_point(sample.repository, tmp_path, blocks)
        except NoSpace:
            assert room < 5
            assert len(sample.repository.point_ids()) == 2
        else:
            break
    full.room = 100
    assert len(sample.repository.point_ids()) == 3
    assert sample.repository.verify_all().sound


def test_failed_upload_reaches_the_threads_that_seal_and_never_hangs(
    sample: Sample, tmp_path: Path, full: FullStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmkeep.repository.writer.DATA_PACK_BYTES", 10 * BLOCK)
    errors: list[BaseException] = []
    full.room = 3
    with begin(sample.repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=4000 * BLOCK, block_bytes=BLOCK)

        def work(seed: int) -> None:
            source = seeded(seed)
            try:
                for _ in range(1000):
                    disk.seal(source(BLOCK))
            except NoSpace as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(errors) == 4
        with pytest.raises(NoSpace):
            disk.finish()


def test_nonce_is_never_used_twice_under_a_key(sample: Sample) -> None:
    from vmkeep.repository.layout import FRAME_MAGIC, FrameHeader

    seen = set()
    for path in sample.objects():
        content = path.read_bytes()
        place = content.find(FRAME_MAGIC)
        while place >= 0:
            try:
                header = FrameHeader.parse(content[place:], str(path))
                assert (header.salt, header.counter) not in seen
                seen.add((header.salt, header.counter))
            except ObjectDamaged:
                pass  # the magic by chance, inside ciphertext
            place = content.find(FRAME_MAGIC, place + 1)
    assert len(seen) >= 20


def test_no_plain_text_of_a_guest_or_key_is_in_the_repository(sample: Sample) -> None:
    secrets = [sample_key().secret, b"demo", b"host.example", b"\x55" * 32, b"permall"]
    secrets += [data[:16] for images in sample.images.values() for data in [images[0]]]
    for path in sample.objects():
        content = path.read_bytes()
        assert not any(secret in content for secret in secrets), path
    assert "00010203" not in repr(sample_key())


def test_block_larger_than_a_pack_gets_one_of_its_own(sample: Sample, tmp_path: Path) -> None:
    size = 16 * 1024 * 1024
    content = random.Random(5).randbytes(size)
    with begin(sample.repository, tmp_path) as writer:
        disk = writer.disk(size_bytes=size, block_bytes=size)
        disk.record(0, disk.seal(content))
        stored = disk.finish()
        writer.commit(record_of([stored]))
    assert list(sample.repository.read_disk(stored)) == [(0, content)]
