"""What the settings say of keys that are held elsewhere, and what is said about wrong ones."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from vmkeep.config import load_settings
from vmkeep.errors import InvalidRequest
from vmkeep.keys.provider import provider_key_id
from vmkeep.providers import ProviderSettings, address_of, read_providers

TRANSIT = 'provider = "transit"\nkey = "k"\naddress = "https://h:8200"\ntoken_file = "/t"\n'
KMIP = 'provider = "kmip"\nkey = "1"\naddress = "h"\ncertificate_file = "/c"\nprivate_key_file = "/p"\nca_file = "/a"\n'
PKCS11 = 'provider = "pkcs11"\nkey = "k"\nmodule = "/m"\ntoken = "t"\npin_file = "/p"\n'
GUIDE = Path(__file__).parents[3] / "docs/guide/settings.md"


def read(text: str) -> ProviderSettings:
    return read_providers("vmkeep.toml", tomllib.loads(f"[key.mine]\n{text}")["key"])[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('provider = "tape"', "'provider'"),
        ("provider = 3", "'provider'"),
        ("", "'provider'"),
        (TRANSIT + 'pin_file = "/p"', "'pin_file'"),
        (TRANSIT + 'token = "hvs.hunter2"', "'token'"),
        (TRANSIT.replace('"/t"', '"relative"'), "'token_file'"),
        (TRANSIT.replace("https", "http"), "https://"),
        (TRANSIT.replace("//h", "//user:hunter2@h"), "password"),
        (TRANSIT.replace('"https://h:8200"', '"h:8200"'), "https://"),
        (TRANSIT + 'role_id = "r"\nsecret_id_file = "/s"', "either"),
        (TRANSIT.replace('token_file = "/t"', 'role_id = "r"'), "either"),
        (TRANSIT + "timeout_seconds = 0", "'timeout_seconds'"),
        (TRANSIT + "timeout_seconds = true", "'timeout_seconds'"),
        (TRANSIT + "timeout_seconds = 121", "'timeout_seconds'"),
        (TRANSIT.replace('"k"', '""'), "'key'"),
        (TRANSIT.replace('"k"', '"a\\nb"'), "'key'"),
        (PKCS11.replace('pin_file = "/p"\n', ""), "'pin_file'"),
        (PKCS11 + 'pin = "1234"', "'pin'"),
        (KMIP.replace('"h"', '"h:port"'), "'address'"),
        (KMIP.replace('"h"', '"h/path"'), "'address'"),
        (KMIP.replace('key = "1"\n', ""), "'key'"),
    ],
)
def test_table_that_cannot_be_meant_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest, match="mine") as raised:
        read(text)
    assert named in raised.value.message
    assert "hunter2" not in raised.value.message


@pytest.mark.parametrize("text", ["key = 3", "key = [1]", '[key]\nprovider = "transit"'])
def test_key_that_is_no_table_of_tables_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "vmkeep.toml").write_text(text)
    with pytest.raises(InvalidRequest, match="'key'"):
        load_settings(home=tmp_path, environ={})


def test_every_example_of_the_guide_is_accepted(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(\[key\..*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    (tmp_path / "vmkeep.toml").write_text(example)
    assert [each.name for each in load_settings(home=tmp_path, environ={}).providers] == ["vault", "hsm", "kms"]


def test_key_is_the_same_on_every_host_that_names_it_alike() -> None:
    here = read(TRANSIT)
    assert provider_key_id(here) == provider_key_id(read(TRANSIT.replace("//h:", "//other:") + "timeout_seconds = 3"))
    others = [TRANSIT.replace('"k"', '"l"'), TRANSIT + 'mount = "m"', TRANSIT + 'label = "b"', PKCS11, KMIP]
    assert len({provider_key_id(here), *(provider_key_id(read(other)) for other in others)}) == 6


@pytest.mark.parametrize(
    ("address", "place"),
    [("h", ("h", 5696)), ("h:1", ("h", 1)), ("[::1]:7", ("::1", 7)), ("10.0.0.1", ("10.0.0.1", 5696))],
)
def test_address_of_a_kmip_server(address: str, place: tuple[str, int]) -> None:
    assert address_of(read(KMIP.replace('"h"', f'"{address}"'))) == place


def test_file_of_the_passphrase_is_an_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "vmkeep.toml").write_text('key_passphrase_file = "relative"')
    with pytest.raises(InvalidRequest, match="key_passphrase_file"):
        load_settings(home=tmp_path, environ={})
