"""Answers and events of request objects, without a server: one LLM runs what they prepare."""

from __future__ import annotations

import functools
from typing import Any

from pocketlm.llm import LLM
from pocketlm.outputs import Timing
from pocketlm.server.protocol import ApiRequest, Head, Result

HEAD = Head(id="cmpl-1", created=1_800_000_000, model="bundled", fingerprint="fp_1")
TIMING = Timing(queue_s=0.1, prefill_s=0.2, decode_s=0.3, cpu_s=None, num_cached_tokens=2)


@functools.cache
def llm() -> LLM:
    return LLM(dtype="float32")


def answer(request: ApiRequest) -> dict[str, Any]:
    """The body of the answer that is not streamed."""
    prompts, params = request.prepare(llm().model)
    outputs = llm().generate(prompts, params)
    return request.whole(Result(HEAD, outputs, cached=False, seconds=0.6, timing=TIMING))


def events(request: ApiRequest) -> list[dict[str, Any]]:
    """Those of the stream, prompt after prompt."""
    prompts, params = request.prepare(llm().model)
    sent = request.opening(HEAD)
    outputs = []
    for i, prompt in enumerate(prompts):
        stream = llm().stream(prompt, params)
        outputs.append(stream.output)
        for piece in stream:
            sent += request.piece(HEAD, i, stream.output, piece)
    return sent + request.closing(Result(HEAD, outputs, cached=False, seconds=0.6, timing=TIMING))
