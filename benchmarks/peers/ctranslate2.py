"""CTranslate2, with the converter that comes with it."""

from __future__ import annotations

import json
from pathlib import Path

from peers.environments import run
from peers.variant import NUM_THREADS, Generate, Variant, timed
from peers.workload import TokenIds

PACKAGES = ("ctranslate2", "transformers")
VARIANTS = {"int8": Variant(8), "float32": Variant(32, "asked for its tokens only", cases=(), is_exact=True)}


def build(home: Path, checkpoint: Path) -> None:
    converter = home / "venv/bin/ct2-transformers-converter"
    for variant in VARIANTS:
        command = [converter, "--model", checkpoint, "--output_dir", home / variant, "--force"]
        run([*command, "--quantization", variant], home)


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(str(home / variant), compute_type=variant, intra_threads=NUM_THREADS)
    vocabulary = json.loads((checkpoint / "vocab.json").read_text())
    tokens = dict(zip(vocabulary.values(), vocabulary, strict=True))  # it takes tokens, not ids

    def generate(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
        results = generator.generate_batch(
            [[tokens[id] for id in prompt] for prompt in prompts],
            max_length=num_new_tokens,
            min_length=num_new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return timed(generate)
