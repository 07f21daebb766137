"""POST /cache/clear and GET /cache/stats."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from pocketlm.errors import CacheUnavailable
from pocketlm.server.openapi import OF_EVERY_ROUTE, content, described
from pocketlm.server.protocol.fields import Schema, object_schema
from pocketlm.server.service import Service

router = APIRouter(prefix="/cache", tags=["cache"])

_COUNT: Schema = {"type": "integer", "minimum": 0}
_COUNT_IF_KNOWN: Schema = {
    "type": ["integer", "null"],
    "minimum": 0,
    "description": "null: Redis did not answer.",
}
CLEARED = object_schema({"status": {"enum": ["cleared"]}, "entries": _COUNT})
STATS = object_schema(
    {
        "enabled": {"type": "boolean"},
        "backend": {"enum": ["memory", "redis"]},
        "entries": _COUNT_IF_KNOWN,
        "bytes": _COUNT_IF_KNOWN,
        "max_bytes": {"type": ["integer", "null"], "description": "null: Redis has its own bound."},
        "ttl_seconds": {"type": "number", "description": "How long an answer is kept."},
        "hits": {**_COUNT, "description": "This and what follows: since the start, of this process."},
        "misses": _COUNT,
        "bypasses": {**_COUNT, "description": "Requests that were not to be answered from the cache."},
        "errors": {**_COUNT, "description": "What could not be read or kept."},
        "evictions": {**_COUNT, "description": "Answers that had to make room."},
    }
)


@router.post(
    "/clear",
    summary="Forget every answer that is kept",
    **described(content(CLEARED), statuses=(*OF_EVERY_ROUTE, 503)),
)
async def clear_cache(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    num_entries = await service.cache.clear()
    if num_entries is None:
        raise CacheUnavailable("Redis did not answer to the end, and some answers may be left; try again")
    return {"status": "cleared", "entries": num_entries}


@router.get(
    "/stats",
    summary="How many answers are kept, and how often they were of use",
    **described(content(STATS)),
)
async def cache_stats(request: Request) -> dict[str, Any]:
    service: Service = request.app.state.service
    return {"enabled": service.config.cache, **await service.cache.stats()}
