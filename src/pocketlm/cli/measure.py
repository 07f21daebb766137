"""One model measured in a process of its own: how long it takes to load and to answer, and its memory.

`python -m pocketlm.cli.measure` reads the arguments of `measure` from stdin, as a line of JSON, and prints
what it is doing and at the end what it found, a line of JSON each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

SEED = 0
MIB = 2**20


@dataclass(frozen=True)
class Measurement:
    """What one model cost. Memory is resident memory, as the operating system counts it."""

    parameters: int
    dtype: str
    load_s: float
    memory_before_mib: float
    memory_after_mib: float
    memory_mib: float  # what the model itself takes, the difference
    memory_during_mib: float  # the most while it answered
    peak_memory_mib: float  # while it loaded and answered
    inference_s: float
    processors_used: float  # while it answered
    num_tokens: int
    tokens_per_second: float
    output: str


def measure(model: str, config: dict[str, Any], prompt: str, max_tokens: int) -> Measurement:
    """Load a model into this process and let it answer once."""
    from pocketlm import LLM, SamplingParams

    _say(stage="loading")
    _check_fits(model, config)
    before = resident_mib()
    start = time.perf_counter()
    llm = LLM(model, **config)
    load_s = time.perf_counter() - start
    after = resident_mib()
    _say(stage="generating")
    # Without an end token, so that every model is asked for equally many tokens.
    params = SamplingParams(max_tokens=max_tokens, temperature=0.7, top_k=50, seed=SEED, ignore_eos=True)
    during, cpu_s = after, time.process_time()
    start = time.perf_counter()
    stream = llm.stream(prompt, params)
    for _ in stream:
        during = max(during, resident_mib())
    inference_s = time.perf_counter() - start
    cpu_s = time.process_time() - cpu_s
    during = max(during, resident_mib())
    [completion] = stream.output.outputs
    return Measurement(
        parameters=llm.model.num_parameters,
        dtype=llm.model.dtype,
        load_s=load_s,
        memory_before_mib=before,
        memory_after_mib=after,
        memory_mib=after - before,
        memory_during_mib=during,
        peak_memory_mib=max(peak_mib(), during),
        inference_s=inference_s,
        processors_used=cpu_s / inference_s,
        num_tokens=len(completion.token_ids),
        tokens_per_second=len(completion.token_ids) / inference_s,
        output=completion.text,
    )


def _check_fits(model: str, config: dict[str, Any]) -> None:
    """Rather no figure than a machine that swaps, or a process that the system ends."""
    from pocketlm import hardware
    from pocketlm.config import engine_config
    from pocketlm.errors import InsufficientMemory
    from pocketlm.loading import estimate, readable

    available, where = hardware.available_memory()
    needed = estimate(model, engine_config(**config), available).load_bytes
    if needed > available:
        raise InsufficientMemory(
            f"loading it takes up to {readable(needed)}, and {readable(available)} are {where}"
        )


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / MIB


def peak_mib() -> float:
    """The most that was ever resident in this process."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with what the parent process had
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / MIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _end_with_parent() -> None:
    """Whoever started this process holds the other end of stdin; without them nobody wants the result."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    from pocketlm.errors import PocketLMError

    arguments = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        measurement = measure(**arguments)
    except PocketLMError as error:
        _say(error=str(error))
        sys.exit(1)
    except MemoryError:
        _say(error="the system has not enough memory for it")
        sys.exit(1)
    _say(**asdict(measurement))


if __name__ == "__main__":
    main()
