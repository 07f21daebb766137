"""Tokens per second of the engine in process: 32-token prompts, 64 new tokens, a sweep of streams.

Prints a table, then one JSON line. Each round runs every case once, so that a noisy moment of the
machine falls on all of them; the median over rounds is shown.

    python benchmarks/engine.py [--model bundled] [--dtypes int8] [--rounds 5] [--streams 1 16 64]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from pocketlm import LLM, SamplingParams
from pocketlm.kernels import DTYPES, isa

NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 32, 64


def random_prompts(num_streams: int, seed: int) -> list[list[int]]:
    """They differ, so no prefix is shared."""
    rng = random.Random(seed)
    return [[rng.randrange(1, 500) for _ in range(NUM_PROMPT_TOKENS)] for _ in range(num_streams)]


def tokens_per_second(llm: LLM, num_streams: int, seed: int) -> float:
    """New tokens per second over all streams, prefill included."""
    prompts = random_prompts(num_streams, seed)
    params = SamplingParams(max_tokens=NUM_NEW_TOKENS, temperature=0, ignore_eos=True)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params)
    seconds = time.perf_counter() - start
    assert all(len(output.outputs[0].token_ids) == NUM_NEW_TOKENS for output in outputs)
    return num_streams * NUM_NEW_TOKENS / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()

    llms = {dtype: LLM(args.model, dtype=dtype) for dtype in args.dtypes}
    measured: dict[tuple[str, int], list[float]] = {}
    for round_number in range(args.rounds + 1):  # the first one warms up
        for num_streams in args.streams:
            for dtype, llm in llms.items():
                speed = tokens_per_second(llm, num_streams, round_number * 1000 + num_streams)
                if round_number:
                    measured.setdefault((dtype, num_streams), []).append(speed)

    medians = {case: statistics.median(speeds) for case, speeds in measured.items()}
    print(f"{args.model}, {isa()[0]}, new tokens per second, median of {args.rounds} rounds")
    print("dtype    " + "".join(f"{n:>9} streams" for n in args.streams))
    for dtype in args.dtypes:
        print(f"{dtype:9}" + "".join(f"{medians[dtype, n]:>17.0f}" for n in args.streams))
    result = {dtype: {str(n): round(medians[dtype, n], 1) for n in args.streams} for dtype in args.dtypes}
    print(json.dumps({"model": args.model, "isa": isa()[0], "tokens_per_second": result}))


if __name__ == "__main__":
    main()
