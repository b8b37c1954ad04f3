"""Records of points that no vmkeep ever wrote, one fault each. Used by what parses and by what must go on beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

LONE_SURROGATE = "\ud800"
RIGHT_TO_LEFT = "\u202e"


def disk(**changes: Any) -> dict[str, Any]:
    """Return a disk of zeros as a record names it."""
    stored = {
        "block_bytes": 65536,
        "domain": "0" * 32,
        "fan_out": 32,
        "root": None,
        "size_bytes": 65536,
        **changes.pop("stored", {}),
    }
    plain = {
        "target": "vda",
        "mode": "full",
        "reason": "no-base",
        "source": "/x",
        "format": "qcow2",
        "bytes_read": 0,
        "bytes_stored": 0,
    }
    return {**plain, **changes, "stored": stored}


def state(**changes: Any) -> dict[str, Any]:
    """Return a state version as a record names it."""
    plain = {
        "kind": "tpm",
        "version_id": "5" * 32,
        "generation": 1,
        "sha256": "a" * 64,
        "size_bytes": 6000,
        "file": "tpm2/tpm2-00.permall",
    }
    return {**plain, **changes}


def root(**changes: Any) -> dict[str, Any]:
    return {"id": "a" * 64, "pack": "b" * 32, "offset": 64, "length": 200, **changes}


SECRET = {"usage": "vtpm", "uuid": "0a2f2f0e-7f60-4f8a-9d0e-2f6b6a3a1f01"}

HOSTILE: Mapping[str, Mapping[str, Any]] = {
    # times
    "created: no time": {"created": "yesterday"},
    "created: the year 1": {"created": "0001-01-01T00:00:00.000000+00:00"},
    "created: the end of all years": {"created": "9999-12-31T23:59:59.999999+00:00"},
    "created: before 1970": {"created": "1969-12-31T23:59:59.999999+00:00"},
    "created: without a zone": {"created": "2026-03-01T10:00:00.000000"},
    "created: of another form": {"created": "2026-03-01T10:00:00+00:00"},
    "created: no day": {"created": "2026-02-30T10:00:00.000000+00:00"},
    # names and texts
    "vm_name: empty": {"vm_name": ""},
    "vm_name: lone surrogate": {"vm_name": LONE_SURROGATE},
    "vm_name: NUL": {"vm_name": "a\0b"},
    "vm_name: line end": {"vm_name": "a\nb"},
    "vm_name: escape": {"vm_name": "\x1b[31mred"},
    "vm_name: C1": {"vm_name": "a\x9bb"},
    "vm_name: direction": {"vm_name": f"a{RIGHT_TO_LEFT}b"},
    "vm_name: slash": {"vm_name": "a/b"},
    "vm_name: 300 characters": {"vm_name": "a" * 300},
    "vm_uuid: none": {"vm_uuid": "u"},
    "vm_uuid: capitals": {"vm_uuid": "4DEA22B3-1D52-D8F3-2516-782E98AB3FA0"},
    "host: escape": {"host": "\x1b]0;x\x07"},
    "host: long": {"host": "a" * 300},
    "checkpoint: direction": {"checkpoint": RIGHT_TO_LEFT},
    "labels: no object": {"labels": ["a"]},
    "labels: a number": {"labels": {"a": 1}},
    "labels: escape in a name": {"labels": {"\x1b": "a"}},
    "labels: direction": {"labels": {"a": RIGHT_TO_LEFT}},
    "labels: lone surrogate": {"labels": {"a": LONE_SURROGATE}},
    "warnings: escape": {"warnings": ["\x1b[2J"]},
    "warnings: lone surrogate": {"warnings": [LONE_SURROGATE]},
    "definition: lone surrogate": {"definition": f"<domain>{LONE_SURROGATE}</domain>"},
    "definition: NUL": {"definition": "<domain>\0</domain>"},
    "definition: a list": {"definition": ["<domain/>"]},
    # what it is
    "kind: unknown": {"kind": "differential"},
    "parent: no id": {"parent": "../x"},
    "pause_ms: below zero": {"pause_ms": -1},
    "pause_ms: 400 digits": {"pause_ms": 10**400},
    "pause_ms: true": {"pause_ms": True},
    "sequence: 2^63": {"sequence": 2**63},
    "sequence: 0": {"sequence": 0},
    # disks
    "disks: no list": {"disks": {"vda": 1}},
    "disks: twice": {"disks": [disk(), disk()]},
    "disks: also left out": {"disks": [disk()], "excluded": [{"target": "vda", "reason": "requested"}]},
    "target: above": {"disks": [disk(target="..")]},
    "target: empty": {"disks": [disk(target="")]},
    "target: an option": {"disks": [disk(target="-rf")]},
    "target: a path": {"disks": [disk(target="a/b")]},
    "target: NUL": {"disks": [disk(target="vda\0")]},
    "target: line end": {"disks": [disk(target="vda\n")]},
    "target: direction": {"disks": [disk(target=f"vda{RIGHT_TO_LEFT}")]},
    "target: other letters": {"disks": [disk(target="vd\u0430")]},
    "target: long": {"disks": [disk(target="v" * 300)]},
    "excluded: above": {"excluded": [{"target": "../x", "reason": "requested"}]},
    "excluded: twice": {"excluded": [{"target": "vdb", "reason": "r"}, {"target": "vdb", "reason": "r"}]},
    "mode: unknown": {"disks": [disk(mode="differential")]},
    "source: NUL": {"disks": [disk(source="/a\0b")]},
    "source: long": {"disks": [disk(source="/" + "a" * 100_000)]},
    "format: a path": {"disks": [disk(format="../raw")]},
    "bytes_read: 2^63": {"disks": [disk(bytes_read=2**63)]},
    "bytes_stored: below zero": {"disks": [disk(bytes_stored=-1)]},
    "size_bytes: 2^62": {"disks": [disk(stored={"size_bytes": 2**62})]},
    "size_bytes: 2^1000": {"disks": [disk(stored={"size_bytes": 2**1000})]},
    "size_bytes: 0 with content": {"disks": [disk(stored={"size_bytes": 0, "root": root()})]},
    "block_bytes: 513": {"disks": [disk(stored={"block_bytes": 513})]},
    "block_bytes: 2^30": {"disks": [disk(stored={"block_bytes": 2**30})]},
    "fan_out: 1": {"disks": [disk(stored={"fan_out": 1})]},
    "fan_out: 2^20": {"disks": [disk(stored={"fan_out": 2**20})]},
    "root: 2^64": {"disks": [disk(stored={"root": root(offset=2**64)})]},
    "root: 2 GiB long": {"disks": [disk(stored={"root": root(length=2**31)})]},
    "root: no number": {"disks": [disk(stored={"root": root(length="200")})]},
    "root: short id": {"disks": [disk(stored={"root": root(id="aa")})]},
    # state files and secrets
    "states: of an unknown kind": {"states": [state(kind="memory")]},
    "states: twice": {"states": [state(), state(version_id="6" * 32)]},
    "file: above": {"states": [state(file="../../etc/systemd/system/x.conf")]},
    "file: absolute": {"states": [state(file="/etc/cron.d/x")]},
    "file: of another kind": {"states": [state(file="nvram.fd")]},
    "generation: 2^70": {"states": [state(generation=2**70)]},
    "generation: 0": {"states": [state(generation=0)]},
    "sha256: short": {"states": [state(sha256="aa")]},
    "state size: 1 GiB": {"states": [state(size_bytes=2**30)]},
    "secrets: above": {"secrets": [{"usage": "vtpm", "uuid": "../../x"}]},
    "secrets: twice": {"secrets": [SECRET, SECRET]},
    "secrets: escape": {"secrets": [{**SECRET, "usage": "\x1b"}]},
    # the shape of it
    "extra: deep": {"later": json.loads("[" * 300 + "]" * 300)},
    "extra: lone surrogate": {"later": {"a": LONE_SURROGATE}},
}
