"""A reader written from docs/internals/repository-format.md alone reads the golden repository.

It uses nothing of vmkeep but the truth about what the disks hold, so the document cannot drift from the code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.integration.repository.samples import make_sample

GOLDEN = Path(__file__).parent / "golden" / "repository"
MOVED = GOLDEN.parent / "moved"
SECRET = bytes(range(32))


def derive(secret: bytes, salt: bytes, info: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(secret))


def canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


class Reader:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.format = (directory / "format").read_bytes()
        raw = max((directory / "keyring").iterdir()).read_bytes()
        ring = json.loads(raw)
        assert canonical(ring) == raw
        (domain,) = ring["domains"]
        self.domain = domain["id"]
        self.id_key = self.unwrap(domain["id_key"]["envelopes"][0], "0" * 32, "id key")
        self.data_keys = {
            bytes.fromhex(key["id"]): self.unwrap(key["envelopes"][0], key["id"], "data key")
            for key in domain["data_keys"]
        }
        seals = ring.pop("seals")
        seal_key = blake3(self.id_key, derive_key_context="vmkeep 2026 repository v1 keyring seal").digest()
        assert seals == {self.domain: blake3(canonical(ring), key=seal_key).hexdigest()}

    def unwrap(self, envelope: dict[str, str], key: str, purpose: str) -> bytes:
        assert (
            envelope["key_id"] == blake3(SECRET, derive_key_context="vmkeep 2026 key file v1 key id").hexdigest()[:32]
        )
        wrapped = base64.b64decode(envelope["wrapped"])
        names = canonical({"domain": self.domain, "key": key, "purpose": purpose})
        associated = b"vmkeep envelope v1\n" + names + self.format
        return derive(SECRET, wrapped[:32], b"vmkeep key-file wrap v1").decrypt(bytes(12), wrapped[32:], associated)

    def id_of(self, kind: str, data: bytes) -> bytes:
        subkey = blake3(self.id_key, derive_key_context="vmkeep 2026 repository v1 id " + kind).digest()
        return blake3(data, key=subkey).digest()

    def frame(self, kind: int, id_: bytes, frame: bytes) -> bytes:
        magic, version, found, codec, flags, key, salt, counter, length = struct.unpack("<4sBBBB16s32sII", frame[:64])
        assert (magic, version, found, flags) == (b"VMKF", 1, kind, 0)
        aead = derive(self.data_keys[key], salt, b"vmkeep frame v1")
        body = aead.decrypt(struct.pack("<QI", counter, 0), frame[64:], frame[:64] + id_)
        plain = zstandard.ZstdDecompressor().decompress(body) if codec == 1 else body
        assert len(plain) == length
        return plain

    def pack(self, name: str) -> bytes:
        return (self.directory / "packs" / name[:2] / name).read_bytes()

    def rows(self, name: str) -> list[tuple[int, bytes, int, int, int]]:
        pack = self.pack(name)
        header = struct.unpack("<8sBB6s16s16s16s", pack[:64])
        assert (header[0], header[1], header[5].hex(), header[6].hex()) == (b"VMKPACK\n", 1, self.domain, name)
        magic, offset, length, zero = struct.unpack("<8sQII", pack[-24:])
        assert (magic, zero, offset + length + 24) == (b"VMKTAIL\n", 0, len(pack))
        index = self.frame(3, self.id_of("pack index", pack[:64]), pack[offset : offset + length])
        assert len(index) == 4 + 48 * int.from_bytes(index[:4], "little")
        return [
            (kind, id_, start, size, plain)
            for kind, _, id_, start, size, plain in struct.iter_unpack("<B3s32sIII", index[4:])
        ]

    def sealed(self, kind: int, ref: dict[str, Any]) -> bytes:
        """Return a frame from its pack, or from one that its pack was moved to."""
        if (self.directory / "packs" / ref["pack"][:2] / ref["pack"]).exists():
            return self.pack(ref["pack"])[ref["offset"] :][: ref["length"]]
        for path in (self.directory / "forwards").iterdir():
            forward = json.loads(path.read_bytes())
            assert canonical(forward) == path.read_bytes()
            assert forward["name"] == path.name
            for new in forward["moved"].get(ref["pack"], ()):
                for found, id_, start, size, _plain in self.rows(new):
                    if (found, id_.hex()) == (kind, ref["id"]):
                        return self.pack(new)[start : start + size]
        raise AssertionError(f"{ref} is nowhere")

    def node(self, ref: dict[str, Any]) -> tuple[int, dict[int, dict[str, Any]]]:
        data = self.frame(2, bytes.fromhex(ref["id"]), self.sealed(2, ref))
        assert self.id_of("node", data).hex() == ref["id"]
        version, level, slots, present, packs = struct.unpack("<BBHHH", data[:8])
        assert version == 1
        place = 8 + -(-slots // 8)
        bits = int.from_bytes(data[8:place], "little")
        table = [data[place + 16 * number :][:16].hex() for number in range(packs)]
        place += 16 * packs
        ids = [data[place + 32 * number :][:32].hex() for number in range(present)]
        place += 32 * present
        numbers = struct.unpack(f"<{present}H{present}I{present}I", data[place:])
        used = [slot for slot in range(slots) if bits >> slot & 1]
        children = {
            slot: {
                "id": ids[number],
                "pack": table[numbers[number]],
                "offset": numbers[present + number],
                "length": numbers[2 * present + number],
            }
            for number, slot in enumerate(used)
        }
        return level, children

    def fill(self, image: bytearray, disk: dict[str, Any], ref: dict[str, Any], place: int) -> None:
        level, children = self.node(ref)
        for slot, child in children.items():
            below = place * disk["fan_out"] + slot
            if level:
                self.fill(image, disk, child, below)
                continue
            plain = self.frame(1, bytes.fromhex(child["id"]), self.sealed(1, child))
            assert self.id_of("block", plain).hex() == child["id"]
            start = below * disk["block_bytes"]
            image[start : start + len(plain)] = plain

    def point(self, name: str) -> dict[str, Any]:
        plain = self.frame(4, self.id_of("point", name.encode()), (self.directory / "points" / name).read_bytes())
        value: dict[str, Any] = json.loads(plain)
        assert canonical(value) == plain
        return value

    def state(self, name: str) -> tuple[dict[str, Any], bytes]:
        plain = self.frame(
            5, self.id_of("state version", name.encode()), (self.directory / "states" / name).read_bytes()
        )
        length = int.from_bytes(plain[:4], "little")
        return json.loads(plain[4 : 4 + length]), plain[4 + length :]


def test_reader_written_from_the_document_reads_everything(tmp_path: Path) -> None:
    truth = make_sample(tmp_path)
    reader = Reader(GOLDEN)
    for point in truth.points:
        value = reader.point(point.id)
        assert value == point.as_json()
        for disk, expected in zip(value["disks"], truth.images[point.id], strict=True):
            stored = disk["stored"]
            image = bytearray(stored["size_bytes"])
            reader.fill(image, stored, stored["root"], 0)
            assert bytes(image) == expected
        for state in value["states"]:
            header, content = reader.state(state["version_id"])
            assert content == truth.states[state["version_id"]]
            assert header["sha256"] == state["sha256"] == hashlib.sha256(content).hexdigest()


def test_reader_written_from_the_document_reads_what_a_prune_has_moved(tmp_path: Path) -> None:
    truth = make_sample(tmp_path)
    assert {path.name for path in (MOVED / "features").iterdir()} == {"forwards"}
    reader = Reader(MOVED)
    point = truth.points[1]
    (disk,) = reader.point(point.id)["disks"]
    image = bytearray(disk["stored"]["size_bytes"])
    reader.fill(image, disk["stored"], disk["stored"]["root"], 0)
    assert bytes(image) == truth.images[point.id][0]


def test_every_byte_of_a_pack_is_header_frame_index_or_trailer() -> None:
    reader = Reader(GOLDEN)
    for path in GOLDEN.glob("packs/*/*"):
        content = path.read_bytes()
        place = 64
        for kind, id_, start, size, plain in reader.rows(path.name):
            assert start == place
            assert len(reader.frame(kind, id_, content[start : start + size])) == plain
            place += size
        assert place == struct.unpack("<Q", content[-16:-8])[0]
