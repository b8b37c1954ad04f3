"""What every holder of a key promises, by real ones: a key file, a PKCS#11 token, OpenBao's transit, a KMIP server."""

from __future__ import annotations

import dataclasses
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.rig.keyservers import Authority, Bao, Holder, bao, kmip_server, private, soft_token
from vmkeep.errors import HomeExposed, KeyUnknown, ProviderRefused, ProviderUnreachable, WrongKey
from vmkeep.keys import KeyFile
from vmkeep.keys.provider import KeyProvider, ProviderKey
from vmkeep.providers import ProviderSettings, read_providers

# PyKMIP and what it builds upon warn of their own ways.
pytestmark = pytest.mark.filterwarnings("ignore")

HOLDERS: dict[str, Callable[[], Holder]] = {"pkcs11": soft_token, "transit": bao, "kmip": kmip_server}
SERVERS = ["transit", "kmip"]
SECRET = bytes(range(32))


def settings_of(holder: Holder, name: str = "held", **other: str) -> ProviderSettings:
    return read_providers("vmkeep.toml", tomllib.loads(holder.toml(name, **other))["key"])[0]


@pytest.fixture
def holder(request: pytest.FixtureRequest) -> Holder:
    return HOLDERS[request.param]()


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Holder:
    return HOLDERS[request.param]()


@pytest.fixture(params=["key-file", *HOLDERS])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[KeyProvider, KeyProvider]]:
    """Two keys of one kind."""
    if request.param == "key-file":
        yield KeyFile.generate(tmp_path / "keys"), KeyFile.generate(tmp_path / "keys")
        return
    holder = HOLDERS[request.param]()
    with ProviderKey(settings_of(holder)) as one, ProviderKey(settings_of(holder, key=holder.new_key())) as other:
        yield one, other


def test_secret_opens_with_the_key_and_the_data_it_was_sealed_with_and_with_no_other(
    pair: tuple[KeyProvider, KeyProvider],
) -> None:
    key, other = pair
    wrapped = key.wrap(SECRET, b"this")
    assert SECRET not in wrapped
    assert key.unwrap(wrapped, b"this") == SECRET
    assert key.wrap(SECRET, b"this") != wrapped
    with pytest.raises(WrongKey):
        key.unwrap(wrapped, b"that")
    with pytest.raises(WrongKey):
        other.unwrap(wrapped, b"this")
    assert key.key_id != other.key_id
    assert len(key.key_id) == 32
    key.check()


