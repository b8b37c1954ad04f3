"""What a bucket's server answers is another's text: it becomes an error of ours, shows nothing of itself, and ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, InvalidPathError, PermissionDeniedError

from vmkeep.errors import (
    NoSpace,
    ObjectMissing,
    PermissionRefused,
    RepositoryNotFound,
    StoreError,
    TargetExists,
    VmkeepError,
)
from vmkeep.repository.bucketfailure import failure_of

PLACE = "s3://backups/vms"


def _answer(status: int, code: str = "", more: str = "") -> str:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{more}</Message></Error>" if code else more
    return (
        f"Generic S3 error: Error performing PUT http://h/b/x in 1ms - Server returned status code: {status} W: {body}"
    )


@pytest.mark.parametrize(
    ("error", "kind", "passing"),
    [
        (GenericError(_answer(503, "SlowDown")), StoreError, True),
        (GenericError(_answer(500, "InternalError")), StoreError, True),
        (GenericError(_answer(502)), StoreError, True),
        (GenericError(_answer(429)), StoreError, True),
        (GenericError(_answer(400, "RequestTimeout")), StoreError, True),
        (GenericError(_answer(501, "NotImplemented")), StoreError, False),
        (GenericError(_answer(400, "AuthorizationHeaderMalformed")), StoreError, False),
        (GenericError(_answer(416, "InvalidRange")), StoreError, False),
        (GenericError(_answer(301, "PermanentRedirect")), StoreError, False),
        (GenericError(_answer(507, "InsufficientStorage")), NoSpace, False),
        (PermissionDeniedError(_answer(403, "QuotaExceeded")), NoSpace, False),
        (PermissionDeniedError(_answer(403, "AccessDenied")), PermissionRefused, False),
        (PermissionDeniedError(_answer(403, "SlowDown")), StoreError, True),
        (AlreadyExistsError(_answer(412, "PreconditionFailed")), TargetExists, False),
        (AlreadyExistsError(_answer(409, "ConditionalRequestConflict")), StoreError, True),
        (FileNotFoundError(_answer(404, "NoSuchKey")), ObjectMissing, False),
        (GenericError(_answer(404, "NoSuchBucket")), RepositoryNotFound, False),
        (GenericError("error sending request: Connection refused"), StoreError, True),
        (GenericError("error sending request: dns error"), StoreError, True),
        (GenericError("error sending request: UnknownIssuer"), StoreError, False),
        (InvalidPathError('Path "p/points//x" contained empty path segment'), StoreError, False),
    ],
)
def test_failure_is_told_as_what_it_is(error: BaseException, kind: type[VmkeepError], passing: bool) -> None:
    failure = failure_of(error, PLACE, "points/x")
    assert (type(failure.error), failure.passing) == (kind, passing)
    assert failure.error.path is not None
    assert failure.error.path.startswith(PLACE)
    assert failure.error.hint


@given(
    st.sampled_from([GenericError, PermissionDeniedError, AlreadyExistsError, InvalidPathError, FileNotFoundError]),
    st.text(max_size=200),
    st.integers(100, 599) | st.none(),
    st.text(max_size=80),
)
def test_any_answer_is_an_error_that_steers_no_terminal(
    kind: type[BaseError], text: str, status: int | None, code: str
) -> None:
    said = text if status is None else _answer(status, code, f"{text}<StringToSign>t0ken</StringToSign>")
    failure = failure_of(kind(said), PLACE, "points/x")
    assert isinstance(failure.error, VmkeepError)
    assert failure.error.message.isprintable()
    if status is not None:
        assert "t0ken" not in f"{failure.error.message}{failure.error.hint}{failure.said}"
