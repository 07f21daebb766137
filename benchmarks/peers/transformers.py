"""Hugging Face Transformers: the exercise's pipeline, its Flask server, and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.variant import NUM_THREADS, Generate, Variant, timed
from peers.workload import TokenIds, text_of

PACKAGES = ("transformers", "flask")
VARIANTS = {
    "pipeline": Variant(
        32,
        "the exercise's pipeline('text-generation'), greedy; it takes one prompt after another, so many "
        "streams are no faster",
        cases=("1 stream",),
        is_exact=True,
    ),
    "batch fp32": Variant(32, "model.generate of all prompts together", is_exact=True),
    "batch bf16": Variant(16, "model.generate of all prompts together"),
    # 64 clients wait for minutes.
    "Flask": Variant(32, "the exercise's server as it is written", cases=(), is_served=True, is_slow=True),
}


def build(home: Path, checkpoint: Path) -> None:
    """It takes the checkpoint as it is."""


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    import torch
    import transformers

    torch.set_num_threads(NUM_THREADS)
    if variant == "pipeline":
        pipeline = transformers.pipeline("text-generation", model=str(checkpoint), device=-1)

        def one_by_one(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
            answers = []
            for prompt in prompts:
                [answer] = pipeline(
                    text_of(prompt),
                    max_new_tokens=num_new_tokens,
                    min_new_tokens=num_new_tokens,
                    do_sample=False,
                    return_tensors=True,
                )
                answers.append(answer["generated_token_ids"][len(prompt) :])
            return answers

        return timed(one_by_one)

    dtype = torch.bfloat16 if variant == "batch bf16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)

    def together(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
        ids = torch.tensor(prompts)
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            do_sample=False,
            pad_token_id=model.config.eos_token_id,
        )
        answers: list[TokenIds] = whole[:, ids.shape[1] :].tolist()
        return answers

    return timed(together)


def serve(home: Path, checkpoint: Path, variant: str, port: int) -> list[str]:
    script = Path(__file__).with_name("scripts") / "flask_server.py"
    return [str(home / "venv/bin/python"), str(script), str(checkpoint), str(port)]


def request(prompt: TokenIds, num_new_tokens: int) -> tuple[str, dict[str, Any]]:
    return "/generate", {"prompt": text_of(prompt), "max_length": len(prompt) + num_new_tokens}
