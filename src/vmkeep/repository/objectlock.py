"""Object lock: a bucket locks each version that is put for a term, and a prune makes the term begin anew.

The server locks what is put by itself, when the bucket says so. After a third of a term all that was put a third of a
term ago is locked for a whole one: what is there then, as the prune has deleted what nothing needs. So all is locked
for two thirds of a term from then on, and for ever while prunes run more often than that.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Final

from vmkeep.errors import PermissionRefused, StoreError
from vmkeep.pool import Pool
from vmkeep.rates import pass_request
from vmkeep.repository.bucket import Bucket
from vmkeep.repository.layout import CONDEMNED, FOLDERS, FORMAT_OBJECT, INTENTS, LOCKED, NAME_BYTES, PRUNED, canonical
from vmkeep.repository.signedrequest import Answer, ask
from vmkeep.values import dataclass

_YEAR_DAYS: Final = 365
_WORKERS: Final = 8
_ATTEMPTS: Final = 4
_WAIT_SECONDS: Final = 1.0
_PASSING: Final = frozenset({409, 429, 500, 502, 503, 504})
_TOLD_EVERY: Final = 100


@dataclass(frozen=True, slots=True)
class Term:
    """For how many days a bucket locks each object that is put, and how (COMPLIANCE, GOVERNANCE)."""

    mode: str
    days: int

    @property
    def third(self) -> timedelta:
        return timedelta(days=self.days) / 3


@dataclass(frozen=True, slots=True)
class LockReport:
    """How many objects were locked anew, and until when all that was there then is locked at least."""

    objects: int
    until: datetime


def read_term(body: str) -> Term | None:
    """Return the term that a bucket's configuration gives to all objects; None for none."""
    days = re.search(r"<(Days|Years)>\s*([0-9]{1,5})\s*</\1>", body)
    mode = re.search(r"<Mode>\s*(COMPLIANCE|GOVERNANCE)\s*</Mode>", body)
    if "<ObjectLockEnabled>Enabled</ObjectLockEnabled>" not in re.sub(r"\s", "", body) or not (days and mode):
        return None
    whole = int(days[2]) * (_YEAR_DAYS if days[1] == "Years" else 1)
    return Term(mode[1], whole) if whole else None


def retention(mode: str, until: datetime) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of the request that locks an object until a time (S3's PutObjectRetention)."""
    moment = until.strftime("%Y-%m-%dT%H:%M:%SZ")
    body = (
        '<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Mode>{mode}</Mode><RetainUntilDate>{moment}</RetainUntilDate></Retention>"
    ).encode()
    # The sum is S3's condition for this request, and no proof of ours.
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return body, {"content-md5": digest, "content-type": "application/xml"}


def lock_anew(bucket: Bucket, tell: Callable[[int], None]) -> LockReport | None:
    """Lock what was put a third of a term ago or more for a whole term from now on; None where no term is known of.

    ``tell`` is told how many objects are locked, and may raise to stop it. Does nothing but tell of the last time
    when that is less than a third of a term ago. Raises StoreError and PermissionRefused for an object that cannot be
    locked; those before it are, and the next prune begins again.
    """
    term = _term(bucket)
    if term is None:
        return None
    now = bucket.now()
    rounds = {item.name: item.modified for item in bucket.list(LOCKED)}
    last = max(rounds.values(), default=None)
    if last is not None and now - last < term.third:
        return LockReport(0, last + 2 * term.third)
    body, headers = retention(term.mode, now + 3 * term.third)
    done = 0
    with Pool(_WORKERS, thread_name_prefix="vmkeep-lock") as pool:
        waiting = []
        for name in _lasting(bucket, now - term.third):
            waiting.append(pool.submit(_lock, bucket, name, body, headers))
            if len(waiting) >= _TOLD_EVERY:
                done += sum(each.result() for each in waiting)
                waiting.clear()
                tell(done)
        done += sum(each.result() for each in waiting)
    name = secrets.token_hex(NAME_BYTES)
    bucket.put(LOCKED + name, canonical({"days": term.days, "run": name}))
    bucket.delete_all(list(rounds))
    return LockReport(done, now + 2 * term.third)


def _term(bucket: Bucket) -> Term | None:
    access = bucket.access
    if access.credentials is None or (not access.path_style and access.endpoint):
        return None
    try:
        answer = ask(access, access.credentials, "GET", f"/{bucket.address.bucket}", query={"object-lock": ""})
    except (OSError, HTTPException, ValueError):
        return None
    return read_term(answer.body.decode("utf-8", "replace")) if answer.status == 200 else None


def _lasting(bucket: Bucket, before: datetime) -> Iterator[str]:
    yield FORMAT_OBJECT
    for folder in FOLDERS:
        if folder not in (INTENTS, CONDEMNED, PRUNED, LOCKED):
            yield from (item.name for item in bucket.list(folder) if item.modified <= before)


def _lock(bucket: Bucket, name: str, body: bytes, headers: dict[str, str]) -> bool:
    """Lock one object; False for one that is gone."""
    path = "/".join(filter(None, (bucket.address.bucket, bucket.address.prefix, name)))
    said = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT_SECONDS * attempt)
        pass_request()
        try:
            answer = _put(bucket, path, body, headers)
        except (OSError, HTTPException) as error:
            said = str(error)
            continue
        if answer.status == 404:
            return False
        if answer.status // 100 == 2:
            return True
        said = f"status {answer.status}"
        if answer.status == 403:
            raise PermissionRefused(
                f"these credentials may not lock {bucket.location}/{name} anew",
                path=f"{bucket.location}/{name}",
                hint="Allow s3:PutObjectRetention to who prunes (docs/guide/s3.md).",
            )
        if answer.status not in _PASSING:
            break
    raise StoreError(f"{bucket.location}/{name} could not be locked anew: {said}", path=f"{bucket.location}/{name}")


def _put(bucket: Bucket, path: str, body: bytes, headers: dict[str, str]) -> Answer:
    credentials = bucket.access.credentials
    assert credentials is not None
    return ask(bucket.access, credentials, "PUT", f"/{path}", query={"retention": ""}, body=body, headers=headers)
