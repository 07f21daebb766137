"""POST /generate, /v1/completions and /v1/chat/completions: one way through the server for all three."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from pocketlm.errors import PocketLMError
from pocketlm.generation import Prompt
from pocketlm.loading import LoadedModel
from pocketlm.sampling import SamplingParams
from pocketlm.server import errors, sse
from pocketlm.server.body import read_json
from pocketlm.server.disconnect import unless_disconnected
from pocketlm.server.openapi import OPENAI_ERROR, documented
from pocketlm.server.piece_encoder import PieceEncoder
from pocketlm.server.protocol import (
    ApiRequest,
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    Head,
    Result,
)
from pocketlm.server.request_log import RequestRecord
from pocketlm.server.runs import Run
from pocketlm.server.service import CachePolicy, Service, is_deterministic

router = APIRouter(tags=["generation"])

LONG_BODY = 8192  # bytes; a body this long is made into prompts in a worker thread


@router.post("/generate", summary="Continue a prompt", **documented(GenerateRequest))
async def generate(request: Request) -> Response:
    return await _Exchange(request).respond(GenerateRequest)


@router.post("/v1/completions", summary="Continue prompts", **documented(CompletionRequest, OPENAI_ERROR))
async def completions(request: Request) -> Response:
    return await _Exchange(request).respond(CompletionRequest)


@router.post("/v1/chat/completions", summary="Answer a conversation", **documented(ChatRequest, OPENAI_ERROR))
async def chat_completions(request: Request) -> Response:
    return await _Exchange(request).respond(ChatRequest)


class _Exchange:
    """One request and its response."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.service: Service = request.app.state.service
        self.record: RequestRecord = request.state.record
        self.owner: str = request.state.owner
        # Of the response, whether it is an answer or an error.
        self.headers: dict[str, str] = {}
        request.state.headers = self.headers
        self.loop = asyncio.get_running_loop()
        self.arrived_at = self.loop.time()

    async def respond(self, request_class: type[ApiRequest]) -> Response:
        config = self.service.config
        body = await read_json(self.request, config.max_body, config.request_timeout)
        self.headers.update(await self.service.rate_limits.take_request(self.owner))
        asked = request_class.from_json(body, config)
        async with AsyncExitStack() as held:
            run, head = await unless_disconnected(self.request.receive, self._open(asked, held))
            if not asked.asked.stream:
                await unless_disconnected(self.request.receive, self._finish(run))
                return self._whole(asked, run, head)
            held.enter_context(self.service.stream_slot())
            # Started only when there is something to say, so that an error before it has its own status.
            chunks = self._chunks(asked, run, head)
            held.push_async_callback(chunks.aclose)
            first = await unless_disconnected(self.request.receive, _next(chunks))
            return sse.EventStream(first, chunks, self.headers, held.pop_all())

    async def _open(self, asked: ApiRequest, held: AsyncExitStack) -> tuple[Run, Head]:
        """Everything before the first token: the model, the prompts, the cache, a place in the queue."""
        serving, service = asked.asked, self.service
        self.record.stream, self.record.user = serving.stream, serving.user
        if serving.ignored:
            self.headers["X-Ignored-Fields"] = ", ".join(serving.ignored)
        deadline = service.deadline(self.arrived_at, self.request.headers, serving.timeout_s)
        self.record.model = service.registry.resolve(serving.model)
        engine = await held.enter_async_context(service.registry.use(serving.model, deadline))
        model = engine.model
        prompts, params = await self._prepare(asked, model)
        keeps_sampled = asked.KEEPS_SAMPLED or service.config.cache_sampled
        policy = CachePolicy.of(
            self.request.headers,
            serving.use_cache,
            is_on=service.config.cache,
            by_default=keeps_sampled or is_deterministic(params),
        )
        generations = await service.admit(engine, prompts, params)
        beat_s = service.config.sse_keep_alive if serving.stream else None
        run = held.enter_context(
            service.open_run(started_at=self.arrived_at, deadline=deadline, beat_s=beat_s)
        )
        held.callback(self._note, run)
        self.headers.update(await service.start(run, engine, generations, policy, self.owner))
        is_hit = run.num_cached == len(generations)
        self.record.cache = "hit" if is_hit else "miss" if policy.reads else "bypass"
        self.headers["X-Cache"] = self.record.cache
        return run, Head(
            id=self.request.state.request_id,
            created=int(time.time()),
            model=model.name,
            fingerprint=f"fp_{model.fingerprint[:12]}",
        )

    async def _prepare(self, asked: ApiRequest, model: LoadedModel) -> tuple[list[Prompt], SamplingParams]:
        if int(self.request.headers.get("content-length", LONG_BODY)) < LONG_BODY:
            return asked.prepare(model)
        return await asyncio.to_thread(asked.prepare, model)

    async def _finish(self, run: Run) -> None:
        async for _ in run.batches():
            pass

    def _result(self, run: Run, head: Head) -> Result:
        return Result(
            head=head,
            outputs=run.outputs,
            cached=self.record.cache == "hit",
            seconds=self.loop.time() - self.arrived_at,
            timing=run.timing,
        )

    def _whole(self, asked: ApiRequest, run: Run, head: Head) -> Response:
        content = orjson.dumps(asked.whole(self._result(run, head)))
        return Response(content, headers=self.headers, media_type="application/json")

    async def _chunks(self, asked: ApiRequest, run: Run, head: Head) -> AsyncGenerator[bytes, None]:
        """The response of a stream: what has arrived is one chunk, and so one write."""
        opening = b"".join(map(sse.encode, asked.opening(head)))
        encoder = PieceEncoder(asked, head)
        has_begun = False
        try:
            async for batch in run.batches():
                chunk = b"".join([encoder.encode(index, run.outputs[index], piece) for index, piece in batch])
                if not batch:
                    chunk = sse.COMMENT
                if chunk:
                    yield chunk if has_begun else opening + chunk
                    has_begun = True
        except PocketLMError as error:
            if not has_begun:  # it can have a status of its own
                raise
            self.service.metrics.rejected(error.code)
            self.record.error_code = error.code
            yield sse.encode(errors.body(self.request.url.path, error))
            return
        closing = b"".join(map(sse.encode, asked.closing(self._result(run, head))))
        yield (closing if has_begun else opening + closing) + sse.DONE

    def _note(self, run: Run) -> None:
        """What the log says of the request."""
        record, outputs = self.record, run.outputs
        completions = [completion for output in outputs for completion in output.outputs]
        record.num_prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        record.num_output_tokens = sum(len(completion.token_ids) for completion in completions)
        record.finish_reasons = [c.finish_reason.value for c in completions if c.finish_reason is not None]
        record.timing = run.timing
        if self.service.config.log_prompts:
            record.prompts = [output.prompt for output in outputs]
            record.answers = [completion.text for completion in completions]


async def _next(chunks: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(chunks)
