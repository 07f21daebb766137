"""POST /tokenize and /detokenize: what a model's tokenizer makes of a text, and back."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from pocketlm.server.body import read_json
from pocketlm.server.openapi import OF_A_MODEL, TIMEOUT, content, described
from pocketlm.server.protocol import DetokenizeRequest, TokenizeRequest
from pocketlm.server.service import Service

router = APIRouter(tags=["tokens"])


@router.post(
    "/tokenize",
    summary="The tokens of a prompt or a conversation",
    **described(
        content(TokenizeRequest.RESPONSE),
        body=TokenizeRequest.SCHEMA,
        statuses=OF_A_MODEL,
        parameters=[TIMEOUT],
    ),
)
async def tokenize(request: Request) -> Response:
    return await _answer(request, TokenizeRequest)


@router.post(
    "/detokenize",
    summary="The text of tokens",
    **described(
        content(DetokenizeRequest.RESPONSE),
        body=DetokenizeRequest.SCHEMA,
        statuses=OF_A_MODEL,
        parameters=[TIMEOUT],
    ),
)
async def detokenize(request: Request) -> Response:
    return await _answer(request, DetokenizeRequest)


async def _answer(
    request: Request, request_class: type[TokenizeRequest] | type[DetokenizeRequest]
) -> Response:
    service: Service = request.app.state.service
    arrived_at = asyncio.get_running_loop().time()
    config = service.config
    asked = request_class(await read_json(request, config.max_body, config.request_timeout), config)
    deadline = service.deadline(arrived_at, request.headers, None)
    request.state.record.model = service.registry.resolve(asked.asked.model)
    async with service.registry.use(asked.asked.model, deadline) as engine:
        answer = await asyncio.to_thread(asked.answer, engine.model)
    headers = {"X-Ignored-Fields": ", ".join(asked.asked.ignored)} if asked.asked.ignored else {}
    return Response(orjson.dumps(answer), headers=headers, media_type="application/json")
