"""A storage that fails for a while: nothing of it is called damaged, and nothing is marked that is sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.integration.repository.samples import Sample, make_sample
from vmkeep.errors import Interrupted, StoreError
from vmkeep.repository import Repository
from vmkeep.repository.layout import PACKS
from vmkeep.repository.readings import MOST_UNREAD_OBJECTS
from vmkeep.repository.store import ObjectStore

Change = Callable[[bytes], bytes]


class Flaky:
    """Makes reads of the objects below a prefix fail, or return something else, so many times each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prefix: str, times: int, change: Change | None = None) -> None:
        self.hits: dict[str, int] = {}
        real_get, real_ranges = ObjectStore.get, ObjectStore.ranges

        def counts(name: str) -> bool:
            if not name.startswith(prefix):
                return False
            self.hits[name] = self.hits.get(name, 0) + 1
            return self.hits[name] <= times

        def get(store: ObjectStore, name: str, **bounds: int) -> bytes:
            met, found = counts(name), real_get(store, name, **bounds)
            return self._given(name, found, change) if met else found

        def ranges(store: ObjectStore, name: str, wanted: Sequence[tuple[int, int]]) -> list[memoryview]:
            met, found = counts(name), real_ranges(store, name, wanted)
            return [memoryview(self._given(name, bytes(piece), change)) for piece in found] if met else found

        monkeypatch.setattr(ObjectStore, "get", get)
        monkeypatch.setattr(ObjectStore, "ranges", ranges)

    @staticmethod
    def _given(name: str, found: bytes, change: Change | None) -> bytes:
        if change is None:
            raise StoreError(f"the repository's storage failed at {name}: Input/output error (os error 5)", path=name)
        return change(found)


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:] if content else content


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path)


def _condemned(sample: Sample) -> list[str]:
    return [path.name for path in (sample.location / "condemned").glob("*")]


