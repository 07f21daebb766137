"""pocketlm itself, from this working tree, in every number format that it has."""

from __future__ import annotations

import sys
from pathlib import Path

from peers.variant import NUM_THREADS, Generate, Variant, timed
from peers.workload import TokenIds
from pocketlm.kernels import DTYPES

BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "int4": 4}
VARIANTS = {
    dtype: Variant(BITS[dtype], is_exact=dtype == "float32", is_served=dtype != "float32") for dtype in DTYPES
}


# Room for 64 streams in float32. By default it is a part of what is free, and as old blocks keep what they
# hold, the rounds would go on to fill it until the memory is used up that other engines are in.
KV_CACHE_MEMORY = "1GB"


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    from pocketlm import LLM, SamplingParams

    llm = LLM(str(checkpoint), dtype=variant, num_threads=NUM_THREADS, kv_cache_memory=KV_CACHE_MEMORY)

    def generate(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
        params = SamplingParams(max_tokens=num_new_tokens, temperature=0, ignore_eos=True)
        return [list(answer.outputs[0].token_ids) for answer in llm.generate(prompts, params)]

    return timed(generate)


def serve(home: Path, checkpoint: Path, variant: str, port: int) -> list[str]:
    flags = ["--dtype", variant, "--num-threads", str(NUM_THREADS), "--port", str(port)]
    flags += ["--request-timeout", "600", "--kv-cache-memory", KV_CACHE_MEMORY]
    return [sys.executable, "-m", "pocketlm", "serve", str(checkpoint), *flags]
