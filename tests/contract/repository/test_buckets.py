"""A bucket behind a network that loses, cuts and delays, and what is found out of a server before it is trusted.

One file, as each file starts a server of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import ssl
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.integration.repository.samples import make_sample, opener, read_whole
from tests.rig import s3proxy, s3servers
from tests.rig.keyservers import Authority
from tests.rig.s3proxy import Fault, Proxy
from tests.rig.s3servers import S3Server
from vmkeep.buckets import Credentials
from vmkeep.errors import (
    InvalidRequest,
    ObjectMissing,
    PermissionRefused,
    RepositoryNotFound,
    StoreError,
    TargetExists,
)
from vmkeep.repository.bucket import Bucket
from vmkeep.repository.intents import damaged_notes
from vmkeep.repository.probe import Weakness, _told, probe, weaknesses
from vmkeep.repository.prune import PruneOptions, PruneReport
from vmkeep.repository.repository import Repository
from vmkeep.repository.signedrequest import ask
from vmkeep.repository.store import ObjectStore, open_store

CONTENT = b"sealed" * 1000


@pytest.fixture
def between() -> Iterator[Proxy]:
    with s3proxy.proxy(s3servers.swift().endpoint) as made:
        yield made


@pytest.fixture
def store(between: Proxy) -> ObjectStore:
    return _store(between)


def _store(between: Proxy, patience: float = 20) -> ObjectStore:
    server = s3servers.swift()
    return open_store(f"s3://{server.new_bucket()}/p", server.access(endpoint=between.endpoint, patience=patience))


@pytest.mark.in_turn(3)
@pytest.mark.parametrize(
    "fault",
    [Fault.LOST_ANSWER, Fault.BROKEN_REQUEST, Fault.SLOW_DOWN, Fault.TOO_MANY, Fault.CONFLICT, Fault.INTERNAL],
)
def test_put_that_fails_on_the_way_is_made_again_and_stands_once(
    store: ObjectStore, between: Proxy, fault: Fault
) -> None:
    between.once(fault, "PUT", times=2)
    store.put("packs/ab/x", CONTENT)
    assert store.get("packs/ab/x") == CONTENT
    with pytest.raises(TargetExists):
        store.put("packs/ab/x", CONTENT)


@pytest.mark.parametrize("there", [b"other" * 1200, b"another"])
def test_what_another_put_is_not_taken_for_the_own_object_whose_answer_was_lost(
    store: ObjectStore, between: Proxy, there: bytes
) -> None:
    assert len(CONTENT) == 6000
    store.put("points/x", there)
    between.once(Fault.LOST_ANSWER, "PUT")
    with pytest.raises(TargetExists):
        store.put_pack("points/x", [CONTENT])  # which does not look before
    assert store.get("points/x") == there


@pytest.mark.in_turn(2)
@pytest.mark.parametrize("fault", [Fault.CUT_ANSWER, Fault.LOST_ANSWER, Fault.SLOW_DOWN, Fault.TOO_MANY])
def test_reads_that_break_are_made_again_and_never_give_less(store: ObjectStore, between: Proxy, fault: Fault) -> None:
    store.put("points/x", CONTENT)
    between.once(fault, "GET", times=2)
    assert store.get("points/x") == CONTENT
    between.once(fault, "GET", times=2)
    assert bytes(store.ranges("points/x", [(7, 1000)])[0]) == CONTENT[7:1007]
    between.once(fault, "GET", times=2)
    assert [item.size_bytes for item in store.list("points/")] == [len(CONTENT)]
    if fault is not Fault.CUT_ANSWER:
        between.once(fault, "HEAD", times=2)
        assert store.stat("points/x").size_bytes == len(CONTENT)


def test_page_of_a_list_that_breaks_does_not_begin_it_anew(
    store: ObjectStore, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmkeep.repository.bucket._PAGE", 3)
    names = {f"points/{number}" for number in range(8)}
    for name in names:
        store.put(name, b"x")
    between.once(Fault.CUT_ANSWER, "GET", "start-after")
    assert {item.name for item in store.list("points/")} == names
    between.once(Fault.LIST_AGAIN, "GET", "start-after", times=99)
    with pytest.raises(StoreError, match="out of order"):
        list(store.list("points/"))


def test_name_that_no_repository_has_is_told_and_not_skipped(store: ObjectStore) -> None:
    bucket = store.location.removeprefix("s3://").partition("/")[0]
    s3servers.swift().ask("PUT", f"/{bucket}/p/points//x", b"q")
    with pytest.raises(StoreError, match="an object whose name no repository has") as raised:
        list(store.list("points/"))
    assert "Remove it" in raised.value.hint


def test_renewal_that_the_server_still_tells_the_old_time_of_is_waited_for(
    store: ObjectStore, between: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("intents/x", b"0")
    store.stat("intents/x")
    between.once(Fault.STALE, "HEAD", times=2)
    renewed = store.renew("intents/x", b"1")
    assert renewed == store.stat("intents/x").modified
    monkeypatch.setattr("vmkeep.repository.bucket._FRESH_SECONDS", 0.5)
    between.once(Fault.STALE, "HEAD", times=99)
    with pytest.raises(StoreError, match="goes on telling"):
        store.renew("intents/x", b"2")


def test_delete_whose_answer_was_lost_is_done_and_what_is_gone_is_told(store: ObjectStore, between: Proxy) -> None:
    store.put("points/x", b"x")
    between.once(Fault.LOST_ANSWER, "DELETE")
    between.choose = lambda method, path, inner=between.choose: inner("DELETE" if method == "POST" else method, path)  # type: ignore[misc]
    store.delete("points/x")
    with pytest.raises(ObjectMissing):
        store.delete("points/x")


@pytest.mark.in_turn(1)
@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.LOST_ANSWER, Fault.MUTE])
def test_server_that_goes_on_failing_is_given_up_within_the_patience(between: Proxy, fault: Fault) -> None:
    store = _store(between, patience=1.5)
    store.put("points/x", b"x")
    between.choose = lambda _method, _path: fault
    began = time.monotonic()
    with pytest.raises(StoreError) as raised:
        store.get("points/x")
    assert time.monotonic() - began < 4
    assert "\x1b" not in raised.value.message
    assert raised.value.path == f"{store.location}/points/x"


def test_server_that_is_not_there_is_told_soon_although_the_patience_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmkeep.repository.bucket._STRANGER_SECONDS", 0.5)
    access = s3servers.swift().access(endpoint=f"http://127.0.0.1:{s3servers.free_port()}", patience=900)
    with pytest.raises(StoreError, match="nothing listens there") as raised:
        open_store("s3://bucket/p", access).get("format")
    assert "endpoint" in raised.value.hint


def test_refusals_say_what_to_correct_and_show_no_secret() -> None:
    server = s3servers.swift()
    bucket = server.new_bucket()
    wrong = Credentials(server.user.access_key, "not-the-secret")
    for store, kind, word in (
        (open_store(f"s3://{bucket}/p", server.access(wrong)), PermissionRefused, "secret key"),
        (open_store("s3://no-such-bucket/p", server.access()), RepositoryNotFound, "Make the bucket"),
    ):
        with pytest.raises(kind) as raised:
            store.get("format")
        assert word in raised.value.hint
        said = "".join(traceback.format_exception(raised.value)) + f"{raised.value.hint} {store!r} {vars(store)}"
        assert "not-the-secret" not in said
        assert "StringToSign" not in said
    with pytest.raises(InvalidRequest):
        open_store("s3://bucket", None)


def test_server_is_known_by_its_certificate(tmp_path: Path) -> None:
    server, authority = s3servers.swift(), Authority("vmkeep tests")
    certificate, key = authority.certify("server", server=True)
    (tmp_path / "server.pem").write_bytes(certificate + key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem")
    location = f"s3://{server.new_bucket()}/p"
    with s3proxy.proxy(server.endpoint, tls=context) as between:
        access = server.access(endpoint=between.endpoint)
        trusted = open_store(location, replace(access, ca_pem=authority.pem.decode()))
        assert isinstance(trusted, Bucket)
        trusted.put("points/x", b"x")
        assert trusted.get("points/x") == b"x"
        assert _told(trusted, "versioning", lambda status, _body: str(status), "") == "200"
        with pytest.raises(StoreError, match="authority that is not known here") as raised:
            open_store(location, access).get("points/x")
        assert "ca_file" in raised.value.hint


def test_repository_that_is_copied_into_a_bucket_is_the_same(server: S3Server, place: str, tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    bucket = open_store(place, server.access())
    for path in sample.location.rglob("*"):
        if path.is_file():
            bucket.put(str(path.relative_to(sample.location)), path.read_bytes())
    repository = Repository.open(place, opener(sample.key), access=server.access())
    report = repository.verify_all()
    assert (report.findings, report.unreadable) == ((), ())
    assert set(report.points) == {point.id for point in sample.points}
    assert read_whole(repository, sample.points[1].disks[0].stored) == sample.images[sample.points[1].id][0]
    with pytest.raises(TargetExists, match="is a vmkeep repository already"):
        Repository.create(place, sample.key, access=server.access())
    with pytest.raises(RepositoryNotFound, match="there is no repository at") as raised:
        Repository.open(f"{place}/below", opener(sample.key), access=server.access())
    assert "prefix" in raised.value.hint


def test_pack_is_put_in_one_request(store: ObjectStore, between: Proxy) -> None:
    content = hashlib.shake_256(b"x").digest(16 << 20)
    store.put_pack("packs/ab/x", [content, b"tail"])
    assert [method for method, _ in between.seen] == ["PUT"]
    assert store.stat("packs/ab/x").size_bytes == (16 << 20) + 4


def _bucket(location: str, server: S3Server, **access: str) -> Bucket:
    store = open_store(location, server.access(**access))  # type: ignore[arg-type] # an endpoint
    assert isinstance(store, Bucket)
    return store


def test_probe_tells_each_server_as_it_is_and_leaves_nothing(server: S3Server, place: str) -> None:
    bucket = _bucket(place, server)
    report = probe(bucket)
    assert report.atomic_create is server.atomic
    assert (report.fresh, report.lists_at_once) == (True, True)
    assert abs(report.clock_ahead_seconds) < 5
    assert (report.versioning, report.object_lock) == ("off", "off")
    assert "packs/" in report.deletable
    assert [weakness for weakness, _ in weaknesses(report)] == ([] if server.atomic else [Weakness.RACES])
    assert list(bucket.list("")) == []


def test_versions_and_locks_are_told(server: S3Server) -> None:
    bucket = server.new_bucket()
    enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    server.ask("PUT", f"/{bucket}", enabled, versioning="")
    found = _bucket(f"s3://{bucket}/p", server)
    assert probe(found).versioning == "on"
    # Ceph's gateway ignores the condition of a create in such a bucket, so it is looked before.
    found.put("keyring/0000000002", b"one")
    with pytest.raises(TargetExists):
        found.put("keyring/0000000002", b"another")
    assert found.get("keyring/0000000002") == b"one"


def _locking_bucket(days: int) -> tuple[S3Server, str]:
    """Make a bucket of Ceph's that locks what is put for so many days."""
    server = s3servers.ceph()
    name = f"locked{secrets.token_hex(4)}"
    made = ask(
        server.access(),
        server.user,
        "PUT",
        f"/{name}",
        headers={"x-amz-bucket-object-lock-enabled": "true"},
    )
    assert made.status == 200, made
    rule = b"<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>%d</Days></DefaultRetention></Rule>" % days
    enabled = b"<ObjectLockEnabled>Enabled</ObjectLockEnabled>"
    body = b"<ObjectLockConfiguration>" + enabled + rule + b"</ObjectLockConfiguration>"
    assert ask(server.access(), server.user, "PUT", f"/{name}", query={"object-lock": ""}, body=body).status == 200
    return server, name