@pytest.mark.parametrize("prefix", ["packs/", "points/", "states/", "keyring/", "format"])
def test_what_cannot_be_read_is_unreadable_and_not_damaged(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    repository = sample.reopen()
    Flaky(monkeypatch, prefix, times=1_000_000)
    report = repository.verify_all()
    assert report.findings == ()
    assert report.damaged_packs == ()
    assert report.unreadable
    assert all(finding.object.startswith(prefix) for finding in report.unreadable)
    assert not report.sound
    assert {point for finding in report.unreadable for point in finding.harms} == {each.id for each in sample.points}
    for point in sample.points:
        if prefix not in ("keyring/", "format"):
            assert not repository.verify_point(point.id).sound


@pytest.mark.parametrize("prefix", ["packs/", "points/", "states/", "keyring/", "format"])
@pytest.mark.parametrize("share", [1.0, 0.999])
def test_what_is_right_when_it_is_read_again_is_told_and_not_damaged(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, prefix: str, share: float
) -> None:
    repository = sample.reopen()
    Flaky(monkeypatch, prefix, times=1, change=_flipped)
    report = repository.verify_all(sample=share)
    assert (report.findings, report.unreadable, report.damaged_packs) == ((), (), ())
    assert report.sound
    assert {finding.object for finding in report.unsteady} <= {
        str(path.relative_to(sample.location)) for path in sample.objects()
    } | {"keyring/"}
    assert report.unsteady


def test_what_is_wrong_twice_is_damaged(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = sample.reopen()
    Flaky(monkeypatch, "packs/", times=1_000_000, change=_flipped)
    report = repository.verify_all()
    assert len(report.damaged_packs) == report.packs
    assert report.unsteady == ()


def test_pass_in_which_much_is_unreadable_ends(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = sample.reopen()
    for _ in range(MOST_UNREAD_OBJECTS + 1):
        repository.put_state(
            b"state",
            vm_uuid=sample.points[0].vm_uuid,
            kind="tpm",
            generation=9,
            file="tpm2/tpm2-00.permall",
            owner="",
            group="",
            mode=0o600,
        )
    flaky = Flaky(monkeypatch, "states/", times=1_000_000)
    with pytest.raises(StoreError, match="could not be read, so the check was ended") as caught:
        repository.verify_all()
    assert "nothing was marked" in str(caught.value.hint)
    assert len(flaky.hits) == MOST_UNREAD_OBJECTS + 1


def test_pack_that_proves_sound_is_freed_and_one_of_another_reason_is_not(sample: Sample) -> None:
    repository = sample.reopen()
    packs = sorted(bytes.fromhex(path.name) for path in (sample.location / "packs").rglob("*") if path.is_file())
    repository.condemn(packs[:2])
    repository.condemn(packs[2:3], reason="prune")
    assert repository.verify_all(sample=0.999).pardoned_packs == (), "a sample proves no pack"
    report = repository.verify_all()
    assert set(packs[:2]) <= set(report.pardoned_packs)
    assert repository.pardon(report.pardoned_packs) == 2
    assert _condemned(sample) == [packs[2].hex()]


def test_pack_that_is_damaged_stays_condemned(sample: Sample) -> None:
    repository = sample.reopen()
    path = next(path for path in sorted((sample.location / "packs").rglob("*")) if path.is_file())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    pack = bytes.fromhex(path.name)
    repository.condemn([pack])
    report = repository.verify_all()
    assert report.damaged_packs == (pack,)
    assert report.pardoned_packs == ()


def test_pack_that_could_not_be_read_is_no_longer_read_after_some_blocks(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = sample.reopen()
    flaky = Flaky(monkeypatch, PACKS, times=1_000_000)
    report = repository.verify_point(sample.points[0].id)
    assert report.unreadable
    assert max(flaky.hits.values()) <= 8


def test_signal_is_no_damage(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = sample.reopen()

    def interrupted(_: bytes) -> bytes:
        raise Interrupted("Interrupted by Ctrl-C")

    for prefix in ("states/", "points/", "keyring/", "format", "packs/"):
        Flaky(monkeypatch, prefix, times=1_000_000, change=interrupted)
        for call in (repository.verify_all, lambda: repository.verify_point(sample.points[0].id)):
            if prefix in ("keyring/", "format") and call is not repository.verify_all:
                continue
            with pytest.raises(Interrupted):
                call()
        monkeypatch.undo()


def test_repository_is_told_from_what_is_at_its_place(sample: Sample, tmp_path: Path) -> None:
    _assert_gone_is_told(sample.reopen(), sample, tmp_path, put_in_place=True)


def test_repository_whose_directory_is_gone_is_told(sample: Sample, tmp_path: Path) -> None:
    _assert_gone_is_told(sample.reopen(), sample, tmp_path, put_in_place=False)


def _assert_gone_is_told(repository: Repository, sample: Sample, tmp_path: Path, *, put_in_place: bool) -> None:
    from vmkeep.errors import RepositoryNotFound

    sample.location.rename(tmp_path / "elsewhere")
    if put_in_place:
        sample.location.mkdir()
    state = {"vm_uuid": sample.points[0].vm_uuid, "kind": "tpm", "generation": 9, "file": "tpm2/tpm2-00.permall"}
    for call in (
        lambda: repository.point(sample.points[0].id),
        lambda: repository.verify_all(),
        lambda: repository.delete_point(sample.points[0].id),
        lambda: repository.condemn([bytes(16)]),
        lambda: repository.put_state(b"state", **state, owner="", group="", mode=0o600),  # type: ignore[arg-type] # as it is
        lambda: repository.begin(purpose="test", host="host", cache=tmp_path / "new-cache"),
    ):
        with pytest.raises(RepositoryNotFound) as caught:
            call()
        assert caught.value.path == str(sample.location)
        assert str(sample.location) in caught.value.message
        assert "packs/" not in caught.value.message
        assert "points/" not in caught.value.message
    if put_in_place:
        assert list(sample.location.iterdir()) == []
        sample.location.rmdir()
    (tmp_path / "elsewhere").rename(sample.location)
    assert repository.verify_all().sound


def test_repository_that_was_mounted_anew_is_recognised(sample: Sample, tmp_path: Path) -> None:
    """Another inode, and the same repository."""
    import shutil

    repository = sample.reopen()
    shutil.copytree(sample.location, tmp_path / "copy")
    shutil.rmtree(sample.location)
    (tmp_path / "copy").rename(sample.location)
    repository.condemn([bytes(16)])
    assert _condemned(sample) == [bytes(16).hex()]
