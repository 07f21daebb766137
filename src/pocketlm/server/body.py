"""Reading a JSON body: everything that can be wrong with it is told to the client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Request

from pocketlm.errors import InvalidRequest, PayloadTooLarge, RequestTimeout, UnsupportedMediaType

MAX_DRAINED_BYTES = 256 << 20  # of a body that is refused: a client listens only once it has sent it all
MAX_NESTING = 16  # levels; Python's parser allows as many as its stack holds
MAX_DIGITS = 100  # of an integer; Python's parser refuses thousands, and no field takes even these


async def read_json(request: Request, max_body: int, patience_s: float) -> dict[str, Any]:
    """The JSON object in the body: UnsupportedMediaType, PayloadTooLarge or InvalidRequest if it is none.

    RequestTimeout if it is not there in time. NaN, infinities and lone surrogates, which Python's parser
    lets pass, are left for the fields to refuse.
    """
    try:
        return await asyncio.wait_for(_read_json(request, max_body), patience_s)
    except asyncio.TimeoutError:
        raise RequestTimeout(f"the body did not arrive within {patience_s:g} s") from None


async def _read_json(request: Request, max_body: int) -> dict[str, Any]:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        await _read(request, 0)
        raise UnsupportedMediaType(f"Content-Type must be application/json, got {media_type!r:.60}")
    body = await _read(request, max_body)
    if body is None:
        raise PayloadTooLarge(f"the body must not exceed {max_body} bytes")
    try:
        value = json.loads(body, parse_int=_parse_int)
    except ValueError as error:  # not JSON, or not UTF-8
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest(f"the body must not be nested deeper than {MAX_NESTING} levels") from None
    if not isinstance(value, dict):
        raise InvalidRequest('the body must be a JSON object, like {"prompt": "Kubernetes is a"}')
    _check_nesting(value)
    return value


async def _read(request: Request, max_body: int) -> bytes | None:
    """The body, or None if it is longer; what is too long is read all the same, and thrown away."""
    body, num_bytes = bytearray(), 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if num_bytes <= max_body:
            body += chunk
        elif num_bytes > MAX_DRAINED_BYTES:
            break
    return bytes(body) if num_bytes <= max_body else None


def _check_nesting(value: object) -> None:
    level = [value]
    for _ in range(MAX_NESTING):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise InvalidRequest(f"the body must not be nested deeper than {MAX_NESTING} levels")


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _parse_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)
