"""How tokens per second and memory grow with the streams and with their context, for GPT-2 in its sizes.

Each size and sweep runs in a process of its own, so that its memory is its own. What is timed is decoding
alone: some steps in which every stream computes one token. Writes docs/growth-*.svg, then prints a table and
one JSON line.

    python benchmarks/growth.py [--shapes gpt2 ...] [--dtype int8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pocketlm import LLM, SamplingParams
from pocketlm.cli.charts import Series, line_chart
from pocketlm.kernels import BLOCK_SIZE, isa, kv_block_bytes
from pocketlm.loading import open_header
from pocketlm.shapes import SHAPES

DOCS = Path(__file__).parent.parent / "docs"
NUM_STEPS = 16  # timed in each round
STREAMS = (1, 4, 16, 64, 256)
CONTEXT = 64  # tokens that each stream looks back on in the sweep of streams
CONTEXTS = (64, 256, 512, 960)  # the window is 1024, and the new tokens must fit, too
NUM_STREAMS = 16  # in the sweep of contexts
NUM_NEW_TOKENS = 64  # at most: the first streams decode while the last ones' prompts are still being read

Row = dict[str, Any]


SWEEPS = {
    "streams": [(num_streams, CONTEXT) for num_streams in STREAMS],
    "context": [(NUM_STREAMS, context) for context in CONTEXTS],
}


def measure(shape: str, sweep: str, dtype: str, num_rounds: int) -> list[Row]:
    """A row for each case of a sweep, in this process."""
    cases = SWEEPS[sweep]
    most_blocks = max(n * -(-(context + NUM_NEW_TOKENS) // BLOCK_SIZE) for n, context in cases)
    spec = open_header(f"shape:{shape}").spec
    llm = LLM(
        f"shape:{shape}",
        dtype=dtype,
        max_num_seqs=max(STREAMS),
        kv_cache_memory=most_blocks * kv_block_bytes(spec, dtype),
        prefix_caching=False,
    )
    rows = []
    for num_streams, context in cases:
        speeds = [decode_speed(llm, num_streams, context) for _ in range(num_rounds)]
        rows.append(
            {
                "shape": shape,
                "sweep": sweep,
                "num_streams": num_streams,
                "context": context,
                "tokens_per_s": round(statistics.median(speeds), 1),
                "memory_mib": round(psutil.Process().memory_info().rss / 2**20),
            }
        )
    return rows


def decode_speed(llm: LLM, num_streams: int, context: int) -> float:
    """Tokens per second of NUM_STEPS steps that begin when every stream has its first token."""
    engine = llm.model.engine
    rng = random.Random(num_streams * context)
    params = SamplingParams(max_tokens=NUM_NEW_TOKENS, temperature=0, ignore_eos=True)
    prompts = [[rng.randrange(1, 500) for _ in range(context)] for _ in range(num_streams)]
    seq_ids = {engine.add(prompt, params, seed=0) for prompt in prompts}
    begun: set[int] = set()
    while begun < seq_ids:
        begun |= {output.seq_id for output in engine.step()}
    start = time.perf_counter()
    num_tokens = sum(len(engine.step()) for _ in range(NUM_STEPS))
    seconds = time.perf_counter() - start
    for seq_id in seq_ids:
        engine.abort(seq_id)
    assert num_tokens == NUM_STEPS * num_streams
    return num_tokens / seconds


def measure_apart(shape: str, sweep: str, dtype: str, num_rounds: int) -> list[Row]:
    command = [sys.executable, __file__, "--child", sweep, "--shapes", shape, "--dtype", dtype]
    command += ["--rounds", str(num_rounds)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=1800)
    rows: list[Row] = json.loads(found.stdout)
    return rows


def draw(rows: list[Row], dtype: str) -> None:
    axes = {
        "streams": ("num_streams", f"streams, each with {CONTEXT} tokens before it"),
        "context": ("context", f"tokens of context, {NUM_STREAMS} streams"),
    }
    for sweep, (x, x_label) in axes.items():
        for y, y_label in (("tokens_per_s", "tokens per second"), ("memory_mib", "resident memory, MiB")):
            series = [
                Series(shape, [(r[x], r[y]) for r in rows if (r["shape"], r["sweep"]) == (shape, sweep)])
                for shape in dict.fromkeys(r["shape"] for r in rows)
            ]
            chart = line_chart(f"{dtype}: {y_label}", x_label, y_label, series)
            name = "speed" if y == "tokens_per_s" else "memory"
            (DOCS / f"growth-{name}-{sweep}.svg").write_text(chart + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    shapes = [shape for shape in SHAPES if shape != "gpt2-xl"]
    parser.add_argument("--shapes", nargs="+", default=shapes, choices=SHAPES)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=SWEEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.child:
        [shape] = args.shapes
        print(json.dumps(measure(shape, args.child, args.dtype, args.rounds)))
        return
    rows = [
        row
        for shape in args.shapes
        for sweep in SWEEPS
        for row in measure_apart(shape, sweep, args.dtype, args.rounds)
    ]
    draw(rows, args.dtype)
    print(f"{args.dtype}, {isa()[0]}, decoding alone, median of {args.rounds} rounds")
    print(f"{'shape':14}{'streams':>8}{'context':>9}{'tokens/s':>10}{'memory':>11}")
    for row in rows:
        print(
            f"{row['shape']:14}{row['num_streams']:>8}{row['context']:>9}"
            f"{row['tokens_per_s']:>10}{row['memory_mib']:>7} MiB"
        )
    print(json.dumps({"dtype": args.dtype, "isa": isa()[0], "rows": rows}))


if __name__ == "__main__":
    main()