def test_repository_works_in_a_bucket_that_locks_what_is_put_and_its_term_is_told(tmp_path: Path) -> None:
    server, name = _locking_bucket(days=30)
    report = probe(_bucket(f"s3://{name}/p", server))
    assert (report.versioning, report.object_lock, report.locked_days) == ("on", "on", 30)

    sample = make_sample(tmp_path)
    objects = [path for path in sample.location.rglob("*") if path.is_file()]
    found = _bucket(f"s3://{name}/p", server)
    for path in objects:
        found.put(str(path.relative_to(sample.location)), path.read_bytes())
    repository = Repository.open(f"s3://{name}/p", opener(sample.key), access=server.access())
    repository.begin(purpose="test", host="a", cache=tmp_path / "cache").abort()
    point = sample.points[1]
    repository.delete_point(point.id)  # so it looks; the version stays
    versions = server.ask("GET", f"/{name}", versions="", prefix=f"p/points/{point.id}").body.decode()
    version = re.search(r"<Version>.*?<VersionId>([^<]+)<", versions, re.DOTALL)
    assert version
    where = f"/{name}/p/points/{point.id}"
    refused = ask(server.access(), server.user, "DELETE", where, query={"versionId": version[1]})
    assert refused.status == 403
    marker = re.search(r"<DeleteMarker>.*?<VersionId>([^<]+)<", versions, re.DOTALL)
    assert marker
    server.ask("DELETE", where, versionId=marker[1])
    assert repository.point(point.id) == point


