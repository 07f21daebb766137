"""POST /generate: the exercise's endpoint. Many clients at once share one batch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from pocketlm.async_engine import AsyncEngine
from pocketlm.config import ServerConfig
from pocketlm.generation import Generation
from pocketlm.server.body import read_json
from pocketlm.server.protocol import SCHEMA, GenerateRequest

router = APIRouter()


@router.post(
    "/generate",
    summary="Continue a prompt",
    openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": SCHEMA}}}},
)
async def generate(request: Request) -> JSONResponse:
    engine: AsyncEngine = request.app.state.engine
    config: ServerConfig = request.app.state.config
    body = await read_json(request, config.max_body)
    asked = GenerateRequest.from_json(body, max_length_limit=config.max_length_limit)
    generation = await engine.admit(asked.prompt, asked.params)
    start = time.perf_counter()
    await unless_disconnected(request, _run(engine, generation))
    return JSONResponse(asked.answer(generation.output, time.perf_counter() - start))


async def _run(engine: AsyncEngine, generation: Generation) -> None:
    async for _ in engine.generate(generation):
        pass


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`; if the client goes away first, cancel it and raise ClientDisconnect."""
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        await working
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
