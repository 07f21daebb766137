"""Part 5: the same measurement for several models; one that fails does not stop the others.

python examples/compare_models.py                             # the bundled model and a folder that is missing
python examples/compare_models.py gpt2 distilgpt2             # from the Hugging Face Hub
python examples/compare_models.py shape:gpt2 shape:distilgpt2 # random weights of that size, no download

`pocketlm compare` measures more, and draws.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import psutil

from pocketlm import LLM, PocketLMError, SamplingParams


def measure(name: str) -> str:
    """One row about a model, in a process of its own: memory that another one left would count here."""
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    try:
        llm = LLM(name)
    except PocketLMError as error:
        return f"failed: {error}"
    load_s = time.perf_counter() - start
    memory = psutil.Process().memory_info().rss - before

    start = time.perf_counter()
    [answer] = llm.generate("Hello, I am", SamplingParams(max_length=50, seed=1))
    seconds = time.perf_counter() - start
    [completion] = answer.outputs
    return (
        f"{memory / 2**20:7.1f} MiB   load {load_s:5.2f} s   inference {seconds:5.2f} s   "
        f"{len(completion.token_ids) / seconds:6.1f} tokens/s   {completion.text[:30]!r}"
    )


if __name__ == "__main__":
    for model in sys.argv[1:] or ["bundled", "no/such/folder"]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                row = pool.submit(measure, model).result()
            except BrokenProcessPool:
                row = "failed: the process was killed, which is what happens when memory runs out"
        print(f"{model:16} {row}")
