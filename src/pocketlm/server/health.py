"""GET /health: whether this process can answer."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pocketlm.async_engine import AsyncEngine

router = APIRouter()


@router.get("/health", summary="Whether the server can answer, and with which model")
async def health(request: Request) -> JSONResponse:
    engine: AsyncEngine = request.app.state.engine
    name = engine.model.name
    if engine.failure is not None:
        return JSONResponse({"status": "unhealthy", "model": name, "error": engine.failure}, 503)
    return JSONResponse({"status": "healthy", "model": name})
