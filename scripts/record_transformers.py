"""Record what Transformers answers, for the tests that run without it.

    make test-oracle                                     # installs torch and transformers
    PYTHONPATH=tests .venv/bin/python scripts/record_transformers.py

Draws GPT-2 configurations, writes each as a checkpoint with seeded weights (tests/checkpoints.py), and
stores in tests/recorded/ the configuration, a random prompt, the greedy tokens, and the logits after
the prompt and of the last step. tests/models/test_recorded.py makes the same checkpoints again.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import oracle
import torch
import transformers
from checkpoints import write_checkpoint
from random_gpt2 import NUM_NEW_TOKENS, draw_options, draw_prompt

NUM_CONFIGURATIONS = 24
SEED = 2
SMALLEST_MARGIN = 1e-3  # of the largest logit: no rounding may decide a token
RECORDED = Path(__file__).parents[1] / "tests" / "recorded"


def main() -> None:
    rng = np.random.Generator(np.random.PCG64(SEED))
    cases, arrays = [], {}
    while (index := len(cases)) < NUM_CONFIGURATIONS:
        options = draw_options(rng, index)
        prompt = draw_prompt(rng, options["vocab_size"])
        with tempfile.TemporaryDirectory() as parent:
            folder = write_checkpoint(Path(parent) / "model", tokenizer=False, **options)
            tokens, logits = oracle.greedy(oracle.load(folder), prompt, NUM_NEW_TOKENS)
        margin = oracle.smallest_margin(logits)
        print(f"{index:2}  margin {margin:.1e}  distinct tokens {len(set(tokens)):2}  {options}")
        if margin < SMALLEST_MARGIN:
            print("    too near to a tie, drawing another")
            continue
        cases.append({"options": options, "prompt": prompt, "tokens": tokens, "smallest_margin": margin})
        arrays[f"{index}.first"] = logits[0]
        arrays[f"{index}.last"] = logits[-1]
    versions = {module.__name__: module.__version__ for module in (np, torch, transformers)}
    RECORDED.mkdir(exist_ok=True)
    (RECORDED / "gpt2.json").write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")
    np.savez(RECORDED / "gpt2.npz", **arrays)


if __name__ == "__main__":
    main()
