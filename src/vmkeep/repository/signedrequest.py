"""One signed request to an S3 server, for what obstore does not ask: how a bucket is set up.

The signature is AWS's version 4 (docs.aws.amazon.com, "Signature Version 4 signing process"). Bodies are small; the
answer is another's, and at most a MiB of it is read.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlencode, urlsplit

from vmkeep.buckets import BucketAccess, Credentials
from vmkeep.values import dataclass

_ANSWER_BYTES = 1 << 20
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes


def ask(
    access: BucketAccess,
    credentials: Credentials,
    method: str,
    path: str,
    *,
    query: Mapping[str, str] | None = None,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send one request, for ``path`` below the endpoint ("/BUCKET", "/BUCKET/KEY"), and return what was answered.

    ``headers`` have small letters, and are signed. Raises OSError and http.client.HTTPException.
    """
    endpoint = urlsplit(access.endpoint or f"https://s3.{access.region}.amazonaws.com")
    where = quote(path, safe="/-_.~")
    asked = urlencode(sorted((query or {}).items()), quote_via=quote, safe="-_.~")
    signed = _signed(access, credentials, method, endpoint.netloc, where, asked, body, headers or {})
    host, port = endpoint.hostname or "", endpoint.port
    connection: http.client.HTTPConnection
    if endpoint.scheme == "https":
        context = ssl.create_default_context()
        if access.ca_pem:
            context.load_verify_locations(cadata=access.ca_pem)
        connection = http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request(method, where + (f"?{asked}" if asked else ""), body, signed)
        answer = connection.getresponse()
        return Answer(answer.status, answer.read(_ANSWER_BYTES))
    finally:
        connection.close()


def _signed(
    access: BucketAccess,
    credentials: Credentials,
    method: str,
    host: str,
    path: str,
    query: str,
    body: bytes,
    headers: Mapping[str, str],
) -> dict[str, str]:
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    digest = hashlib.sha256(body).hexdigest()
    sent = {**headers, "host": host, "x-amz-date": moment, "x-amz-content-sha256": digest}
    if credentials.token:
        sent["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(sent))
    lines = [method, path, query, *(f"{name}:{sent[name]}" for name in sorted(sent)), "", names, digest]
    scope = f"{moment[:8]}/{access.region}/s3/aws4_request"
    hashed = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashed}"
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    sent["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return sent
