"""Every error as JSON: {"error": "…"} as the exercise answers it, OpenAI's envelope under /v1."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pocketlm.errors import PocketLMError, RequestError, Unauthorized

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(PocketLMError, _pocketlm_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)
    app.add_exception_handler(Exception, _internal_error)


def body(path: str, error: PocketLMError) -> dict[str, object]:
    """What stands in the response's body, and in the event of a stream that has begun."""
    message = str(error).encode("utf-8", "backslashreplace").decode()
    if not path.startswith("/v1/"):
        return {"error": message}
    return {"error": {"message": message, "type": error.type, "param": error.param, "code": error.code}}


def render(path: str, error: PocketLMError) -> Response:
    """The response to a request that failed."""
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.should_retry is not None:
        headers["X-Should-Retry"] = "true" if error.should_retry else "false"
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body(path, error), error.status, headers)


async def _pocketlm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PocketLMError)
    if error.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    request.state.record.error_code = error.code
    request.app.state.service.metrics.rejected(error.code)
    response = render(request.url.path, error)
    response.headers.update(getattr(request.state, "headers", {}))
    return response


async def _http_exception(request: Request, error: Exception) -> Response:
    """404 and 405, which the router raises."""
    assert isinstance(error, HTTPException)
    refused = RequestError(f"{error.detail}: {request.method} {request.url.path}")
    refused.status, refused.headers = error.status_code, dict(error.headers or {})
    refused.code = "not_found" if error.status_code == 404 else "method_not_allowed"
    return await _pocketlm_error(request, refused)


async def _client_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _internal_error(request: Request, error: Exception) -> Response:
    """A bug: the traceback goes to the log, where uvicorn writes it, and not to the client.

    uvicorn drops the connection afterwards, so a client that would use it again has to know.
    """
    failure = PocketLMError("internal error; the server's log has the details")
    failure.headers = {"Connection": "close", "X-Request-Id": request.state.request_id}
    request.state.record.error_code = failure.code
    return render(request.url.path, failure)
