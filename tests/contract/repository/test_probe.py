"""What is found out of a real server, and of one that lies, before anything is entrusted to it."""

from __future__ import annotations

import json

import pytest

from tests.rig import s3proxy, s3servers
from tests.rig.s3proxy import Fault
from tests.rig.s3servers import S3Server
from vmkeep.errors import TargetExists
from vmkeep.repository.bucket import Bucket
from vmkeep.repository.intents import damaged_notes
from vmkeep.repository.probe import Weakness, probe, weaknesses
from vmkeep.repository.store import open_store


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