def test_envelope_that_was_changed_anywhere_does_not_open(pair: tuple[KeyProvider, KeyProvider]) -> None:
    key, _ = pair
    wrapped = key.wrap(SECRET, b"this")
    places = {0, 1, 2, 5, len(wrapped) // 2, len(wrapped) - 17, len(wrapped) - 1}
    for place in sorted(places):
        changed = bytearray(wrapped)
        changed[place] ^= 0x81
        with pytest.raises(WrongKey):
            key.unwrap(bytes(changed), b"this")
    for cut in (0, 1, 2, 20, len(wrapped) - 1):
        with pytest.raises(WrongKey):
            key.unwrap(wrapped[:cut], b"this")


@pytest.mark.parametrize("holder", HOLDERS, indirect=True)
def test_key_that_is_not_there_or_was_deleted_is_named(holder: Holder) -> None:
    with pytest.raises(KeyUnknown, match="nowhere"):
        ProviderKey(settings_of(holder, key="nowhere-9")).check()
    key = holder.new_key()
    deleted = ProviderKey(settings_of(holder, key=key))
    wrapped = deleted.wrap(SECRET, b"this")
    deleted.close()
    holder.delete_key(key)
    with pytest.raises(KeyUnknown, match=key):
        deleted.unwrap(wrapped, b"this")


@pytest.mark.parametrize("server", ["kmip"], indirect=True)
def test_server_that_comes_back_in_time_is_asked_again(server: Holder) -> None:
    key = ProviderKey(settings_of(server), sleep=lambda _seconds: server.start())
    wrapped = key.wrap(SECRET, b"this")
    server.stop()
    try:
        assert key.unwrap(wrapped, b"this") == SECRET
    finally:
        key.close()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_server_that_says_nothing_is_not_waited_for(server: Holder) -> None:
    settings = dataclasses.replace(settings_of(server), timeout_seconds=1)
    key = ProviderKey(settings)
    wrapped = key.wrap(SECRET, b"this")
    server.suspend()
    begun = time.monotonic()
    try:
        with pytest.raises(ProviderUnreachable, match="held"):
            key.unwrap(wrapped, b"this")
    finally:
        server.resume()
    assert time.monotonic() - begun < 4
    assert key.unwrap(wrapped, b"this") == SECRET
    key.close()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_server_that_is_not_there_is_unreachable(server: Holder) -> None:
    address = server.fields["address"].rpartition(":")[0] + ":1"
    settings = dataclasses.replace(settings_of(server, address=address), timeout_seconds=1)
    with pytest.raises(ProviderUnreachable, match="localhost:1"):
        ProviderKey(settings).check()


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_server_that_cannot_prove_who_it_is_is_told_nothing(server: Holder, tmp_path: Path) -> None:
    foreign = private(tmp_path / "ca.pem", Authority("somebody").pem)
    with pytest.raises(ProviderRefused, match="certificate"):
        ProviderKey(settings_of(server, ca_file=foreign)).check()


def test_certificate_of_another_host_is_refused_by_kmip(tmp_path: Path) -> None:
    server = kmip_server()
    # The certificate is for localhost, and not for the address that it has.
    with pytest.raises(ProviderRefused, match="certificate"):
        ProviderKey(settings_of(server, address=f"127.0.0.1:{server.port}")).check()
    certificate, key = Authority("somebody").certify("client", server=False)
    mine = {
        "certificate_file": private(tmp_path / "mine.pem", certificate),
        "private_key_file": private(tmp_path / "mine.key", key),
    }
    # With TLS 1.2, which is all that PyKMIP's server speaks, it ends the handshake without a word of why.
    with pytest.raises((ProviderRefused, ProviderUnreachable)):
        ProviderKey(dataclasses.replace(settings_of(server, **mine), timeout_seconds=1)).check()


def test_token_with_the_two_rights_is_enough_for_transit_and_none_is_not(tmp_path: Path) -> None:
    server = bao()
    assert isinstance(server, Bao)
    rights = "".join(
        f'path "transit/{verb}/{server.fields["key"]}" {{ capabilities = ["update"] }}\n'
        for verb in ("encrypt", "decrypt")
    )
    enough = private(tmp_path / "enough", server.token(rights))
    ProviderKey(settings_of(server, token_file=enough)).check()
    none = private(tmp_path / "none", server.token('path "secret/*" { capabilities = ["read"] }'))
    with pytest.raises(ProviderRefused, match="permission denied") as refused:
        ProviderKey(settings_of(server, token_file=none)).check()
    assert Path(none).read_text() not in str(refused.value)


def test_role_with_the_two_rights_is_enough_for_transit_and_a_secret_that_is_no_good_is_told(tmp_path: Path) -> None:
    server = bao()
    assert isinstance(server, Bao)
    rights = "".join(
        f'path "transit/{verb}/{server.fields["key"]}" {{ capabilities = ["update"] }}\n'
        for verb in ("encrypt", "decrypt")
    )
    role, secret = server.role(rights)

    def by_role(text: str) -> ProviderSettings:
        file = private(tmp_path / f"secret-{len(list(tmp_path.iterdir()))}", f"{text}\n")
        fields = {name: each for name, each in server.fields.items() if name != "token_file"}
        lines = [f"{name} = {each!r}" for name, each in {**fields, "role_id": role, "secret_id_file": file}.items()]
        return read_providers("vmkeep.toml", tomllib.loads("\n".join(["[key.held]", *lines]))["key"])[0]

    with ProviderKey(by_role(secret)) as key:
        sealed = key.wrap(SECRET, b"place")
        assert key.unwrap(sealed, b"place") == SECRET
    # It was good for one login: who finds it afterwards learns nothing, and it stands in no message.
    for no_good in (secret, "not-a-secret"):
        with ProviderKey(by_role(no_good)) as key, pytest.raises(ProviderRefused) as refused:
            key.unwrap(sealed, b"place")
        assert no_good not in str(refused.value.as_dict())


def test_wrong_pin_is_tried_once(tmp_path: Path) -> None:
    wrong = private(tmp_path / "pin", "0000\n")
    with pytest.raises(ProviderRefused, match="PinIncorrect"):
        ProviderKey(settings_of(soft_token(), pin_file=wrong)).check()


@pytest.mark.parametrize(
    ("make", "field"),
    [(soft_token, "pin_file"), (bao, "token_file"), (kmip_server, "private_key_file")],
    ids=["pkcs11", "transit", "kmip"],
)
def test_secret_that_others_may_read_is_not_used(make: Callable[[], Holder], field: str, tmp_path: Path) -> None:
    holder = make()
    exposed = tmp_path / "exposed"
    exposed.write_bytes(Path(holder.fields[field]).read_bytes())
    exposed.chmod(0o644)
    with pytest.raises(HomeExposed, match=field):
        ProviderKey(settings_of(holder, **{field: str(exposed)})).check()


def test_nothing_of_the_environment_leads_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = bao()
    monkeypatch.setenv("VAULT_ADDR", "https://127.0.0.1:1")
    monkeypatch.setenv("VAULT_TOKEN", "another")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    ProviderKey(settings_of(server)).check()