def test_what_was_put_a_third_of_a_term_ago_is_locked_anew_by_a_prune_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, name = _locking_bucket(days=30)
    sample = make_sample(tmp_path)
    found = _bucket(f"s3://{name}/p", server)
    for path in (path for path in sample.location.rglob("*") if path.is_file()):
        found.put(str(path.relative_to(sample.location)), path.read_bytes())
    repository = Repository.open(f"s3://{name}/p", opener(sample.key), access=server.access())
    begun = found.now()

    def prune(days: float) -> PruneReport:
        monkeypatch.setattr(Bucket, "now", lambda _bucket: begun + timedelta(days=days))
        return repository.prune(PruneOptions(), host="a", directory=tmp_path, tell=lambda _stage: None)

    def locked_until(what: str) -> str:
        told = server.ask("GET", f"/{name}/p/{what}", retention="").body.decode()
        return str(re.findall(r"<RetainUntilDate>([^T]+)T", told)[0])

    point = f"points/{sample.points[0].id}"
    assert prune(9).locked_objects == 1  # `format`; all else is younger than a third
    assert locked_until(point) == f"{begun + timedelta(days=30):%Y-%m-%d}"
    found.delete_all([item.name for item in found.list("locked/")])
    report = prune(15)
    packs = [item.name for item in found.list("packs/")]
    assert report.locked_objects >= len(packs) + 3
    assert report.locked_until == begun + timedelta(days=35)
    for what in (point, "format", "keyring/0000000001", *packs):
        assert locked_until(what) == f"{begun + timedelta(days=45):%Y-%m-%d}", what
    (note,) = list(found.list("locked/"))
    assert prune(0.001).locked_objects == 0
    assert [item.name for item in found.list("locked/")] == [note.name]
    limited = Repository.open(f"s3://{name}/p", opener(sample.key), access=server.access())
    assert limited.verify_all().sound


