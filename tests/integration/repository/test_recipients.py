"""The keyring for several recipients: added, removed, put in another's place, by several writers, and never lost."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.integration.repository.samples import Sample, make_sample, opener, read_whole, sample_key, seeded
from vmkeep.errors import InvalidRequest, KeyMissing, ObjectDamaged, ProviderUnreachable, WrongKey
from vmkeep.keys import KeyFile
from vmkeep.keys.keyfile import key_id_of
from vmkeep.keys.provider import ProviderKey
from vmkeep.providers import ProviderSettings
from vmkeep.repository import Repository


class Shuffling:
    """A device in memory: what it does to 32 bytes is undone by it alone, and it can be away."""

    def __init__(self, pad: int) -> None:
        self.pad = self.opens_with = pad
        self.away = False

    def seal(self, plain: bytes) -> bytes:
        if self.away:
            raise ProviderUnreachable("it is away")
        return bytes(byte ^ self.pad for byte in plain)

    def open(self, sealed: bytes) -> bytes:
        if self.away:
            raise ProviderUnreachable("it is away")
        return bytes(byte ^ self.opens_with for byte in sealed)

    def close(self) -> None:
        pass


def provider(pad: int, name: str = "vmkeep") -> tuple[ProviderKey, Shuffling]:
    device = Shuffling(pad)
    settings = ProviderSettings("vault", "transit", {"key": name, "address": "https://h"}, timeout_seconds=1)
    return ProviderKey(settings, lambda _settings: device, random=seeded(pad), sleep=lambda _seconds: None), device


def another(seed: int = 7) -> KeyFile:
    secret = seeded(seed)(32)
    return KeyFile(key_id_of(secret), secret)


def reopened(sample: Sample, key: KeyFile | ProviderKey) -> Repository:
    return Repository.open(str(sample.location), opener(key))


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path)


def generations(sample: Sample) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(sample.location, "keyring").iterdir()}


def test_each_recipient_opens_all_of_it_and_what_was_there_stays_as_it_was(sample: Sample) -> None:
    before = generations(sample)
    held, _ = provider(3)
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=held, add=held)
    repository.rewrite_keyring(proof=another(), add=another())
    assert repository.keyring.generation == 3
    assert generations(sample).items() >= before.items()
    for key in (sample_key(), held, another()):
        opened = reopened(sample, key)
        for point in sample.points:
            for disk, image in zip(point.disks, sample.images[point.id], strict=True):
                assert read_whole(opened, disk.stored) == image
        assert opened.verify_all().sound
    with pytest.raises(InvalidRequest, match="already"):
        repository.rewrite_keyring(proof=held, add=held)
    assert len(generations(sample)) == 3


def test_removed_recipient_opens_no_later_keyring_and_the_last_one_is_never_removed(sample: Sample) -> None:
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=another(), add=another(), remove=sample_key().key_id)
    assert [each.key_id for each in repository.keyring.recipients] == [another().key_id]
    with pytest.raises(WrongKey):
        reopened(sample, sample_key())
    assert reopened(sample, another()).verify_all().sound
    assert sample_key().key_id.encode() not in generations(sample)["0000000002"]
    for key_id in (another().key_id, sample_key().key_id):
        with pytest.raises(InvalidRequest):
            repository.rewrite_keyring(proof=another(), remove=key_id)
    assert len(generations(sample)) == 2


def test_key_that_opens_nothing_of_what_it_made_is_no_recipient(sample: Sample) -> None:
    """The provider wraps, and then opens something else: of two servers behind one address, say."""
    held, device = provider(3)
    device.opens_with = 9
    repository = reopened(sample, sample_key())
    with pytest.raises(WrongKey, match="another key of that name"):
        repository.rewrite_keyring(proof=held, add=held)
    assert len(generations(sample)) == 1
    assert len(repository.keyring.recipients) == 1


def test_provider_that_is_away_leaves_nothing_half_done(sample: Sample) -> None:
    held, device = provider(3)
    device.away = True
    repository = reopened(sample, sample_key())
    with pytest.raises(ProviderUnreachable):
        repository.rewrite_keyring(proof=held, add=held)
    assert len(generations(sample)) == 1
    device.away = False
    repository.rewrite_keyring(proof=held, add=held, remove=sample_key().key_id)
    device.away = True
    with pytest.raises(ProviderUnreachable):
        reopened(sample, held)
    # What is open needs it no more.
    assert repository.verify_all().sound


def test_other_key_of_the_same_name_is_told_and_is_no_damage(sample: Sample) -> None:
    held, _ = provider(3)
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=held, add=held)
    other, _ = provider(4)
    with pytest.raises(WrongKey, match="another key of that name"):
        reopened(sample, other)


def test_writers_at_once_lose_no_change(sample: Sample) -> None:
    keys = [another(seed) for seed in range(20, 26)]
    faults: list[BaseException] = []

    def add(key: KeyFile) -> None:
        try:
            reopened(sample, sample_key()).rewrite_keyring(proof=key, add=key)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=add, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    opened = reopened(sample, keys[3])
    assert {each.key_id for each in opened.keyring.recipients} == {sample_key().key_id, *(key.key_id for key in keys)}
    assert sorted(generations(sample)) == [f"{number:010}" for number in range(1, 8)]
    assert opened.verify_all().sound


def test_new_data_key_needs_all_that_stay_and_is_found_by_who_had_it_open(sample: Sample) -> None:
    held, _ = provider(3)
    repository, long_open = reopened(sample, sample_key()), reopened(sample, sample_key())
    repository.rewrite_keyring(proof=held, add=held)
    with pytest.raises(KeyMissing, match=held.key_id):
        repository.add_data_key()
    former = repository.keyring.default.active
    repository.add_data_key(held)
    assert repository.keyring.default.active != former
    content = b"\x17" * 4096
    version = repository.put_state(
        content, vm_uuid="6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10", kind="nvram", generation=9, file="nvram.fd",
        owner="root", group="root", mode=0o600,
    )  # fmt: skip
    # A process that opened it long ago reads what was sealed since, and then seals with that key as well.
    assert long_open.state(version.id)[1] == content
    assert long_open.keyring.default.active == former
    long_open.follow_keyring()
    assert long_open.keyring.default.active == repository.keyring.default.active
    assert reopened(sample, held).state(version.id)[1] == content
    assert reopened(sample, held).verify_all().sound


def test_removed_key_does_not_open_what_is_sealed_after_a_new_data_key(sample: Sample) -> None:
    former = reopened(sample, sample_key())
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=another(), add=another(), remove=sample_key().key_id, new_data_key_for=[another()])
    assert repository.keyring.generation == 2
    version = repository.put_state(
        b"\x17" * 4096, vm_uuid="6f8f5c9c-55f5-4a8e-9a37-0d5f5c6a1f10", kind="nvram", generation=9, file="nvram.fd",
        owner="root", group="root", mode=0o600,
    )  # fmt: skip
    with pytest.raises(ObjectDamaged, match="not in the keyring"):
        former.state(version.id)
    # Nor does who holds it write on, under a key that somebody else has.
    with pytest.raises(WrongKey):
        former.follow_keyring()
    with pytest.raises(WrongKey):
        former.begin(purpose="point", host="h", cache=Path(sample.location).parent / "cache")


@pytest.mark.parametrize("generation", ["0000000001", "0000000002"])
def test_keyring_that_was_changed_is_found_also_where_the_key_is_no_recipient(sample: Sample, generation: str) -> None:
    held, _ = provider(3)
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=held, add=held, remove=sample_key().key_id)
    path = Path(sample.location, "keyring", generation)
    path.write_bytes(path.read_bytes().replace(b'"name":"default"', b'"name":"defeult"'))
    report = repository.verify_all()
    assert [finding.object for finding in report.findings] == [f"keyring/{generation}"]


def test_recipients_are_dated_by_the_storage_and_told_without_a_key(sample: Sample) -> None:
    repository = reopened(sample, sample_key())
    repository.rewrite_keyring(proof=another(), add=another())
    since = {each.key_id: when for each, when in repository.recipients_since().items()}
    assert since[sample_key().key_id] <= since[another().key_id]
    told = Repository.told_recipients(str(sample.location))
    assert [(each.key_id, each.kind) for each in told] == [
        (sample_key().key_id, "key-file"),
        (another().key_id, "key-file"),
    ]
