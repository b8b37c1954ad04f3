"""How a bucket is reached: what settings, environment and files of the AWS tools say, and which of them counts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkeep.buckets import BucketAddress, Credentials, find_access, read_table
from vmkeep.config import load_settings, resolve_location
from vmkeep.errors import HomeExposed, InvalidRequest, PermissionRefused

ENDPOINT = "https://rgw.example:8443"
KEYS = {"AWS_ACCESS_KEY_ID": "AKE", "AWS_SECRET_ACCESS_KEY": "of-environment"}


@pytest.fixture
def user_home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    return tmp_path


def _write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def _section(name: str, key: str) -> str:
    return f"[{name}]\naws_access_key_id = {key}\naws_secret_access_key = s%cret-{key}\n"


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://backups", "backups", ""),
        ("s3://backups/", "backups", ""),
        ("s3://backups/vms/site-1/", "backups", "vms/site-1"),
        ("s3://B_1.x/a!b", "B_1.x", "a!b"),
    ],
)
def test_address_of_a_bucket_has_one_form(text: str, bucket: str, prefix: str) -> None:
    address = BucketAddress.parse(text)
    assert (address.bucket, address.prefix) == (bucket, prefix)
    assert BucketAddress.parse(str(address)) == address
    assert resolve_location(text) == str(address)


@pytest.mark.parametrize(
    "text",
    [
        *("s3://", "s3:///x", "s3://a", "s3://ab/../c", "s3://abc/./c", "s3://abc//c", "s3://abc/a b", "s3://abc/a#b"),
        *("s3://key:secret@abc/x", "s3://abc/x?endpoint=y", "s3://abc/ä", "s3://abc/\x1b", "gs://abc", "https://abc/x"),
        "s3://abc/" + "x" * 513,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        resolve_location(text)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = BucketAddress.parse(f"s3://{text}")
    except InvalidRequest:
        return
    assert BucketAddress.parse(str(address)) == address
    assert str(address).isascii()


def test_environment_comes_before_the_files_and_the_settings_before_both(user_home: Path) -> None:
    _write(user_home / ".aws/credentials", _section("default", "AKD") + _section("other", "AKO"))
    own = _write(user_home / "own", _section("default", "AKX") + "aws_session_token = t\n")

    def key(table: dict[str, str | bool], environ: dict[str, str]) -> str:
        found = find_access({"endpoint": ENDPOINT, **table}, environ, user_home).credentials
        assert found is not None
        return found.access_key

    assert key({}, KEYS) == "AKE"
    assert key({}, {}) == "AKD"
    assert key({}, {"AWS_PROFILE": "other"}) == "AKO"
    assert key({"profile": "other"}, KEYS) == "AKO"
    assert key({"credentials_file": str(own)}, KEYS) == "AKX"
    found = find_access({"endpoint": ENDPOINT, "credentials_file": str(own)}, {}, user_home).credentials
    assert found == Credentials("AKX", "s%cret-AKX", "t", str(own))


def test_session_of_the_environment_is_not_taken_for_keys_of_a_file(user_home: Path) -> None:
    _write(user_home / ".aws/credentials", _section("default", "AKD"))
    found = find_access({"endpoint": ENDPOINT}, {"AWS_SESSION_TOKEN": "of-another"}, user_home).credentials
    assert found is not None
    assert found.token == ""


def test_region_endpoint_and_style_are_found_as_by_the_aws_tools(user_home: Path) -> None:
    config = f"[default]\nregion = eu-central-1\n[profile own]\nregion = eu-west-3\nendpoint_url = {ENDPOINT}/\n"
    _write(user_home / ".aws/config", config, 0o644 & 0o600)
    plain = find_access({}, KEYS, user_home)
    assert (plain.endpoint, plain.region, plain.path_style) == ("", "eu-central-1", False)
    own = find_access({}, {**KEYS, "AWS_PROFILE": "own"}, user_home)
    assert (own.endpoint, own.region, own.path_style) == (ENDPOINT, "eu-west-3", True)
    told = find_access({"path_style": False}, {**KEYS, "AWS_ENDPOINT_URL": ENDPOINT, "AWS_REGION": "x"}, user_home)
    assert (told.endpoint, told.region, told.path_style) == (ENDPOINT, "x", False)


def test_identity_of_a_workload_is_left_to_who_sends_the_requests(user_home: Path) -> None:
    environ = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token", "AWS_ROLE_ARN": "arn:x"}
    found = find_access({"endpoint": ENDPOINT}, environ, user_home)
    assert found.credentials is None
    assert found.web_identity == {"web_identity_token_file": "/run/token", "role_arn": "arn:x"}
    assert find_access({}, {}, user_home).credentials is None  # the machine's own, at AWS


def test_no_credentials_and_those_that_others_may_read_are_refused(user_home: Path) -> None:
    with pytest.raises(PermissionRefused, match="no credentials"):
        find_access({"endpoint": ENDPOINT}, {}, user_home)
    with pytest.raises(PermissionRefused, match="no keys for the profile 'gone'"):
        find_access({"endpoint": ENDPOINT, "profile": "gone"}, KEYS, user_home)
    path = _write(user_home / ".aws/credentials", _section("default", "AKD"), 0o640)
    with pytest.raises(HomeExposed, match="credentials"):
        find_access({"endpoint": ENDPOINT}, {}, user_home)
    path.chmod(0o600)
    path.write_text("no section, and s3cret\n")
    with pytest.raises(InvalidRequest) as raised:
        find_access({"endpoint": ENDPOINT}, {}, user_home)
    assert "s3cret" not in f"{raised.value}{raised.value.hint}"


def test_no_secret_is_shown_of_what_was_found(user_home: Path) -> None:
    shown = repr(find_access({"endpoint": ENDPOINT}, {**KEYS, "AWS_SESSION_TOKEN": "t0ken"}, user_home))
    assert "AKE" in shown
    assert "of-environment" not in shown
    assert "t0ken" not in shown


@pytest.mark.parametrize(
    "table",
    [
        *(
            {"endpoint": value}
            for value in ("rgw", "ftp://x", "https://k:s@x", "https://x/y", "https://x?y", "http://")
        ),
        {"endpoint": "https://x:port"},
        {"region": 1},
        {"path_style": "yes"},
        {"ca_file": "relative"},
        {"secret_access_key": "x"},
        {"profile": " "},
        [],
    ],
)
def test_table_that_cannot_be_meant_is_refused_by_name(table: object) -> None:
    with pytest.raises(InvalidRequest, match="s3"):
        read_table("/home/vmkeep.toml", table)


def test_settings_hold_the_table_and_no_secret(tmp_path: Path) -> None:
    _write(tmp_path / "vmkeep.toml", f'repository = "s3://backups/vms"\n[s3]\nendpoint = "{ENDPOINT}"\n')
    settings = load_settings(home=tmp_path, environ=KEYS)
    assert (settings.repository, settings.s3) == ("s3://backups/vms", {"endpoint": ENDPOINT})
    assert "of-environment" not in repr(settings)
    assert settings.bucket_access(KEYS).patience_seconds == settings.stalled_after_seconds
    assert settings.access_to("/srv/vmkeep") is None
    _write(tmp_path / "vmkeep.toml", 'repository = "gs://backups/vms"\n')
    with pytest.raises(InvalidRequest):
        load_settings(home=tmp_path, environ={})


def test_policies_of_the_guide_are_documents_that_let_a_host_delete_its_leases_alone() -> None:
    guide = Path(__file__).parents[3] / "docs/guide/s3.md"
    policies = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", guide.read_text(), re.DOTALL)]
    assert len(policies) == 2
    for policy in policies:
        for statement in policy["Statement"]:
            deletes = "s3:DeleteObject" in statement["Action"]
            resources = statement["Resource"]
            assert deletes is (statement["Sid"] == "lease")
            assert not deletes or "PREFIX/intents/*" in str(resources)
            assert not any("Version" in action for action in statement["Action"] if action.startswith("s3:Delete"))
