"""Part 1: is pocketlm installed, what will it compute with, and does a model answer?

python examples/verify_install.py
"""

from __future__ import annotations

import pocketlm
from pocketlm import LLM, SamplingParams

print(f"pocketlm {pocketlm.__version__}")

llm = LLM()  # the bundled model: nothing is downloaded
for setting in llm.model.settings:
    print(f"  {setting}")

[answer] = llm.generate("Hello, I am", SamplingParams(max_length=20, seed=1))
print(answer.prompt + answer.outputs[0].text)
print("The installation works.")
