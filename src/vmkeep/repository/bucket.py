"""A repository in a bucket of an S3 server, spoken to by obstore.

What is promised here and by no server (docs/adr/0052-a-bucket-as-a-store.md): a call is tried again for as long as the
settings' patience lasts, when the server is busy or the way to it breaks; an object that was stored although its answer
was lost counts as stored; a list is read page by page, so that a page that fails does not begin it anew; and what was
put last is what is told of an object that is renewed.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store

from vmkeep.buckets import BucketAccess, BucketAddress, Credentials
from vmkeep.errors import ObjectMissing, PermissionRefused, RepositoryNotFound, StoreError, TargetExists
from vmkeep.rates import count_request, count_stored, pass_request, pass_stored
from vmkeep.repository.answers import under_way
from vmkeep.repository.bucketfailure import FOREIGN, failure_of
from vmkeep.repository.layout import FORMAT_OBJECT, INTENTS, KEYRING, Buffer, canonical
from vmkeep.repository.store import ObjectStat, ObjectStore

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import ClientConfig, S3Config, S3Credential, S3CredentialProvider

T = TypeVar("T")
_CONNECT_SECONDS: Final = 10
# Between two pieces of an answer. It counts from the beginning of a request (reqwest 0.12), so for puts, whose
# answer comes when all was sent, it would be a limit to the speed of the line.
_READ_SECONDS: Final = 60
_FIRST_WAIT_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 15.0
# The command gives up at its patience; a call ends before, so that it is told what failed, and undone.
_SHARE: Final = 0.9
# A server that never answered is more likely named wrong than away.
_STRANGER_SECONDS: Final = 10.0
_PAGE: Final = 1000
_FRESH_SECONDS: Final = 20.0
_SETTLE_SECONDS: Final = 1.0


class Bucket(ObjectStore):
    """The objects below a prefix of a bucket. No promise of the server's is taken for granted that was not probed."""

    def __init__(self, address: BucketAddress, access: BucketAccess) -> None:
        patience = access.patience_seconds
        super().__init__(_client(address, access, min(_READ_SECONDS, patience)), location=str(address))
        self.address = address
        self.access = access
        self._writer = _client(address, access, patience, single_deletes=True)
        self._patience_seconds = patience * _SHARE
        self._answered = False

    def put(
        self,
        name: str,
        content: Buffer | Sequence[Buffer],
        *,
        replace: bool = False,
        durable: bool = True,  # noqa: ARG002  whatever was answered is
    ) -> None:
        # Ceph (16) ignores the condition of a create in a bucket with versions. All other names are drawn, and to ask
        # for what is not there yet makes caches remember that it is not.
        if not replace and name.startswith((FORMAT_OBJECT, KEYRING)) and self.exists(name):
            raise TargetExists(f"{name} is in the repository already", path=f"{self.location}/{name}")
        pieces = [content] if isinstance(content, bytes | bytearray | memoryview) else list(content)
        count_stored(sum(map(len, pieces)))
        self._put(name, pieces, replace=replace)

    def _put(self, name: str, pieces: Sequence[Buffer], *, replace: bool) -> str | None:
        """Return the ETag of what was stored, None where the answer was lost."""
        unanswered = False
        mode: Literal["create", "overwrite"] = "overwrite" if replace else "create"

        def attempt() -> str | None:
            nonlocal unanswered
            try:
                return obstore.put(self._writer, name, list(pieces), mode=mode, use_multipart=False)["e_tag"]
            except AlreadyExistsError:
                if unanswered and self._holds(name, pieces):
                    return None
                raise
            except FOREIGN:
                unanswered = True
                raise

        return self._patiently(name, attempt)

    def _holds(self, name: str, pieces: Sequence[Buffer]) -> bool:
        """Return whether an object is what an attempt without an answer was to store: names are drawn once."""
        size = sum(map(len, pieces))
        try:
            if obstore.head(self._store, name)["size"] != size:
                return False
            return bytes(obstore.get(self._store, name).bytes()) == b"".join(pieces)
        except FileNotFoundError:
            return False  # it was another's, and is gone

    def put_pack(self, name: str, pieces: Sequence[Buffer]) -> None:
        pass_stored(sum(map(len, pieces)))
        self._put(name, pieces, replace=False)

    def renew(self, name: str, content: bytes) -> datetime:
        etag = self._put(name, [content], replace=True)
        until = time.monotonic() + min(_FRESH_SECONDS, self._patience_seconds)
        for wait in _waits():
            with suppress(ObjectMissing):  # that, too, is what was before
                meta = self._patiently(name, partial(obstore.head, self._store, name))
                if etag is None or meta["e_tag"] == etag:
                    return meta["last_modified"]
            if time.monotonic() + wait > until:
                break
            time.sleep(wait)
        raise StoreError(
            f"the bucket's server goes on telling of {name} what it was before it was put anew",
            path=f"{self.location}/{name}",
            hint="A cache before the server may be in the way: `vmkeep doctor` tells what the "
            "server does. A repository needs a server that shows what was put last.",
        )

    def _get(self, name: str, most_bytes: int) -> bytes:
        return self._patiently(name, partial(super()._get, name, most_bytes))

    def stat(self, name: str) -> ObjectStat:
        return self._patiently(name, partial(super().stat, name))

    def _get_ranges(self, name: str, starts: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        return self._patiently(name, partial(super()._get_ranges, name, starts, lengths))

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        after: str | None = None
        while True:
            page = self._patiently(prefix, partial(self._page, prefix, after))
            for meta in page:
                name = meta["path"]
                if not name.startswith(prefix) or (after is not None and name.encode() <= after.encode()):
                    raise StoreError(
                        f"the bucket's server lists {self.location}/{prefix} out of order",
                        path=f"{self.location}/{prefix}",
                        hint="It is no server for a repository, or something between changes its answers.",
                    )
                after = name
                yield ObjectStat(name, meta["size"], meta["last_modified"])
            if len(page) < _PAGE:
                return

    def _page(self, prefix: str, after: str | None) -> Sequence[ObjectMeta]:
        found = obstore.list(self._store, prefix=prefix.rstrip("/") or None, offset=after, chunk_size=_PAGE)
        return next(iter(found), ())

    def delete(self, name: str) -> None:
        self.stat(name)  # S3 deletes what is not there without a word
        self.delete_unseen(name)

    def delete_unseen(self, name: str) -> None:
        """Delete an object, whether it is there or not; raises what ``delete`` does for others."""
        # By a request of its own: for one of many, Ceph (16) wants the right to delete in the whole bucket.
        self._patiently(name, partial(obstore.delete, self._writer, name))

    def delete_all(self, names: Sequence[str]) -> None:
        for first in range(0, len(names), _PAGE):
            some = list(names[first : first + _PAGE])
            pass_request()
            try:
                with under_way(f"{self.location}/{some[0]}"):
                    obstore.delete(self._store, some)
            except FOREIGN:
                # A server that is busy, that cannot do it, or that lets some of them be deleted and not others.
                for name in some:
                    self.delete_unseen(name)

    def names(self) -> set[str]:
        page = self._patiently("", partial(self._page, "", None))
        found = {meta["path"].partition("/")[0] for meta in page}
        return found | ({FORMAT_OBJECT} if len(page) == _PAGE and self.exists(FORMAT_OBJECT) else set())

    def unfinished(self) -> bool:
        page = self._patiently("", partial(self._page, "", None))
        return {meta["path"] for meta in page} <= {"keyring/0000000001"}

    def now(self) -> datetime:
        name, content = trial()
        self.put(name, content)
        found = self.stat(name).modified
        with suppress(PermissionRefused, ObjectMissing):
            self.delete(name)
        return found

    def is_kept(self, name: str, content: bytes) -> bool:
        # Not every server lets only one of two win that create at once; the other is to show by now.
        time.sleep(_SETTLE_SECONDS)
        return self.get(name) == content

    def absence(self) -> RepositoryNotFound:
        return RepositoryNotFound(
            f"there is no repository at {self.location}",
            path=self.location,
            hint="Check bucket and prefix, and which server the table [s3] of the settings names. If it was "
            "moved, give its new place: `vmkeep init --repository s3://BUCKET/PREFIX`.",
        )

    def _patiently(self, name: str, call: Callable[[], T]) -> T:
        """Return what a call returns, made again while what it fails with passes. Raises errors of ours."""
        # Not while the call is noted as under way: the server is not to blame for this wait. Leases do not wait.
        count_request() if name.startswith(INTENTS) else pass_request()
        began = time.monotonic()
        with under_way(f"{self.location}/{name}".rstrip("/")):
            for wait in _waits():
                try:
                    result = call()
                except FOREIGN as error:
                    failure = failure_of(error, self.location, name)
                    self._answered = self._answered or failure.answered
                    limit = self._patience_seconds
                    if not self._answered:
                        limit = min(limit, _STRANGER_SECONDS)
                    if not failure.passing or time.monotonic() + wait - began > limit:
                        raise failure.error from Exception(failure.said)
                    time.sleep(wait)
                    count_request()
                else:
                    self._answered = True
                    return result
        raise AssertionError("waits do not end")

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:  # noqa: ARG002
        yield  # what fails is translated where it is decided whether to try again


def trial(turn: int = 0) -> tuple[str, bytes]:
    """Return name and content of an object to try something with; others by ``turn`` have other contents.

    Where it may not be deleted, what is left is the intent of a writer that has ended.
    """
    writer = secrets.token_hex(16)
    intent = {"host": "-", "lapse_seconds": 1, "purpose": "trial", "started": "-", "writer": writer, "renewals": turn}
    return INTENTS + writer, canonical(intent)


def _waits() -> Iterator[float]:
    """Yield how long to wait before each further attempt, in seconds: longer each time, and never alike for two."""
    for number in count():
        most = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2 ** min(number, 16))
        yield most * (0.5 + random.random() / 2)  # noqa: S311  no secret: only not to come in step with others


