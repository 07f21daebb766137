"""Variant: one way in which an engine is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from peers.workload import CASES, TokenIds

NUM_THREADS = 2
IN_PROCESS = tuple(name for name, case in CASES.items() if not case.over_http)

# Prompts, and how many new tokens each gets -> seconds, and the new tokens; None where they are not told.
Generate = Callable[[list[TokenIds], int], tuple[float, list[TokenIds] | None]]


@dataclass(frozen=True)
class Variant:
    bits: int  # of a weight
    settings: str = ""  # in words, where the name does not say it all
    cases: tuple[str, ...] = IN_PROCESS
    is_served: bool = False  # over HTTP, too
    is_exact: bool = False  # in float32: must say what pocketlm says in float32
    is_slow: bool = False  # for minutes: it runs once, and does not warm up


def timed(generate: Callable[[list[TokenIds], int], list[TokenIds]]) -> Generate:
    def generate_and_time(prompts: list[TokenIds], num_new_tokens: int) -> tuple[float, list[TokenIds]]:
        start = time.perf_counter()
        answers = generate(prompts, num_new_tokens)
        seconds = time.perf_counter() - start
        lengths = sorted({len(answer) for answer in answers})
        if len(answers) != len(prompts) or lengths != [num_new_tokens]:
            wanted = f"{len(prompts)} answers of {num_new_tokens} tokens"
            raise ValueError(f"wanted {wanted}, got {len(answers)} of {lengths}")
        return seconds, answers

    return generate_and_time
