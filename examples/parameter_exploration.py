"""Part 2: the same prompt with one parameter changed at a time.

python examples/parameter_exploration.py          # the bundled model
python examples/parameter_exploration.py gpt2     # from the Hugging Face Hub
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from pocketlm import LLM, SamplingParams

PROMPT = "The future of AI is"
BASE = SamplingParams(max_length=30, temperature=0.7, seed=1)
EXPERIMENTS: dict[str, list[Any]] = {
    "temperature": [0.0, 0.1, 0.7, 1.5],
    "max_length": [20, 80],
    "top_k": [1, 10, 0],  # 0 = no limit
    "top_p": [0.1, 0.9, 1.0],
}

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "bundled")
for name, values in EXPERIMENTS.items():
    print(f"\n== {name}")
    # All at once: they are computed in one batch, and each answer is what it would be alone.
    params = [replace(BASE, **{name: value}) for value in values]
    for value, answer in zip(values, llm.generate([PROMPT] * len(values), params), strict=True):
        print(f"\n{name}={value}:\n{answer.prompt}{answer.outputs[0].text}")
