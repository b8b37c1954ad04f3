"""Files of checkpoints and snapshots: believed by whose key has signed them, and what is thought of that key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.moments.test_bundle import CHAIN
from vmkeep.catalog import Catalog, SqlCatalog, Trust
from vmkeep.config import Settings, load_settings, prepare_home
from vmkeep.flows.own_key import known_key, own_key, renew_own_key
from vmkeep.flows.signed_exports import export_signer, is_trusted_export
from vmkeep.keys.signing import SigningKey
from vmkeep.moments import BundleSignature, format_bundle, parse_bundle


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "home", environ={})


@pytest.fixture
def catalog(settings: Settings) -> Iterator[Catalog]:
    prepare_home(settings)
    with SqlCatalog.open(settings.catalog_path) as catalog:
        yield catalog


def signed(sign: Callable[[bytes], tuple[bytes, bytes]] | None) -> BundleSignature | None:
    return parse_bundle(format_bundle(CHAIN, sign)).signature


def test_own_files_are_believed_also_after_the_key_was_renewed_or_the_catalogue_lost(
    settings: Settings, catalog: Catalog
) -> None:
    assert export_signer(settings) is None  # no point was made yet
    assert not is_trusted_export(settings, lambda: catalog, signed(None))
    own_key(settings, catalog)
    signature = signed(export_signer(settings))
    assert is_trusted_export(settings, lambda: catalog, signature)
    renew_own_key(settings, catalog)
    assert is_trusted_export(settings, lambda: catalog, signature)
    again = signed(export_signer(settings))
    assert again != signature
    catalog.close()
    settings.catalog_path.unlink()

    def none() -> Catalog:
        raise AssertionError

    assert is_trusted_export(settings, none, again)
    assert not is_trusted_export(settings, none, signature)


@pytest.mark.parametrize(
    ("trust", "believed"), [(Trust.TRUSTED, True), (Trust.UNKNOWN, False), (Trust.DISTRUSTED, False)]
)
def test_files_of_others_are_believed_when_their_host_is(
    settings: Settings, catalog: Catalog, trust: Trust, *, believed: bool
) -> None:
    other = SigningKey.draw(machine="0" * 32, host="beta")
    signature = signed(lambda text: (other.public_key, other.sign(text)))
    assert not is_trusted_export(settings, lambda: catalog, signature)
    known = known_key(other)
    catalog.see_host_key(type(known)(known.fingerprint, known.key, known.installation, known.host))
    catalog.trust_host(other.fingerprint, trust)
    assert is_trusted_export(settings, lambda: catalog, signature) == believed
    # Another's key, and a signature that it has not made.
    assert not is_trusted_export(settings, lambda: catalog, signed(lambda _: (other.public_key, b"\0" * 64)))
