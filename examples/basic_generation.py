"""Part 2: one prompt, three continuations.

python examples/basic_generation.py          # the bundled model
python examples/basic_generation.py gpt2     # from the Hugging Face Hub
"""

from __future__ import annotations

import sys

from pocketlm import LLM, SamplingParams

llm = LLM(sys.argv[1] if len(sys.argv) > 1 else "bundled")
params = SamplingParams(
    max_length=50,  # prompt and answer together, in tokens
    n=3,  # continuations
    temperature=0.7,  # 0 = always the likeliest token; higher = bolder
    top_k=50,  # draw from the 50 likeliest tokens
    seed=1,  # the same text tomorrow; without it, another text every time
)
[answer] = llm.generate("Machine learning is", params)

print(f"Prompt: {answer.prompt}")
for completion in answer.outputs:
    print(f"\nContinuation {completion.index + 1}, seed {completion.seed}:")
    print(answer.prompt + completion.text)
