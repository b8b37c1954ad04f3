"""The stores that the contract holds for: a directory, and a bucket of each real server."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.rig import s3servers
from tests.rig.s3servers import S3Server
from vmkeep.repository.store import ObjectStore, create_store


@pytest.fixture(params=["directory", *s3servers.SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "directory":
        return create_store(str(tmp_path / "store"))
    server = s3servers.SERVERS[request.param]()
    return create_store(f"s3://{server.new_bucket()}/some/prefix", server.access())


@pytest.fixture(params=list(s3servers.SERVERS))
def server(request: pytest.FixtureRequest) -> S3Server:
    return s3servers.SERVERS[request.param]()


@pytest.fixture
def place(server: S3Server) -> str:
    return f"s3://{server.new_bucket()}/{secrets.token_hex(2)}"
