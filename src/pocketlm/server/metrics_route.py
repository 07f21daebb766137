"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from pocketlm.server.metrics import CONTENT_TYPE
from pocketlm.server.openapi import content, described
from pocketlm.server.service import Service

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    summary="Metrics in Prometheus's format",
    response_class=PlainTextResponse,
    **described(content({"type": "string"}, "text/plain")),
)
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    size = service.cache.size_now()
    if size is not None:
        service.metrics.cache_size(*size)
    return Response(service.metrics.render(), media_type=CONTENT_TYPE)