def _client(
    address: BucketAddress, access: BucketAccess, read_seconds: float, *, single_deletes: bool = False
) -> S3Store:
    options: ClientConfig = {
        "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, access.patience_seconds)),
        "read_timeout": timedelta(seconds=read_seconds),
        "timeout": timedelta(seconds=access.patience_seconds),
        "allow_http": access.endpoint.startswith("http://"),
    }
    if access.ca_pem:
        options["root_certificate"] = access.ca_pem
    config: S3Config = {
        "region": access.region,
        "virtual_hosted_style_request": not access.path_style,
        "disable_bulk_delete": single_deletes,
        **access.web_identity,  # type: ignore[typeddict-item] # names of this dictionary, by find_access
    }
    if access.endpoint:
        config["endpoint"] = access.endpoint if access.path_style else _with_bucket(access.endpoint, address.bucket)
    return S3Store(
        address.bucket,
        prefix=address.prefix or None,
        config=config,
        client_options=options,
        retry_config={"max_retries": 0},
        # Not by the configuration: a session's token in the environment would be taken for one of these keys.
        credential_provider=None if access.credentials is None else _provider(access.credentials),
    )


def _provider(credentials: Credentials) -> S3CredentialProvider:
    def told() -> S3Credential:
        token = credentials.token or None
        key, secret = credentials.access_key, credentials.secret_key
        return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": None}

    return told


def _with_bucket(endpoint: str, bucket: str) -> str:
    """Return the endpoint of a bucket that is part of the host's name, as obstore wants it then."""
    scheme, _, host = endpoint.partition("://")
    return f"{scheme}://{bucket}.{host}"
