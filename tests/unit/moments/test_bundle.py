"""The file of all moments of a VM: what was written is read, and what cannot be one is refused with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vmkeep.keys.signing import SigningKey, is_signed
from vmkeep.moments import (
    BundledMoment,
    BundleError,
    Checkpoint,
    CheckpointDisk,
    MomentBundle,
    MomentKind,
    Snapshot,
    SnapshotMemory,
    format_bundle,
    format_moment,
    parse_bundle,
    parse_moment,
    with_domain_kept,
)
from vmkeep.moments.bundle import MAX_MOMENTS

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
DOMAIN = "<domain type='kvm'>\n  <name>win11</name>\n{}</domain>\n"
GRAPHICS = "  <devices>\n    <graphics type='vnc'{}/>\n  </devices>\n"
PLAIN = DOMAIN.format(GRAPHICS.format(""))
SECURE = DOMAIN.format(GRAPHICS.format(" passwd='open sesame'"))


def checkpoint(name: str, parent: str | None = None, **more: Any) -> Checkpoint:
    disks = (CheckpointDisk("vda", "bitmap", name),)  # type: ignore[arg-type]  # plain strings are taken
    return Checkpoint(name=name, parent_name=parent, creation_time=1, disks=disks, **more)


def bundle(*moments: Checkpoint | Snapshot, **more: Any) -> MomentBundle:
    bundled = tuple(BundledMoment(moment, format_moment(moment, secure=True)) for moment in moments)
    values: dict[str, Any] = {"kind": MomentKind.CHECKPOINT, "vm_name": "Wïndows 11", "vm_uuid": UUID, **more}
    return MomentBundle(moments=bundled, **values)


CHAIN = bundle(checkpoint("b", "a"), checkpoint("a", description="two\nlines & <more>"))


def document(change: Callable[[dict[str, Any]], object] = lambda _: None) -> str:
    """Return a file with a change made to its object."""
    value = json.loads(format_bundle(CHAIN))
    change(value)
    return json.dumps(value)


def test_what_was_written_is_read_in_the_same_order_and_to_the_byte() -> None:
    assert parse_bundle(format_bundle(CHAIN)) == CHAIN


def test_snapshots_and_the_current_one_are_read_as_well() -> None:
    snapshot = Snapshot(name="ä/1", creation_time=7, state="shutoff", memory=SnapshotMemory("no"))  # type: ignore[arg-type]
    written = bundle(snapshot, kind=MomentKind.SNAPSHOT, current="ä/1", secure=True)
    assert parse_bundle(format_bundle(written)) == written


def test_a_file_without_moments_is_one() -> None:
    assert parse_bundle(format_bundle(bundle())).moments == ()


def test_keys_of_later_versions_are_ignored() -> None:
    def add(value: dict[str, Any]) -> None:
        value["later"] = {"any": [1, 2]}
        value["moments"][0]["health"] = "sound"

    assert parse_bundle(document(add)) == CHAIN


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda value: value.update(format="tar"), "no file of moments"),
        (lambda value: value.pop("format"), "no file of moments"),
        (lambda value: value.update(version=2), "version 2 .* reads 1"),
        (lambda value: value.update(version=True), "not a number"),
        (lambda value: value.update(version="1"), "not a number"),
        (lambda value: value.update(kind="point"), "checkpoint, snapshot"),
        (lambda value: value.update(kind=["checkpoint"]), "checkpoint, snapshot"),
        (lambda value: value.update(kind="snapshot"), "expecting root element of 'domainsnapshot'"),
        (lambda value: value.update(vm="win11"), "uuid"),
        (lambda value: value["vm"].update(uuid="../../etc"), "not the UUID"),
        (lambda value: value.update(security_info="no"), "security_info"),
        (lambda value: value.update(current="c"), "'c', which is not among"),
        (lambda value: value.update(current=["a"]), "not among"),
        (lambda value: value.update(moments={"a": 1}), "not a list"),
        (lambda value: value["moments"].append("a"), "moment 3 does not have"),
        (lambda value: value["moments"][0].update(name=1), "moment 1 does not have"),
        (lambda value: value["moments"][0].update(name="other"), "'other' and its document is of 'b'"),
        (lambda value: value["moments"][0].update(xml="<domaincheckpoint>"), "checkpoint 'b': not well-formed"),
        (lambda value: value["moments"][0].update(xml="<!DOCTYPE a><a/>"), "document type"),
        (lambda value: value["moments"][0].update(xml="\ud800"), "checkpoint 'b'"),
        (lambda value: value["moments"].extend(value["moments"]), "twice: a, b"),
        (lambda value: value.update(moments=[{}] * (MAX_MOMENTS + 1)), "the limit is"),
    ],
)
def test_what_is_no_file_of_moments_is_refused_with_its_reason(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(BundleError, match=reason):
        parse_bundle(document(change))


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", '"vmkeep-moments"', "<domaincheckpoint/>", "{", "\x00", "[" * 100_000),
        '{"a":' * 100_000,
        '{"format": "vmkeep-moments", "version": ' + "1" * 10_000 + "}",
        '{"format": "vmkeep-moments", "format": "vmkeep-moments", "version": 1}',
    ],
)
def test_hostile_text_is_refused_and_nothing_worse(text: str) -> None:
    with pytest.raises(BundleError):
        parse_bundle(text)


def test_a_redefined_moment_keeps_the_domain_that_it_leaves_out() -> None:
    existing = checkpoint("a", domain=SECURE)
    assert with_domain_kept(checkpoint("a"), existing) == existing


def test_a_redefined_moment_keeps_the_passwords_that_it_was_told_without() -> None:
    existing = checkpoint("a", "b", domain=SECURE)
    told = parse_moment(MomentKind.CHECKPOINT, format_moment(existing))
    assert "open sesame" not in (told.domain or "")
    assert with_domain_kept(told, existing).domain == SECURE
    snapshot = Snapshot(name="s", domain=SECURE, inactive_domain=SECURE)
    assert with_domain_kept(Snapshot(name="s", domain=PLAIN, inactive_domain=PLAIN), snapshot) == snapshot


def test_a_domain_that_is_another_is_taken_as_it_is() -> None:
    other = checkpoint("a", domain=PLAIN.replace("win11", "other"))
    assert with_domain_kept(other, checkpoint("a", domain=SECURE)) == other


def test_a_signature_is_of_all_that_the_file_says_and_of_nothing_else() -> None:
    key = SigningKey.draw(machine="0" * 32, host="alpha")
    text = format_bundle(CHAIN, lambda statement: (key.public_key, key.sign(statement)))
    signature = parse_bundle(text).signature
    assert signature is not None
    assert is_signed(signature.key, signature.statement, signature.value)
    other_layout = parse_bundle(json.dumps(json.loads(text), sort_keys=True)).signature
    assert other_layout == signature
    for name, value in (("security_info", True), ("current", "a"), ("later", 1), ("moments", [])):
        changed = parse_bundle(json.dumps({**json.loads(text), name: value})).signature
        assert changed is not None
        assert not is_signed(changed.key, changed.statement, changed.value)
    assert parse_bundle(format_bundle(CHAIN)).signature is None


@pytest.mark.parametrize("signature", [1, {}, {"key": "0" * 64}, {"key": "0" * 64, "value": "g" * 128}, {"key": []}])
def test_a_signature_that_is_none_is_refused(signature: object) -> None:
    with pytest.raises(BundleError, match='"signature"'):
        parse_bundle(json.dumps({**json.loads(format_bundle(CHAIN)), "signature": signature}))
