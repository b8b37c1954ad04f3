"""Who is root on a host has its credentials for the bucket: with those of the guide nothing that was there is lost."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.rig import Disk, Host, MiB, s3proxy, s3servers
from tests.rig.cli import Vmkeep
from tests.rig.s3proxy import Proxy
from tests.system.truth import Truth
from vmkeep.buckets import Credentials
from vmkeep.repository.signedrequest import Answer, ask

pytestmark = pytest.mark.system
GUIDE = Path(__file__).parents[2] / "docs/guide/s3.md"
PREFIX = "site"


@pytest.fixture
def between(host: Host) -> Iterator[Proxy]:
    with s3proxy.proxy(s3servers.ceph().endpoint, inside=host.init_pid) as made:
        yield made


def _policy(bucket: str) -> bytes:
    found = re.search(r"<!-- tested: ceph -->\n```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    text = found[1].replace("BUCKET", bucket).replace("PREFIX", PREFIX)
    return text.replace("OWNER", "user").replace("HOST", "other").encode()


def _asked(who: Credentials, method: str, path: str, body: bytes = b"", **query: str) -> Answer:
    return ask(s3servers.ceph().access(), who, method, path, query=query, body=body)


def _versions(bucket: str) -> dict[str, list[tuple[str, bool]]]:
    """Return by key the versions, the newest first, and whether each is a mark of deletion."""
    found: dict[str, list[tuple[str, bool]]] = {}
    root = ET.fromstring(s3servers.ceph().ask("GET", f"/{bucket}", versions="").body)  # noqa: S314  our server
    for element in root:
        kind = element.tag.rpartition("}")[2]
        if kind in ("Version", "DeleteMarker"):
            told = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
            found.setdefault(told["Key"], []).append((told["VersionId"], kind == "DeleteMarker"))
    return found


def test_host_adds_points_and_destroys_nothing(host: Host, between: Proxy) -> None:
    server = s3servers.ceph()
    bucket = server.new_bucket()
    location = f"s3://{bucket}/{PREFIX}"
    enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    server.ask("PUT", f"/{bucket}", enabled, versioning="")
    server.ask("PUT", f"/{bucket}", _policy(bucket), policy="")
    owner, theirs = (Vmkeep(host, home=host.dir / "work" / name) for name in ("owner", "theirs"))
    server.introduce(owner.home, endpoint=between.endpoint)
    server.introduce(theirs.home, server.other, endpoint=between.endpoint)
    made = owner.json("init", "--repository", location)["init"]
    assert (made["bucket"]["versioning"], made["bucket"]["fresh"]) == ("on", True)
    (theirs.home / "keys").mkdir(mode=0o700)
    file = next((owner.home / "keys").glob("*.key"))
    (theirs.home / "keys" / file.name).write_bytes(file.read_bytes())
    (theirs.home / "keys" / file.name).chmod(0o600)

    adopted = theirs.json("init", "--repository", location, "--adopt", "--yes")["init"]
    assert adopted["bucket"]["deletable"] == []
    vm = host.define("guest", disks=(Disk("vda", 4 * MiB),))
    vm.start(paused=True)
    vm.write_random("vda", start=0, length=3 * MiB, seed=1)
    first, truth = theirs.backup("guest"), Truth.of(vm)
    vm.write_random("vda", start=MiB, length=MiB, seed=2)
    second, later = theirs.backup("guest"), Truth.of(vm)
    assert second["kind"] == "incremental"
    theirs.json("state", "capture", "guest")
    assert theirs.fails("point", "delete", first["id"], "--yes").code == "permission-denied"
    assert theirs.json("verify", "--all")["ok"] is True

    kept = {key: versions for key, versions in _versions(bucket).items() if "/intents/" not in key}
    contents = {
        key: hashlib.sha256(_asked(server.user, "GET", f"/{bucket}/{key}").body).digest()
        for key, versions in kept.items()
        if not versions[0][1]
    }
    assert len(contents) > 6
    refused = 0
    for key, versions in kept.items():
        refused += _asked(server.other, "DELETE", f"/{bucket}/{key}").status == 403
        for version, _ in versions:
            refused += _asked(server.other, "DELETE", f"/{bucket}/{key}", versionId=version).status == 403
        _asked(server.other, "PUT", f"/{bucket}/{key}", b"destroyed")
    assert refused == sum(1 + len(versions) for versions in kept.values())
    names = "".join(f"<Object><Key>{key}</Key></Object>" for key in kept)
    _asked(server.other, "POST", f"/{bucket}", f"<Delete>{names}</Delete>".encode(), delete="")
    suspended = enabled.replace(b"Enabled", b"Suspended")
    for query, body in (("versioning", suspended), ("policy", b"{}"), ("lifecycle", b"<LifecycleConfiguration/>")):
        assert _asked(server.other, "PUT", f"/{bucket}", body, **{query: ""}).status in (400, 403)
    assert _asked(server.other, "DELETE", f"/{bucket}", policy="").status == 403

    assert owner.fails("verify", "--all").status in range(20, 30)
    for key, versions in _versions(bucket).items():
        if key in kept:
            for version, _ in [each for each in versions if each not in kept[key]]:
                server.ask("DELETE", f"/{bucket}/{key}", expect=204, versionId=version)
    for key, digest in contents.items():
        assert hashlib.sha256(_asked(server.user, "GET", f"/{bucket}/{key}").body).digest() == digest, key
    assert theirs.json("verify", "--all")["ok"] is True
    truth.assert_files(theirs.restore(first, host.dir / "work" / "first"))
    later.assert_files(theirs.restore(second, host.dir / "work" / "second"))
