"""One request to a server of the fleet, and its answer, which is hostile until it was read."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

from vmkeep.errors import ClockAstray, InvalidRequest, ServerUnreachable, VmkeepError
from vmkeep.identity.certificates import SERVER_NAME

TIMEOUT_SECONDS: Final = 30.0
MOST_BYTES: Final = 1024 * 1024
TOLD_SECONDS: Final = 60.0
_NOT_YET, _OVER = 9, 10
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""


def ask(
    address: str, tls: ssl.SSLContext, method: str, path: str, body: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Return the answer of a server, a JSON object.

    Raises ServerUnreachable, ClockAstray where the clock keeps its certificate from being judged, and the error that
    the server answers with.
    """
    connection = _Connection(*split_address(address), tls)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"content-type": "application/json"} if text else {})
        response = connection.getresponse()
        content = response.read(MOST_BYTES + 1)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_NOT_YET, _OVER):
            raise ClockAstray(f"By the clock of this host the certificate of {address} does not count now") from error
        raise ServerUnreachable(
            f"What answers at {address} has no certificate of this fleet's server: {error.verify_message}",
            hint="Nothing was sent to it. Compare the authority: `vmkeep ca show` on the server.",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise ServerUnreachable(
            f"The server {address} cannot be reached: {_reason(error)}",
            hint="See that `vmkeep serve` runs there, that this host reaches the address, and that its certificate "
            "counts: `vmkeep agent renew`.",
        ) from error
    finally:
        connection.close()
    return read_answer(address, response.status, content)


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT. Raises InvalidRequest."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        raise InvalidRequest(f"{address!r} is no address of a server", hint="Write HOST:PORT, as vmkeep.example:8443.")
    return bare, int(port)


def is_time(value: object) -> bool:
    """Return whether a value of an answer is a time as a server tells it: ISO 8601 with its zone."""
    try:
        return isinstance(value, str) and dt.datetime.fromisoformat(value).utcoffset() == dt.timedelta()
    except ValueError:
        return False


def clock_error_seconds(answer: Mapping[str, Any]) -> float:
    """Return by how much the clock of this host is ahead of the server's; 0 where the answer does not tell."""
    try:
        told = dt.datetime.fromisoformat(answer["server_time"])
        return (dt.datetime.now(dt.UTC) - told).total_seconds()
    except (KeyError, TypeError, ValueError):
        return 0.0


def clock_text(error_seconds: float) -> str:
    """Return a sentence on a wrong clock; empty for one that is right within a minute."""
    if abs(error_seconds) < TOLD_SECONDS:
        return ""
    days, minutes = divmod(round(abs(error_seconds) / 60), 1440)
    length = f"{days} days and {minutes // 60} hours" if days else f"{minutes} minutes"
    return f"the clock of this host is {length} {'ahead of' if error_seconds > 0 else 'behind'} that of its server"


class _Connection(http.client.HTTPSConnection):
    """One that asks for the name which all servers have, whatever address it dials."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=TIMEOUT_SECONDS, context=tls)
        self._tls = tls

    def connect(self) -> None:
        plain = socket.create_connection((self.host, self.port), TIMEOUT_SECONDS)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=SERVER_NAME)
        except BaseException:
            plain.close()
            raise


def read_answer(address: str, status: int, content: bytes) -> dict[str, Any]:
    """Return what an answer holds. Raises ServerUnreachable for what no server says, and the error that it tells."""
    try:
        value = json.loads(content) if len(content) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServerUnreachable(f"What answers at {address} is no server of a fleet (status {status})")
    if status == http.client.OK:
        return value
    told = {name: value.get(name) for name in ("code", "detail", "hint")}
    texts = {name: text[:500] if isinstance(text, str) else None for name, text in told.items()}
    message = texts["detail"] or f"{address} answered with status {status}"
    error = VmkeepError.from_dict({**texts, "message": message})
    if type(error) is VmkeepError:  # of a code that is not known here, or a fault of the server's
        raise ServerUnreachable(f"{address} answered: {message}", hint="See what runs there, and its log.")
    raise error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "TLS failed"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
