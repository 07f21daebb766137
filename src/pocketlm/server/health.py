"""GET /health, /health/live, /health/ready: whether this process can answer, should live, should be asked."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from pocketlm.registry import ModelEntry
from pocketlm.server import openapi
from pocketlm.server.protocol.fields import Schema, object_schema
from pocketlm.server.service import Service

router = APIRouter(tags=["health"])

_COUNT: Schema = {"type": "integer", "minimum": 0}
_ENGINE = object_schema(
    {
        "dtype": {"type": "string", "description": "Number format of the weights."},
        "dtype_reason": {"type": "string", "description": "Why this one."},
        "running": {**_COUNT, "description": "Sequences that are being computed."},
        "waiting": {**_COUNT, "description": "Sequences that wait for their turn."},
        "kv_cache_usage": {"type": "number", "minimum": 0, "maximum": 1},
        "tokens_per_second": {"type": "number", "description": "Prompt and answer tokens, lately."},
    }
)
_ERROR: Schema = {"type": "string", "description": "Why not."}


def _health(status: str, **more: Schema) -> Schema:
    return object_schema(
        {
            "status": {"enum": [status]},
            "model": {"type": "string", "description": "The model of requests that name none."},
            "engines": {
                "type": "object",
                "additionalProperties": _ENGINE,
                "description": "That of each model in memory.",
            },
            **more,
        }
    )


def _status(status: str, **more: Schema) -> Schema:
    return object_schema({"status": {"enum": [status]}, **more})


@router.head("/health", include_in_schema=False)
@router.get(
    "/health",
    summary="Whether the server can answer, with which model, and what it is doing",
    **openapi.probe(_health("healthy"), _health("unhealthy", error=_ERROR)),
)
async def health(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    [default, *_] = entries = service.registry.entries()
    problem = dead(entries)
    content: dict[str, Any] = {"status": "healthy", "model": default.name}
    if problem is not None:
        content |= {"status": "unhealthy", "error": problem}
    content["engines"] = {entry.name: engine_state(entry) for entry in entries if entry.engine is not None}
    return JSONResponse(content, 200 if problem is None else 503)


@router.head("/health/live", include_in_schema=False)
@router.get(
    "/health/live",
    summary="Whether the process should go on: 503 means restart it",
    **openapi.probe(_status("alive"), _status("dead", error=_ERROR)),
)
async def live(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    problem = dead(service.registry.entries())
    if problem is not None:
        return JSONResponse({"status": "dead", "error": problem}, 503)
    return JSONResponse({"status": "alive"})


@router.head("/health/ready", include_in_schema=False)
@router.get(
    "/health/ready",
    summary="Whether to send requests: 503 while loading, draining or if a check fails",
    **openapi.probe(_status("ready"), _status("not ready", error=_ERROR)),
)
async def ready(request: Request) -> JSONResponse:
    service: Service = request.app.state.service
    service.checks.start_due()  # the answer is that of the last ones
    problem = not_ready(service)
    if problem is not None:
        return JSONResponse({"status": "not ready", "error": problem}, 503)
    return JSONResponse({"status": "ready"})


def engine_state(entry: ModelEntry) -> dict[str, Any]:
    assert entry.engine is not None and entry.model is not None
    stats = entry.engine.stats()
    return {
        "dtype": entry.model.dtype,
        "dtype_reason": entry.model.dtype_reason,
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_cache_usage": round(1 - stats.num_free_blocks / stats.num_blocks, 4),
        "tokens_per_second": round(entry.engine.tokens_per_s, 1),
    }


def dead(entries: list[ModelEntry]) -> str | None:
    """Why the process should be restarted, or None."""
    failures = [
        f"{entry.name}: {entry.engine.failure}" for entry in entries if entry.engine and entry.engine.failure
    ]
    return "; ".join(failures) or None


def not_ready(service: Service) -> str | None:
    """Why this server should get no requests, or None."""
    entries = service.registry.entries()
    if service.is_draining:
        return "the server is shutting down"
    if not any(entry.model is not None for entry in entries) and all(e.state != "available" for e in entries):
        return "no model is loaded"
    failed = [f"{entry.name}: {entry.check_failure}" for entry in entries if entry.check_failure]
    return dead(entries) or "; ".join(failed) or None
