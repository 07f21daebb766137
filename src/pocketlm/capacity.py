"""Capacity: what a model of some size would do on this machine, predicted and measured."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from pocketlm.config import engine_config
from pocketlm.engine.engine import Engine
from pocketlm.loading import estimate, load_model, open_header
from pocketlm.machine_speed import MachineSpeed
from pocketlm.outputs import StepOutput
from pocketlm.roofline import CONTEXT, predict
from pocketlm.sampling import SamplingParams

NUM_STREAMS = (1, 16)
NUM_NEW_TOKENS = 32
MAX_TOKEN_ID = 500  # of the prompts: a few words of any vocabulary
NUM_PROMPT_TOKENS = CONTEXT - NUM_NEW_TOKENS // 2  # so that the context is CONTEXT on average


@dataclass(frozen=True)
class Capacity:
    """One model in one number format. The tokens per second are by the number of streams."""

    model: str
    dtype: str
    num_parameters: int
    weights_bytes: int
    num_streams_that_fit: int  # whole contexts in the memory left beside the weights; 0: it cannot be loaded
    predicted_tokens_per_s: dict[int, float]
    bounds: dict[int, str]  # what the prediction is bound by: memory or compute


def capacity(name: str, dtype: str, speed: MachineSpeed, available_bytes: int) -> Capacity:
    """What is to be expected of a model. ModelLoadError."""
    need = estimate(name, engine_config(dtype=dtype), available_bytes)
    left = available_bytes - need.weights_bytes
    spec = open_header(name).spec
    predictions = {n: predict(spec, dtype, n, speed) for n in NUM_STREAMS}
    return Capacity(
        model=name,
        dtype=dtype,
        num_parameters=need.num_parameters,
        weights_bytes=need.weights_bytes,
        num_streams_that_fit=left // need.least_kv_cache_bytes if need.load_bytes <= available_bytes else 0,
        predicted_tokens_per_s={n: prediction.tokens_per_s for n, prediction in predictions.items()},
        bounds={n: prediction.bound for n, prediction in predictions.items()},
    )


def measured_tokens_per_s(name: str, dtype: str) -> dict[int, float]:
    """New tokens per second once every stream has its first, by the number of streams. ModelLoadError."""
    config = engine_config(
        dtype=dtype, max_num_seqs=max(NUM_STREAMS), max_model_len=NUM_PROMPT_TOKENS + NUM_NEW_TOKENS
    )
    engine = load_model(name, config).engine
    return {n: _decoding_speed(engine, n) for n in NUM_STREAMS}


def _decoding_speed(engine: Engine, num_streams: int) -> float:
    draw = random.Random(num_streams)
    params = SamplingParams(max_tokens=NUM_NEW_TOKENS, temperature=0, ignore_eos=True)
    waiting = {
        engine.add([draw.randint(1, MAX_TOKEN_ID) for _ in range(NUM_PROMPT_TOKENS)], params, seed=0)
        for _ in range(num_streams)
    }
    while waiting:
        waiting -= {step.seq_id for step in _step(engine)}
    num_tokens, start = 0, time.perf_counter()
    while engine.has_work:
        num_tokens += len(_step(engine))
    return num_tokens / (time.perf_counter() - start)


def _step(engine: Engine) -> list[StepOutput]:
    steps = engine.step()
    for step in steps:
        if step.error is not None:
            raise step.error
    return steps
