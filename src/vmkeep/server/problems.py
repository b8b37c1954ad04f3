"""Errors as the server answers them: problem documents (RFC 9457) with the codes of ``errors.py``."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vmkeep.errors import InvalidRequest, VmkeepError
from vmkeep.filesystem import fault_error
from vmkeep.logs import get_logger

PROBLEM = "application/problem+json"
_MOST_FIELDS = 5
_FAULT_HINT = "This is a fault of vmkeep. Whoever runs the server finds it in the log of `vmkeep serve --debug`."
_log = get_logger(__name__)


def problem(error: VmkeepError) -> JSONResponse:
    """Return an error as a problem document: its code is the title, its message the detail, and its hint goes along."""
    return _document(error.http_status, error.code, error.message, error.as_dict())


def answer_with_problems(application: FastAPI) -> None:
    """Let every error that a request meets be answered as a problem document, and none with a traceback."""

    @application.exception_handler(VmkeepError)
    async def of_ours(_request: Request, error: VmkeepError) -> JSONResponse:
        return problem(error)

    @application.exception_handler(RequestValidationError)
    async def of_fields(_request: Request, error: RequestValidationError) -> JSONResponse:
        # What was sent is not told again: it may be a secret.
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:_MOST_FIELDS]]
        return problem(
            InvalidRequest(f"The request cannot be meant: {'; '.join(wrong)}", hint="Correct what it names.")
        )

    @application.exception_handler(HTTPException)
    async def of_routes(_request: Request, error: HTTPException) -> JSONResponse:
        return _document(error.status_code, f"http-{error.status_code}", str(error.detail), {})

    @application.exception_handler(Exception)
    async def of_faults(request: Request, error: Exception) -> JSONResponse:
        _log.error("fault", path=request.url.path, fault=type(error).__name__)
        told = fault_error(error)
        # The words of a fault may be anything, and whoever asks may be anybody.
        return problem(told if type(told) is not VmkeepError else VmkeepError("The server failed", hint=_FAULT_HINT))


def _document(status: int, title: str, detail: str, more: dict[str, str | None]) -> JSONResponse:
    told = {key: value for key, value in more.items() if value is not None and key != "message"}
    return JSONResponse({"title": title, "status": status, "detail": detail, **told}, status, media_type=PROBLEM)
