"""What a bucket's server or the way to it failed with, told in our words, and whether asking again may help.

obstore (0.12) has few kinds of errors and says the rest in text: the request, the status of the answer and its whole
body. That body is another's: of it the code alone is taken, and only where it looks like one.
"""

from __future__ import annotations

import re
from typing import Final

from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError

from vmkeep.errors import (
    NoSpace,
    ObjectMissing,
    PermissionRefused,
    RepositoryNotFound,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.values import dataclass

FOREIGN: Final = (BaseError, FileNotFoundError)
"""What a call of obstore's may raise: an object that is not there is told by Python's own error."""
_CONFLICT: Final = 409
_STATUS: Final = re.compile(r"status code: (\d{3})\b")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_ODD_NAME: Final = re.compile(r'Path "([^"\n]{1,300})')
# Of the statuses below 500 these are passing: too long, conflict, too early, too many.
_PASSING: Final = {408, _CONFLICT, 425, 429}
_NEVER: Final = {501, 505}
_FULL: Final = {"QuotaExceeded", "InsufficientStorage", "InsufficientCapacity", "XMinioStorageFull"}
_SLOW: Final = {"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError", "Throttling", "TooManyRequests"}
_GUIDE: Final = "docs/guide/s3.md"
_HINTS: Final = {
    "RequestTimeTooSkewed": "The clock of this host and that of the server differ too much; set it right.",
    "InvalidAccessKeyId": f"The server does not know the access key; {_GUIDE} says where it is looked for.",
    "SignatureDoesNotMatch": f"The secret key is not that of the access key; {_GUIDE} says where both are looked for.",
    "ExpiredToken": "The session that the credentials are of has ended; begin another one.",
    "AllAccessDisabled": "The server has shut the bucket or the account; ask its owner.",
}
_DENIED: Final = f"The credentials do not allow it. {_GUIDE} lists what a host, and who maintains, must be allowed."
_REGION: Final = "Correct region, endpoint or path_style in the table [s3] of the settings."
_UNREACHED: Final = (
    "Nothing is lost. Look whether the server runs, and whether endpoint and ca_file in the table [s3] of the settings "
    "are right; then run the command again."
)


@dataclass(frozen=True, slots=True)
class Failure:
    """``error`` is ours. ``passing``: the same request may succeed later. ``answered``: the server said it.

    ``said`` is obstore's text for programmers, without the body of an answer: servers repeat there what was sent to
    them, with the token of a session.
    """

    error: VmkeepError
    passing: bool
    answered: bool
    said: str


def failure_of(error: BaseException, location: str, name: str) -> Failure:
    """Translate an error of obstore's for one object, or a prefix, below ``location``."""
    text = str(error)
    path = f"{location}/{name}".rstrip("/")
    if isinstance(error, InvalidPathError):
        return Failure(_odd(text, location, path), passing=False, answered=True, said="an invalid path")
    found = _STATUS.search(text)
    if found is None:
        return _unanswered(text, path)
    said = text[: found.end()]
    status = int(found[1])
    # The head of an answer: what comes later in the text is shown for programmers, with the body once more.
    code = matched[1] if (matched := _CODE.search(text)) else ""
    told = f"{status} {code}".rstrip()
    passing = False
    ours: VmkeepError
    if status == 404 and code == "NoSuchBucket":
        ours = RepositoryNotFound(
            f"there is no bucket for {location}",
            path=location,
            hint="Make the bucket with the tools of the server, or correct its name, or endpoint in the table [s3].",
        )
    elif status == 404:
        ours = ObjectMissing(f"{name} is not in the repository", path=path)
    elif isinstance(error, AlreadyExistsError) and status != _CONFLICT:
        ours = TargetExists(f"{name} is in the repository already", path=path)
    elif status == 507 or code in _FULL:
        ours = NoSpace(f"the bucket's server has no room for {path} ({told})", path=path)
    elif status in (401, 403) and code not in _SLOW:
        ours = PermissionRefused(
            f"the bucket's server refused access to {path} ({told})", path=path, hint=_HINTS.get(code, _DENIED)
        )
    else:
        passing = (status >= 500 and status not in _NEVER) or status in _PASSING or code in _SLOW
        hint = None if passing else _REGION
        ours = StoreError(f"the bucket's server failed at {path} ({told})", path=path, hint=hint)
    return Failure(ours, passing, answered=True, said=said)


def _unanswered(text: str, path: str) -> Failure:
    known = (
        ("Connection refused", "nothing listens there"),
        ("dns error", "its name is not known"),
        ("UnknownIssuer", "its certificate is of an authority that is not known here"),
        ("NotValidForName", "its certificate is for another name"),
        ("certificate", "its certificate does not hold"),
        ("InvalidContentType", "it does not speak TLS"),
        ("Network is unreachable", "there is no network to it"),
        ("No route to host", "there is no way to it"),
        ("TimedOut", "it did not answer in time"),
    )
    why = next((told for word, told in known if word in text), "the connection broke")
    lasting = "certificate" in why or "TLS" in why
    error = StoreError(f"the bucket's server was not reached at {path}: {why}", path=path, hint=_UNREACHED)
    return Failure(error, passing=not lasting, answered=False, said=text)


def _odd(text: str, location: str, path: str) -> StoreError:
    named = found[1] if (found := _ODD_NAME.search(text)) else "one with empty parts"
    shown = named.encode("unicode_escape").decode("ascii")
    return StoreError(
        f"{location} holds an object whose name no repository has, and cannot be listed for it: {shown}",
        path=path,
        hint="No vmkeep writes such names: find out who may write there. Remove it with the tools of the server.",
    )
