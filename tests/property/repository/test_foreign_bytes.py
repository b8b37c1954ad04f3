"""Every reader of what others wrote into a repository: what comes out is data, or an error of ours with a hint.

Some dozens of examples each here, others each time; `make fuzz MINUTES=20` goes on for so long (CONTRIBUTING.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.attack.hostile_records import HOSTILE, SECRET, disk, root, state
from tests.integration.repository.samples import run_lengths, sample_key, seeded
from tests.property.foreign import anything, damaged, forged, outcome, texts, written
from vmkeep.catalog import Catalog, SqlCatalog
from vmkeep.catalog.times import end_of_named_time
from vmkeep.cli.console import time_text
from vmkeep.cli.forest import draw_forest
from vmkeep.errors import InvalidRequest, ObjectMissing
from vmkeep.flows.installation import catalog_point, catalog_states, known_from_catalogue
from vmkeep.flows.settle_pins import found_pin
from vmkeep.keys import export_key, import_key
from vmkeep.keys.keyfile import KeyFile
from vmkeep.moments.bundle import BundleError, parse_bundle
from vmkeep.repository import PinRecord, PointRecord
from vmkeep.repository.envelopes import PointSecret, get_envelope, open_envelope, put_envelope
from vmkeep.repository.intents import condemn, condemned_packs, damaged_notes, pardon, writers
from vmkeep.repository.keyring import new_keyring, open_keyring
from vmkeep.repository.layout import (
    CONDEMNED,
    ENVELOPES,
    INTENTS,
    KEYRING,
    STATES,
    Codec,
    FrameHeader,
    FrameKind,
    PackEntry,
    PackHeader,
    PackKind,
    canonical,
    format_object,
    pack_index,
    pack_trailer,
    parse_canonical,
    parse_format,
    parse_index,
    parse_trailer,
)
from vmkeep.repository.manifest import decode_node, encode_node, geometry_of
from vmkeep.repository.packs import open_index
from vmkeep.repository.pins import Pins
from vmkeep.repository.record import BlockRef, refuse_unreadable
from vmkeep.repository.seal import Sealer
from vmkeep.repository.states import get_state, put_state
from vmkeep.repository.store import ObjectStat, ObjectStore

T = TypeVar("T")
FORMAT = format_object("ab" * 16)
KEY = sample_key()
KEYRING_BYTES = new_keyring(FORMAT, KEY, random=seeded(1)).to_bytes()
POINT = "a" * 32
VM = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"

RECORD: dict[str, Any] = {
    "id": POINT,
    "vm_uuid": VM,
    "vm_name": "win11",
    "kind": "incremental",
    "parent": "b" * 32,
    "created": "2026-03-01T10:00:00.000000Z",
    "host": "alpha",
    "checkpoint": "vmkeep-1",
    "pause_ms": 92.5,
    "labels": {"why": "test"},
    "definition": "<domain type='kvm'><name>win11</name></domain>",
    "warnings": ["a warning"],
    "excluded": [{"target": "sda", "reason": "removable"}],
    "states": [state(because="placed"), state(kind="nvram", file="nvram.fd", version_id="6" * 32)],
    "disks": [disk(stored={"root": root()}), disk(target="vdb", mode="scan")],
    "secrets": [SECRET],
    "sequence": 7,
    "later": {"kept": [1, 2.5, None]},
}


@dataclass(slots=True)
class Memory:
    """A store whose objects are in memory, as anybody put them there."""

    objects: dict[str, bytes] = field(default_factory=dict)

    def put(self, name: str, content: bytes, *, replace: bool = False) -> None:  # noqa: ARG002
        self.objects[name] = bytes(content)

    def get(self, name: str, *, most_bytes: int = 0) -> bytes:  # noqa: ARG002
        if name not in self.objects:
            raise ObjectMissing(f"{name} is not in the repository", path=name)
        return self.objects[name]

    def delete(self, name: str) -> None:
        del self.objects[name]

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        for name, content in list(self.objects.items()):
            if name.startswith(prefix):
                yield ObjectStat(name, len(content), datetime(2026, 1, 1, tzinfo=UTC))


def store_of(memory: Memory) -> ObjectStore:
    return cast("ObjectStore", memory)


def sealer() -> Sealer:
    keyring = open_keyring(store_of(Memory({f"{KEYRING}0000000001": KEYRING_BYTES})), 1, FORMAT, lambda _: KEY)
    return Sealer(keyring.domains, keyring.default, random=seeded(2), compress=run_lengths)


SEALER = sealer()


# -- points -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog() -> Iterator[Catalog]:
    with TemporaryDirectory() as directory, SqlCatalog.open(Path(directory) / "catalog.sqlite") as opened:
        yield opened


def use(record: PointRecord, catalog: Catalog | None = None) -> None:
    """Do with a record that parses what everybody does with one; none of it may fail."""
    assert parse_canonical(canonical(record.as_json()), "x") == record.as_json()
    refuse_unreadable(record)
    point = catalog_point(record)
    summary = point.summary()
    assert time_text(point.created).isprintable()
    assert datetime.fromisoformat(point.created).tzinfo is not None
    assert end_of_named_time(point.created[:10]) is not None
    assert list(draw_forest([summary], lambda each: str(each["id"])))
    known_from_catalogue(point)
    json.dumps(summary, ensure_ascii=False).encode()
    for each in record.disks:
        assert geometry_of(each.stored).levels <= 64
        assert "/" not in each.target
    for secret in record.secrets:
        assert "/" not in secret.uuid
    if catalog is not None:
        catalog.adopt([(point, catalog_states(record))])
        assert catalog.find_point(record.id).document == point.document
        assert catalog.next_sequence(record.vm_uuid) < 2**63
        newest = catalog.newest_state(record.vm_uuid, "tpm")
        assert newest is None or newest.generation < 2**63 - 1
        assert catalog.forget_point(record.id)


@given(forged(RECORD))
def test_record_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is None:
        return
    record = outcome(lambda: PointRecord.from_json(parse_canonical(data, "points/x"), "points/x"))
    if record is not None:
        use(record)


@given(forged(RECORD))
def test_record_that_parses_can_be_in_a_catalogue(catalog: Catalog, value: Any) -> None:
    if written(value) is None:  # what is no JSON is refused before: NaN in a field that nobody knows would be kept
        return
    record = outcome(lambda: PointRecord.from_json(value, "points/x"))
    if record is not None:
        use(record, catalog)


@pytest.mark.parametrize("fault", HOSTILE)
def test_record_of_the_attacks_is_refused_here_too(fault: str) -> None:
    assert outcome(lambda: PointRecord.from_json({**RECORD, **HOSTILE[fault]}, "points/x")) is None


@given(anything)
def test_any_json_as_a_record(value: Any) -> None:
    data = written(value)
    if data is not None:
        outcome(lambda: PointRecord.from_json(parse_canonical(data, "points/x"), "points/x"))


@pytest.mark.parametrize("depth", [60, 70, 300, 900, 960, 1000, 5000])
def test_deep_json_is_damage_wherever_it_stands(depth: int) -> None:
    deep: bytes = b"[" * depth + b"]" * depth
    for good, read in (
        (RECORD, lambda data: PointRecord.from_json(parse_canonical(data, "x"), "x")),
        (json.loads(KEYRING_BYTES), opened_keyring),
        (NOTE, lambda data: list(damaged_notes(store_of(Memory({INTENTS + "c" * 32: data}))))),
    ):
        data = canonical({**good, "later": "here"}).replace(b'"here"', deep)
        outcome(lambda read=read, data=data: read(data))  # type: ignore[misc]
    outcome(lambda: parse_format(FORMAT.replace(b"1", deep, 1), "/repository"))


@given(damaged(canonical(RECORD)))
def test_record_that_is_damaged(data: bytes) -> None:
    record = outcome(lambda: PointRecord.from_json(parse_canonical(data, "points/x"), "points/x"))
    if record is not None:
        use(record)


# -- frames, nodes, packs -----------------------------------------------------------------------------------------

REFS = [BlockRef(bytes([number]) * 32, bytes([number % 3]) * 16, 64 + number, 100) for number in range(20)]
NODE = encode_node(1, [*REFS, None, *REFS[:5]])
ENTRIES = [PackEntry(FrameKind.BLOCK, bytes([number]) * 32, 64 + number * 100, 100, 20) for number in range(9)]
INDEX = pack_index(ENTRIES)
PACK = PackHeader(PackKind.DATA, SEALER.domain.active, SEALER.domain.id, bytes(16))
FRAME = SEALER.seal_alone(FrameKind.POINT, POINT, b"\x07" * 500)


@given(damaged(NODE), st.integers(0, 3), st.sampled_from([26, 32, 4096]))
def test_node(data: bytes, level: int, slots: int) -> None:
    children = outcome(lambda: decode_node(data, level, slots, "packs/x at 64"))
    if children is not None:
        assert len(encode_node(level, children)) > 0
        assert len(children) == slots


@given(damaged(INDEX), st.integers(0, 2000))
def test_index_of_a_pack(data: bytes, index_offset: int) -> None:
    outcome(lambda: parse_index(data, index_offset, bytes(16)))


@given(damaged(PACK.pack_bytes()), damaged(pack_trailer(964, 400)), st.integers(0, 2**40))
def test_header_and_trailer_of_a_pack(header: bytes, trailer: bytes, size_bytes: int) -> None:
    outcome(lambda: PackHeader.parse(header, bytes(16)))
    outcome(lambda: parse_trailer(trailer, size_bytes, bytes(16)))
    outcome(lambda: open_index(SEALER, bytes(16), header, trailer, 964))


@given(damaged(FRAME))
def test_frame_that_is_damaged(frame: bytes) -> None:
    outcome(lambda: FrameHeader.parse(frame, "points/x"))
    plain = outcome(lambda: SEALER.open_alone(FrameKind.POINT, POINT, frame, "points/x"))
    assert plain in (None, b"\x07" * 500)


@given(
    st.sampled_from(FrameKind),
    st.binary(max_size=200) | damaged(bytes(run_lengths([b"\x07" * 500])[0])),
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 500]),
    st.sampled_from(Codec),
)
def test_frame_that_says_what_its_maker_likes(kind: FrameKind, body: bytes, plain_bytes: int, codec: Codec) -> None:
    frame = SEALER.new_key().seal(kind, SEALER.id_of(kind, b"x"), codec, body, plain_bytes, 0)
    plain = outcome(lambda: SEALER.open_alone(kind, "x", frame, "points/x"))
    assert plain is None or len(plain) == plain_bytes


# -- keyring and format -------------------------------------------------------------------------------------------


def opened_keyring(content: bytes) -> None:
    memory = Memory({f"{KEYRING}0000000001": content})
    found = outcome(lambda: open_keyring(store_of(memory), 1, FORMAT, lambda _recipients: KEY))
    if found is not None:
        Sealer(found.domains, found.default).id_of(FrameKind.BLOCK, b"")


@given(forged(json.loads(KEYRING_BYTES)))
def test_keyring_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is not None:
        opened_keyring(data)


@given(damaged(KEYRING_BYTES))
def test_keyring_that_is_damaged(content: bytes) -> None:
    opened_keyring(content)


@given(anything | forged(json.loads(FORMAT)), st.binary(max_size=20) | damaged(FORMAT))
def test_format(value: Any, data: bytes) -> None:
    outcome(lambda: parse_format(data, "/repository"))
    outcome(lambda: parse_format(json.dumps(value).encode(), "/repository"))


# -- envelopes and state versions ---------------------------------------------------------------------------------

SECRETS = (PointSecret("vtpm", SECRET["uuid"], "win11", "of win11", False, b"secret"),)


def sealed_envelope() -> tuple[Memory, dict[str, Any]]:
    memory = Memory()
    put_envelope(store_of(memory), SEALER, POINT, VM, SECRETS)
    plain = SEALER.open_alone(FrameKind.ENVELOPE, POINT, memory.objects[ENVELOPES + POINT], "x")
    return memory, json.loads(plain)


ENVELOPE = sealed_envelope()[1]
OF_POINT = PointRecord.from_json({**RECORD, "secrets": [{"usage": "vtpm", "uuid": SECRET["uuid"]}]}, "x")


@given(forged(ENVELOPE))
def test_envelope_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is None:
        return
    sealed = SEALER.seal_alone(FrameKind.ENVELOPE, POINT, data, compressed=False)
    memory = Memory({ENVELOPES + POINT: sealed})
    outcome(lambda: open_envelope(store_of(memory), SEALER, POINT))
    found = outcome(lambda: get_envelope(store_of(memory), SEALER, OF_POINT))
    for secret in found or ():
        json.dumps([secret.usage_id, secret.description], ensure_ascii=False).encode()


PIN: dict[str, Any] = {
    "id": POINT,
    "vm_uuid": VM,
    "vm_name": "win11",
    "host": "alpha",
    "created": "2026-03-01T10:00:00.000000Z",
    "why": "kept",
    "until": None,
    "states": [state()],
    "secrets": [{"usage": "vtpm", "uuid": SECRET["uuid"]}],
    "snapshot": {"id": "5" * 32, "name": "before", "creation_time": 1_772_445_600, "current_point": None},
    "later": {"kept": [1, None]},
}


@given(forged(PIN))
def test_pin_with_other_fields(value: Any) -> None:
    found = outcome(lambda: PinRecord.from_json(value, "pins/a"))
    if found is not None:
        assert found.states or found.secrets
        assert parse_canonical(canonical(found.as_json()), "x") == found.as_json()
        row = found_pin(found).pin
        json.dumps([row.vm_name, row.host, row.why, [secret.uuid for secret in row.secrets]]).encode()


@given(forged({**{name: ENVELOPE[name] for name in ENVELOPE if name != "point"}, "pin": POINT}))
def test_envelope_of_a_pin_with_other_fields(value: Any) -> None:
    data = written(value)
    if data is None:
        return
    sealed = SEALER.seal_alone(FrameKind.ENVELOPE, POINT, data, compressed=False)
    memory = Memory({ENVELOPES + POINT: sealed})
    pins = Pins(store_of(memory), SEALER, "ab" * 16, None)
    record = PinRecord.from_json({name: content for name, content in PIN.items() if name != "later"}, "pins/a")
    for secret in outcome(lambda: pins.secrets(record)) or ():
        assert secret.ref() in record.secrets


def state_version() -> bytes:
    memory = Memory()
    about = {"vm_uuid": VM, "kind": "tpm", "file": "tpm2/tpm2-00.permall", "owner": "tss", "group": "tss"}
    created = "2026-03-01T10:00:00.000000+00:00"
    version = put_state(store_of(memory), SEALER, b"x" * 40, generation=3, mode=0o600, created=created, **about)
    return SEALER.open_alone(FrameKind.STATE, version.id, memory.objects[STATES + version.id], "x")


STATE = state_version()
HEADER = json.loads(STATE[4 : 4 + int.from_bytes(STATE[:4], "little")])


def read_state(plain: bytes) -> None:
    memory = Memory({STATES + HEADER["id"]: SEALER.seal_alone(FrameKind.STATE, HEADER["id"], plain)})
    found = outcome(lambda: get_state(store_of(memory), SEALER, HEADER["id"]))
    if found is not None:
        version, content = found
        assert len(content) == version.size_bytes
        assert ".." not in version.file


@given(damaged(STATE))
def test_state_version_that_is_damaged(plain: bytes) -> None:
    read_state(plain)


@given(forged(HEADER))
def test_state_version_with_other_fields(value: Any) -> None:
    header = written(value)
    if header is not None:
        read_state(len(header).to_bytes(4, "little") + header + STATE[-40:])


# -- intents and condemned packs ----------------------------------------------------------------------------------

NOTE = {"host": "a", "lapse_seconds": 900.0, "purpose": "p", "started": "s", "writer": "c" * 32, "pack": "c" * 32}
names = st.sampled_from(["c" * 32, "x", "../x", "c" * 31]) | texts


@given(st.sampled_from([INTENTS, CONDEMNED]), names, anything | forged(NOTE), st.none() | damaged(canonical(NOTE)))
def test_notes_of_writers(prefix: str, name: str, value: Any, data: bytes | None) -> None:
    content = data if data is not None else written(value)
    if content is None:
        return
    memory = Memory({prefix + name: content})
    for writer in outcome(lambda: writers(store_of(memory))) or ():
        assert isinstance(writer.host, str)
        assert isinstance(writer.purpose, str)
    outcome(lambda: list(damaged_notes(store_of(memory))))
    for pack in outcome(lambda: condemned_packs(store_of(memory))) or ():
        assert len(pack) == 16
    outcome(lambda: pardon(store_of(memory), [bytes.fromhex("c" * 32)]))
    outcome(lambda: condemn(store_of(memory), [bytes.fromhex("c" * 32)], reason="damaged"))


# -- keys and files of moments ------------------------------------------------------------------------------------


# What is tried here is the parser, and not scrypt, which takes a second of a processor once.
@given(st.deferred(lambda: damaged(export_key(KEY, "passphrase", random=seeded(3)).encode())))
def test_exported_key(data: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmkeep.keys.armor._cipher", _no_cipher)
        outcome(lambda: import_key(data.decode("utf-8", "surrogateescape"), "passphrase"))


@given(texts, texts)
def test_any_text_as_an_exported_key(text: str, passphrase: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmkeep.keys.armor._cipher", _no_cipher)
        outcome(lambda: import_key(text, passphrase))


def _no_cipher(_header: bytes, _passphrase: str) -> Any:
    raise InvalidRequest("it was parsed")


@given(anything | forged({"format": "vmkeep key", "key_id": KEY.key_id, "secret": KEY.secret.hex(), "version": 1}))
def test_key_file(value: Any) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "x.key"
        path.write_text(json.dumps(value))
        outcome(lambda: KeyFile.load(path))


@given(anything | forged({"format": "vmkeep-moments", "version": 1, "kind": "checkpoint", "vm": {}, "moments": []}))
def test_file_of_moments(value: Any) -> None:
    with suppress(BundleError):
        parse_bundle(json.dumps(value))