def test_server_that_shows_what_was_before_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmkeep.repository.bucket._FRESH_SECONDS", 0.3)
    monkeypatch.setattr("vmkeep.repository.probe.ROUNDS", 1)
    server = s3servers.swift()
    with s3proxy.proxy(server.endpoint) as between:
        between.choose = lambda method, _path: Fault.STALE if method == "HEAD" else None
        bucket = _bucket(f"s3://{server.new_bucket()}/p", server, endpoint=between.endpoint)
        report = probe(bucket)
    assert not report.fresh
    assert Weakness.STALE in dict(weaknesses(report))


def test_what_may_not_be_deleted_is_told_and_what_is_left_of_the_trial_is_no_damage() -> None:
    server = s3servers.ceph()
    bucket = server.new_bucket()
    own = {"AWS": ["arn:aws:iam:::user/other"]}
    below = f"arn:aws:s3:::{bucket}"
    policy = [
        {"Effect": "Allow", "Principal": own, "Action": ["s3:ListBucket"], "Resource": [below]},
        {"Effect": "Allow", "Principal": own, "Action": ["s3:GetObject", "s3:PutObject"], "Resource": [f"{below}/*"]},
        {"Effect": "Allow", "Principal": own, "Action": ["s3:DeleteObject"], "Resource": [f"{below}/p/states/*"]},
    ]
    body = json.dumps({"Version": "2012-10-17", "Statement": policy}).encode()
    server.ask("PUT", f"/{bucket}", body, policy="")
    limited = open_store(f"s3://{bucket}/p", server.access(server.other))
    assert isinstance(limited, Bucket)
    report = probe(limited)
    assert report.deletable == ("states/",)
    assert (report.versioning, report.atomic_create, report.fresh) == ("unknown", True, True)
    assert list(limited.list("intents/"))
    left = [note for note in damaged_notes(limited) if "no object" in str(note)]
    assert left == []
