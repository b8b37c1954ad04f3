"""The two applications of a server: one for agents, one for people and for hosts that enrol."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool

from vmkeep import __version__
from vmkeep.server.limits import DEFAULT_MOST_BYTES, BodyLimit
from vmkeep.server.problems import answer_with_problems

Check = Callable[[], None]
"""Something that must work for the server to be of use; raises the error that says what does not."""


def make_application(
    routers: Iterable[APIRouter] = (), *, checks: Iterable[Check] = (), most_bytes: int = DEFAULT_MOST_BYTES
) -> FastAPI:
    """Return an application with these routes, and with ``/health`` and ``/ready``.

    Alive is a server that answers; ready is one whose ``checks`` all pass. No documents of the interface are served.
    """
    application = FastAPI(title="vmkeep", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    answer_with_problems(application)
    application.add_middleware(BodyLimit, most_bytes=most_bytes)
    needed = tuple(checks)

    @application.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "alive", "version": __version__}

    @application.get("/ready")
    async def ready() -> dict[str, str]:
        for check in needed:
            await run_in_threadpool(check)
        return {"status": "ready"}

    for router in routers:
        application.include_router(router)
    return application
