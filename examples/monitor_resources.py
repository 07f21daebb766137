"""Part 4: what a model costs in memory and time.

python examples/monitor_resources.py          # the bundled model
python examples/monitor_resources.py gpt2     # from the Hugging Face Hub

`pocketlm monitor` measures more, and watches running servers, too.
"""

from __future__ import annotations

import sys
import time

import psutil

from pocketlm import LLM, SamplingParams


def memory_mib() -> float:
    """Resident memory of this process."""
    return psutil.Process().memory_info().rss / 2**20


before = memory_mib()
start = time.perf_counter()
llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "bundled")
load_s = time.perf_counter() - start
after = memory_mib()

start = time.perf_counter()
[answer] = llm.generate("Machine learning is", SamplingParams(max_length=50, seed=1))
inference_s = time.perf_counter() - start
[completion] = answer.outputs

print(answer.prompt + completion.text)
print()
print(f"Memory before loading:  {before:8.1f} MiB")
print(f"Memory after loading:   {after:8.1f} MiB, {after - before:.1f} for the model")
print(f"Memory after inference: {memory_mib():8.1f} MiB")
print(f"Load time:              {load_s:8.2f} s")
print(f"Inference time:         {inference_s:8.2f} s")
print(f"Tokens per second:      {len(completion.token_ids) / inference_s:8.1f}")
