"""The engine in process and behind HTTP, in turn: what the server costs.

32-token prompts, 64 new tokens; over HTTP each stream is a client of /v1/completions with a connection of
its own. Prints a table, then one JSON line. Each round runs every case once, one right after the other;
the ratio is the median of those of the rounds.

    python benchmarks/serving.py [--model bundled] [--dtype int8] [--rounds 7] [--streams 1 16 64]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict

from crowd import Answer, Crowd, post
from engine import NUM_NEW_TOKENS, random_prompts, tokens_per_second
from own_server import own_server

from pocketlm import LLM
from pocketlm.kernels import isa

TIMEOUT_S = 300


def served_tokens_per_second(crowd: Crowd, num_streams: int, seed: int) -> float:
    """New tokens per second over all clients, from the first request sent to the last answer received."""
    requests = [
        post(
            "/v1/completions",
            {
                "prompt": prompt,
                "max_tokens": NUM_NEW_TOKENS,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                "timeout": TIMEOUT_S,
                "cache": False,
            },
        )
        for prompt in random_prompts(num_streams, seed)
    ]
    answers = crowd.ask(requests, timeout_s=TIMEOUT_S)
    for answer in answers:
        check(answer)
    return num_streams * NUM_NEW_TOKENS / max(answer.total_s for answer in answers)


def check(answer: Answer) -> None:
    if answer.status != 200 or not answer.body.endswith(b"data: [DONE]\n\n"):
        raise SystemExit(f"status {answer.status}: {answer.body[-1000:]!r}")
    num_tokens = answer.num_tokens()
    if num_tokens != NUM_NEW_TOKENS:
        raise SystemExit(f"{num_tokens} new tokens instead of {NUM_NEW_TOKENS}: {answer.body[-1000:]!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    args = parser.parse_args()

    llm = LLM(args.model, dtype=args.dtype)
    in_process: dict[int, list[float]] = defaultdict(list)
    served: dict[int, list[float]] = defaultdict(list)
    with (
        own_server(args.model, "--dtype", args.dtype) as url,
        Crowd(url, max(args.streams)) as crowd,
    ):
        for round_number in range(args.rounds + 1):  # the first one warms up
            for num_streams in args.streams:
                seed = round_number * 1000 + num_streams
                one = tokens_per_second(llm, num_streams, seed)
                other = served_tokens_per_second(crowd, num_streams, seed)
                if round_number:
                    in_process[num_streams].append(one)
                    served[num_streams].append(other)

    result = {
        str(n): {
            "in_process": round(statistics.median(in_process[n]), 1),
            "http": round(statistics.median(served[n]), 1),
            "ratio": round(
                statistics.median(h / p for h, p in zip(served[n], in_process[n], strict=True)), 3
            ),
        }
        for n in args.streams
    }
    print(f"{args.model}, {args.dtype}, {isa()[0]}, new tokens per second, median of {args.rounds} rounds")
    print("streams  in process      HTTP     ratio")
    for n, row in result.items():
        print(f"{n:>7}{row['in_process']:>12.0f}{row['http']:>10.0f}{row['ratio']:>10.2f}")
    print(json.dumps({"model": args.model, "dtype": args.dtype, "isa": isa()[0], "streams": result}))


if __name__ == "__main__":
    main()
