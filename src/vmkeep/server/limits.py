"""How much of a request is taken in: what is longer is refused before it is kept."""

from __future__ import annotations

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmkeep.errors import RequestTooLarge
from vmkeep.server.problems import problem

DEFAULT_MOST_BYTES = 1024 * 1024


class BodyLimit:
    """Middleware of ASGI that refuses a request whose body is longer than ``most_bytes``, announced or not."""

    def __init__(self, application: ASGIApp, most_bytes: int = DEFAULT_MOST_BYTES) -> None:
        self._application = application
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._application(scope, receive, send)
        if any(name == b"content-length" and int(value) > self._most_bytes for name, value in scope["headers"]):
            return await problem(self._refusal())(scope, receive, send)
        seen, answering = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._most_bytes:
                raise self._refusal()
            return message

        async def answered(message: Message) -> None:
            nonlocal answering
            if seen <= self._most_bytes or answering:
                answering = True
                await send(message)

        # FastAPI answers whatever is raised while it reads a body with 400, so the answer is given here.
        with suppress(RequestTooLarge):
            await self._application(scope, counted, answered)
        if seen > self._most_bytes and not answering:
            await problem(self._refusal())(scope, receive, send)
        return None

    def _refusal(self) -> RequestTooLarge:
        return RequestTooLarge(f"The request is longer than {self._most_bytes} bytes")
