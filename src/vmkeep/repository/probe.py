"""What the server of a bucket does, tried out on objects that are made for it and deleted again.

No server says what it promises, and what it says is not always so: Swift (2.38) answers 412 to a second create and lets
five of eight win that come at once; Ceph (16) does neither of it wrong; caches before a server show what was there
before. A repository works on all of them, with what each lacks told (docs/guide/s3.md).
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from http.client import HTTPException
from typing import Final, TypeVar

from vmkeep.errors import ObjectMissing, PermissionRefused, StoreError, TargetExists, VmkeepError
from vmkeep.repository.bucket import Bucket, trial
from vmkeep.repository.layout import ENVELOPES, INTENTS, KEYRING, PACKS, POINTS, STATES
from vmkeep.repository.objectlock import read_term
from vmkeep.repository.signedrequest import ask
from vmkeep.values import dataclass

RACERS: Final = 8
ROUNDS: Final = 4
"""Swift lets one of eight win in about a quarter of all rounds; four such in a row are one in 250."""
CLOCK_SECONDS: Final = 60.0
"""Only points' ages are told by hosts' clocks; requests are refused from 15 minutes on."""
T = TypeVar("T")
ON, OFF, UNKNOWN = "on", "off", "unknown"
_GUARDED: Final = (KEYRING, PACKS, POINTS, STATES, ENVELOPES)


class Weakness(StrEnum):
    """Something that the server does not do as a repository wants it."""

    STALE = "stale"
    LISTS_LATE = "lists-late"
    RACES = "races"
    CLOCK = "clock"


@dataclass(frozen=True, slots=True)
class BucketReport:
    """What was found. ``clock_ahead_seconds``: the server's clock less this host's.

    ``atomic_create``: of several who create an object at once, one wins. ``fresh``: what was put last is what is read
    and told. ``lists_at_once``: an object is listed when it was put, and not when it was deleted. ``versioning`` and
    ``object_lock`` are "on", "off" or "unknown"; ``locked_days`` is for how long the bucket locks each object that is
    put, 0 for not at all, or unknown. ``deletable``: below which of the prefixes that hold what must last these
    credentials may delete.
    """

    atomic_create: bool
    fresh: bool
    lists_at_once: bool
    clock_ahead_seconds: float
    versioning: str
    object_lock: str
    locked_days: int
    deletable: tuple[str, ...]

    @property
    def append_only(self) -> bool:
        """Whether with these credentials nothing that lasts can be deleted; it may be written over all the same."""
        return not self.deletable


def probe(bucket: Bucket) -> BucketReport:
    """Try out what the server of a bucket does. Raises what puts and reads raise, when even those do not work."""
    ahead, fresh, listed = _freshness(bucket)
    object_lock, days = _told(bucket, "object-lock", _object_lock, (UNKNOWN, 0))
    return BucketReport(
        atomic_create=all(_one_wins(bucket) for _ in range(ROUNDS)),
        fresh=fresh,
        lists_at_once=listed,
        clock_ahead_seconds=round(ahead, 1),
        versioning=_told(bucket, "versioning", _versioning, UNKNOWN),
        object_lock=object_lock,
        locked_days=days,
        deletable=tuple(prefix for prefix in _GUARDED if _may_delete(bucket, prefix)),
    )


def _freshness(bucket: Bucket) -> tuple[float, bool, bool]:
    """Return the clock's difference, and whether an object that was put, put anew and deleted is shown as such."""
    name, content = trial()
    before = datetime.now(UTC)
    bucket.put(name, content)
    between = before + (datetime.now(UTC) - before) / 2
    ahead = (bucket.stat(name).modified - between).total_seconds()
    listed = any(item.name == name for item in bucket.list(INTENTS))
    fresh = True
    for turn in range(1, 4):
        content = trial(turn)[1]
        try:
            bucket.renew(name, content)
            fresh = fresh and bucket.get(name) == content
        except (StoreError, ObjectMissing):
            fresh = False
    if _removed(bucket, name):
        listed = listed and all(item.name != name for item in bucket.list(INTENTS))
        fresh = fresh and not bucket.exists(name)
    return ahead, fresh, listed


