"""What a server shows: made when it must be, kept as long as it will do, and never half written."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from tests.rig.fleet import home
from vmkeep.errors import InvalidRequest, KeyMissing
from vmkeep.flows.server_key import SERVER_DAYS, prepare_server
from vmkeep.keys.authority import Authorities

NOW = dt.datetime.now(dt.UTC)


def test_certificate_is_kept_until_half_of_its_term_its_names_or_its_authority_change(tmp_path: Path) -> None:
    settings = home(tmp_path)
    assert prepare_server(settings, ["vmkeep.example"], NOW)
    assert not prepare_server(settings, ["vmkeep.example"], NOW + dt.timedelta(days=SERVER_DAYS / 3))
    assert prepare_server(settings, ["vmkeep.example"], NOW + dt.timedelta(days=SERVER_DAYS / 2))
    assert prepare_server(settings, ["vmkeep.example", "192.0.2.7"], NOW)
    assert not prepare_server(settings, ["192.0.2.7"], NOW)
    Authorities.load(settings.authority_path).rotated(NOW).replace(settings.authority_path)
    assert prepare_server(settings, ["192.0.2.7"], NOW)
    assert not prepare_server(settings, ["192.0.2.7"], NOW)
    settings.server_key_path.write_bytes(settings.server_key_path.read_bytes()[:-100])
    assert prepare_server(settings, ["192.0.2.7"], NOW)
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir() if path.is_file())


def test_authority_is_made_once_and_a_damaged_one_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "authority.key"
    with pytest.raises(KeyMissing):
        Authorities.load(path)
    drawn = Authorities.load_or_draw(path, NOW)
    assert Authorities.load_or_draw(path, NOW).present.fingerprint == drawn.present.fingerprint
    content = path.read_bytes()
    for damaged in (content[:-20], content.replace(b'"version": 1', b'"version": 2'), b"[]", b"{}", b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidRequest, match="is not an authority") as raised:
            Authorities.load_or_draw(path, NOW)
        assert raised.value.__cause__ is None
        assert path.read_bytes() == damaged
