"""How a bucket is reached: its address, the table ``[s3]`` of the settings, and what the AWS tools are told.

What the table leaves out is looked for where those tools do (environment, then ``~/.aws``), so that what works for
them works here. Secrets are read when a bucket is opened, and are in no settings, record or log of vmkeep's.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from vmkeep.errors import InvalidRequest, PermissionRefused
from vmkeep.filesystem import file_error
from vmkeep.ownership import refuse_exposed_file
from vmkeep.values import dataclass

SCHEME: Final = "s3://"
DEFAULT_REGION: Final = "us-east-1"
_DEFAULT_PROFILE: Final = "default"
_FILES: Final = ("ca_file", "credentials_file")
_TEXTS: Final = ("endpoint", "region", "profile")
_FLAGS: Final = ("path_style",)
_EXAMPLE: Final = 'Write it like this: [s3], and below it endpoint = "https://HOST", region = "us-east-1", ...'
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9!_.*'()-]+")
_MOST_PREFIX: Final = 512
_WEB_IDENTITY: Final = ("web_identity_token_file", "role_arn", "role_session_name")


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """``s3://BUCKET/PREFIX``. ``prefix`` has no slash at its ends, and is empty for a whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")

    @classmethod
    def parse(cls, location: str) -> BucketAddress:
        """Raises InvalidRequest for anything else, so also for names that not all servers take as they are."""
        bucket, _, prefix = location.removeprefix(SCHEME).partition("/")
        prefix = prefix.rstrip("/")
        segments = prefix.split("/") if prefix else []
        sound = all(_SEGMENT.fullmatch(each) and each not in (".", "..") for each in segments)
        if location.startswith(SCHEME) and _BUCKET.fullmatch(bucket) and sound and len(prefix) <= _MOST_PREFIX:
            return cls(bucket, prefix)
        raise InvalidRequest(
            f"{location!r} is no place for a repository: a bucket is written s3://BUCKET/PREFIX",
            hint="In PREFIX letters, digits and !-_.*'() may stand between slashes. What else is needed to reach the "
            "bucket stands in the table [s3] of the settings, never in its address (docs/guide/s3.md).",
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """What requests are signed with. ``source`` says where it was found, for people."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    source: str = ""


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """How buckets are reached. ``endpoint`` is empty for AWS itself, ``ca_pem`` for the system's authorities alone.

    ``credentials`` None: those of the machine or container that this runs in, or ``web_identity``, which are asked for
    and renewed by whoever sends the requests. ``patience_seconds`` bounds what one call takes with all its attempts.
    """

    endpoint: str = ""
    region: str = DEFAULT_REGION
    path_style: bool = False
    ca_pem: str = field(default="", repr=False)
    credentials: Credentials | None = None
    web_identity: Mapping[str, str] = field(default_factory=dict)
    patience_seconds: float = 900.0


def read_table(where: str, table: object) -> Mapping[str, str | bool]:
    """Return the table ``[s3]`` of the settings file ``where``. Raises InvalidRequest naming what cannot be meant."""
    if not isinstance(table, dict):
        raise InvalidRequest(f"{where}: setting 's3' must be a table", path=where, hint=_EXAMPLE)
    for name, value in table.items():
        problem = _problem(name, value)
        if problem:
            raise InvalidRequest(f"{where}: s3: {problem}", path=where, hint=_EXAMPLE)
    return dict(table)


def _problem(name: str, value: object) -> str:
    if name in _FLAGS:
        return "" if isinstance(value, bool) else f"{name!r} must be true or false"
    if name not in (*_FILES, *_TEXTS):
        return f"unknown setting {name!r}; those of s3 are {', '.join((*_TEXTS, *_FLAGS, *_FILES))}"
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        return f"{name!r} must be text in quotes"
    if name in _FILES and not value.startswith("/"):
        return f"{name!r} must be the absolute path of a file"
    return _endpoint_problem(value) if name == "endpoint" else ""


def _endpoint_problem(value: str) -> str:
    try:
        address = urlsplit(value)
        named = address.port is None or address.port > 0
    except ValueError:
        return "'endpoint' must be https://HOST or https://HOST:PORT"
    if address.username is not None or address.password is not None:
        return "'endpoint' must hold no password; the credentials belong in a file"
    whole = address.path.strip("/") or address.query or address.fragment
    if address.scheme not in ("https", "http") or not address.hostname or whole or not named:
        return "'endpoint' must be https://HOST or https://HOST:PORT"
    return ""


def find_access(table: Mapping[str, str | bool], environ: Mapping[str, str], user_home: Path) -> BucketAccess:
    """Return how buckets are reached: by the table, else the environment, else the AWS tools' files.

    A ``profile`` or ``credentials_file`` of the table comes before keys in the environment. Raises InvalidRequest,
    HomeExposed for a file with secrets that others have in hand, and PermissionRefused when there are no credentials.
    """
    found = _Sources(table, environ, user_home)
    endpoint = found.first("endpoint", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "endpoint_url")
    problem = _endpoint_problem(endpoint) if endpoint else ""
    if problem:
        raise InvalidRequest(f"{endpoint!r}, where the bucket is said to be: {problem}", hint=_EXAMPLE)
    credentials = found.credentials()
    web_identity = found.web_identity() if credentials is None else {}
    if credentials is None and not web_identity and endpoint:
        raise PermissionRefused(
            "there are no credentials for the bucket",
            hint="Put them into ~/.aws/credentials, or name the file as credentials_file in the table [s3] of the "
            "settings; docs/guide/s3.md says what may stand there.",
        )
    authority = found.first("ca_file", "AWS_CA_BUNDLE", "ca_bundle")
    style = table.get("path_style")
    return BucketAccess(
        endpoint=endpoint.rstrip("/"),
        region=found.first("region", "AWS_REGION", "AWS_DEFAULT_REGION", "region") or DEFAULT_REGION,
        path_style=bool(endpoint) if style is None else bool(style),
        ca_pem=_read(Path(authority), "the authority of the bucket's server", secret=False) if authority else "",
        credentials=credentials,
        web_identity=web_identity,
    )


class _Sources:
    """The table, the environment, and the two files of the AWS tools, which are read once, when they are asked."""

    def __init__(self, table: Mapping[str, str | bool], environ: Mapping[str, str], user_home: Path) -> None:
        self._table = {name: value for name, value in table.items() if isinstance(value, str)}
        self._environ = environ
        aws = user_home / ".aws"
        self._named = self._table.get("credentials_file")
        shared = self._named or environ.get("AWS_SHARED_CREDENTIALS_FILE") or str(aws / "credentials")
        self._shared_path = Path(shared)
        self._config_path = Path(environ.get("AWS_CONFIG_FILE") or aws / "config")
        self._profile = self._table.get("profile") or environ.get("AWS_PROFILE") or _DEFAULT_PROFILE
        self._shared: Mapping[str, str] | None = None
        self._config: Mapping[str, str] | None = None

    def first(self, setting: str, *others: str) -> str:
        """Return what the table says, else the first of the variables, else what the files say by the last name."""
        *variables, name = others
        if setting in self._table:
            return self._table[setting]
        told = next((self._environ[each] for each in variables if self._environ.get(each)), "")
        return told or self.config.get(name, "")

    @property
    def shared(self) -> Mapping[str, str]:
        if self._shared is None:
            self._shared = _section(self._shared_path, self._profile, required=self._named is not None)
        return self._shared

    @property
    def config(self) -> Mapping[str, str]:
        if self._config is None:
            prefixed = self._profile if self._profile == _DEFAULT_PROFILE else f"profile {self._profile}"
            self._config = _section(self._config_path, prefixed)
        return self._config

    def credentials(self) -> Credentials | None:
        own = self._named is not None or "profile" in self._table
        key, secret = (self._environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
        if key and secret and not own:
            return Credentials(key, secret, self._environ.get("AWS_SESSION_TOKEN", ""), "the environment")
        for path in (self._shared_path, self._config_path):
            values = self.shared if path is self._shared_path else self.config
            key, secret = values.get("aws_access_key_id", ""), values.get("aws_secret_access_key", "")
            if key and secret:
                return Credentials(key, secret, values.get("aws_session_token", ""), str(path))
        if own and not self.config.get("role_arn"):
            raise PermissionRefused(
                f"{self._shared_path} has no keys for the profile {self._profile!r}",
                path=str(self._shared_path),
                hint="It needs a section with aws_access_key_id and aws_secret_access_key. Programs that give them "
                "(credential_process, sso) are not asked.",
            )
        return None

    def web_identity(self) -> Mapping[str, str]:
        """Return what the identity of a workload is told by; the environment's is read by who sends the requests."""
        told = {name: self.config[name] for name in _WEB_IDENTITY if name in self.config}
        if "web_identity_token_file" in told and "role_arn" in told:
            return told
        named = ("web_identity_token_file", "role_arn")
        from_environ = {name: self._environ.get(f"AWS_{name.upper()}", "") for name in named}
        return from_environ if all(from_environ.values()) else {}


def _section(path: Path, name: str, *, required: bool = False) -> Mapping[str, str]:
    try:
        text = _read(path, "with credentials for the bucket", secret=True)
    except FileNotFoundError as error:
        if required:
            raise file_error(error, path, "read") from error
        return {}
    parser = configparser.RawConfigParser(strict=False, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Its own message would show the line, which may be a secret.
        raise InvalidRequest(f"{path} cannot be read as a file of the AWS tools", path=str(path)) from error
    return dict(parser[name]) if name in parser else {}


def _read(path: Path, what: str, *, secret: bool) -> str:
    """Return a file's text. FileNotFoundError goes through; one that others have in hand is not read."""
    try:
        if not path.exists() and secret:
            raise FileNotFoundError(2, "No such file or directory")
        refuse_exposed_file(path, what, secret=secret)
        return path.read_text("utf-8")
    except FileNotFoundError:
        if secret:
            raise
        raise InvalidRequest(f"{path}, {what}, is not there", path=str(path)) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path}, {what}, is no text", path=str(path)) from error
    except OSError as error:
        raise file_error(error, path, "read") from error