def _one_wins(bucket: Bucket) -> bool:
    """Let several threads create one object at the same moment, and a latecomer; return whether one won, for good."""
    name, _ = trial()
    contents = [trial(turn)[1] for turn in range(RACERS)]
    start = threading.Barrier(RACERS)
    won: list[bytes] = []
    failed: list[VmkeepError] = []

    def create(content: bytes) -> None:
        start.wait()
        try:
            bucket.put(name, content)
        except TargetExists:
            return
        except VmkeepError as error:
            failed.append(error)
        else:
            won.append(content)

    threads = [threading.Thread(target=create, args=(content,), daemon=True) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with suppress(TargetExists):
        bucket.put(name, b"late")
        won.append(b"late")
    try:
        kept = bucket.get(name)
    finally:
        _removed(bucket, name)
    if failed and not won:
        raise failed[0]
    return len(won) == 1 and kept == won[0]


def _removed(bucket: Bucket, name: str) -> bool:
    try:
        bucket.delete_unseen(name)
    except PermissionRefused:
        return False
    return True


def _may_delete(bucket: Bucket, prefix: str) -> bool:
    """Ask to delete an object that never was: who may not is refused all the same."""
    try:
        bucket.delete_unseen(prefix + secrets.token_hex(16))
    except PermissionRefused:
        return False
    except ObjectMissing:
        return True
    return True


def _told(bucket: Bucket, what: str, read: Callable[[int, str], T], unknown: T) -> T:
    """Ask how the bucket is set up, where the credentials are known here; many may not ask."""
    access = bucket.access
    if access.credentials is None or (not access.path_style and access.endpoint):
        return unknown
    try:
        answer = ask(access, access.credentials, "GET", f"/{bucket.address.bucket}", query={what: ""})
    except (OSError, HTTPException, ValueError):
        return unknown
    return read(answer.status, answer.body.decode("utf-8", "replace"))


def _versioning(status: int, body: str) -> str:
    if status != 200:
        return UNKNOWN
    return ON if re.search(r"<Status>\s*Enabled\s*</Status>", body) else OFF


def _object_lock(status: int, body: str) -> tuple[str, int]:
    """Return whether objects can be locked, and for how many days each one is that says nothing itself."""
    if status == 404 and "ObjectLockConfigurationNotFoundError" in body:
        return OFF, 0
    if status != 200:
        return UNKNOWN, 0
    if not re.search(r"<ObjectLockEnabled>\s*Enabled\s*</ObjectLockEnabled>", body):
        return OFF, 0
    term = read_term(body)
    return ON, term.days if term else 0


def weaknesses(report: BucketReport) -> tuple[tuple[Weakness, str], ...]:
    """Return what the server does not do as a repository wants it, each with a sentence for people, the worst first."""
    found = []
    if not report.fresh:
        text = "it goes on showing what an object was before it was put anew; no point is made on it"
        found.append((Weakness.STALE, text))
    if not report.lists_at_once:
        found.append((Weakness.LISTS_LATE, "its lists do not show at once what was put and deleted"))
    if not report.atomic_create:
        text = (
            "it lets several win who create one object at the same time; make the repository, and change its keys, "
            "from one host at a time"
        )
        found.append((Weakness.RACES, text))
    if abs(report.clock_ahead_seconds) > CLOCK_SECONDS:
        late = "ahead of" if report.clock_ahead_seconds > 0 else "behind"
        text = f"its clock is {abs(report.clock_ahead_seconds):.0f} s {late} that of this host"
        found.append((Weakness.CLOCK, text))
    return tuple(found)


def described(report: BucketReport) -> str:
    """Return in one line what was found, for people."""
    create = "one wins of several who create" if report.atomic_create else "several win who create"
    term = f" for {report.locked_days} days" if report.locked_days else ""
    rights = "delete nothing that must last" if report.append_only else "delete what must last"
    return (
        f"{create}, clock {report.clock_ahead_seconds:+.0f} s, versions {report.versioning}, "
        f"object lock {report.object_lock}{term}; these credentials may {rights}"
    )
