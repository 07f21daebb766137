"""Every error as the exercise answers it: {"error": "…"} with the status that its class carries."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pocketlm.errors import PocketLMError

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's number; nobody is left to read it


def add_handlers(app: FastAPI) -> None:
    app.add_exception_handler(PocketLMError, _pocketlm_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)
    app.add_exception_handler(Exception, _internal_error)


async def _pocketlm_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, PocketLMError)
    if error.status >= 500:
        log.error("%s %s: %s", request.method, request.url.path, error)
    return JSONResponse({"error": str(error)}, error.status)


async def _http_exception(request: Request, error: Exception) -> Response:
    """404 and 405, which the router raises."""
    assert isinstance(error, HTTPException)
    return JSONResponse(
        {"error": f"{error.detail}: {request.method} {request.url.path}"}, error.status_code, error.headers
    )


async def _client_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _internal_error(request: Request, error: Exception) -> Response:
    """A bug: the traceback goes to the log, where uvicorn writes it, and not to the client.

    uvicorn drops the connection afterwards, so a client that would use it again has to know.
    """
    message = "internal error; the server's log has the details"
    return JSONResponse({"error": message}, 500, {"Connection": "close"})
