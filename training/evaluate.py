"""Measure a model in Hugging Face's format: bits per byte, samples, and what they have by heart.

    python -m training.evaluate MODEL --validation FILE --training-text PATH... [--write-card]

MODEL is whatever pocketlm loads. It runs in pocketlm, in float32, so neither torch nor a GPU is needed.
Prints Markdown; --write-card puts it into MODEL/README.md, too. Texts are UTF-8 with lines `<|endoftext|>`
between documents, xz-compressed if named .xz; a PATH may be a folder of *.txt.xz.

Bits per byte are the bits the model needs for the text, over its bytes in UTF-8, so that models with
different vocabularies compare. Every token of a document is predicted once, the first from <|endoftext|>,
in windows of the model's context that do not overlap.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketlm import LLM, SamplingParams
from pocketlm.accuracy import log_softmax, logits_of
from pocketlm.text.tokenizer import END_OF_TEXT
from training.card import write_figures
from training.errors import errors_reported
from training.prepare import read_documents

PROMPTS = (
    "Kubernetes is a",
    "Docker containers are",
    "Machine learning infrastructure requires",
    "The best way to deploy machine learning models is",
    "The future of AI is",
    "When a node fails, the scheduler",
    "To reduce the latency of inference,",
    "Observability means that",
    "A load balancer is",
    "The main difference between a process and a thread is",
)
SAMPLING = SamplingParams(max_tokens=60, temperature=0.7, top_k=50)  # the prompts have seeds 1, 2, ...


@dataclass
class Likelihood:
    """How well a model predicts a text."""

    num_documents: int = 0
    num_tokens: int = 0
    num_bytes: int = 0
    loss_sum: float = 0.0  # nats

    @property
    def bits_per_byte(self) -> float:
        return self.loss_sum / math.log(2) / self.num_bytes

    @property
    def perplexity(self) -> float:
        """Per token, so it compares only models with one vocabulary."""
        return math.exp(self.loss_sum / self.num_tokens)


@dataclass(frozen=True)
class Sample:
    prompt: str
    seed: int
    text: str  # the prompt and what the model added
    overlap: str  # the longest run of words that the training text has too


def likelihood(llm: LLM, documents: Iterable[str]) -> Likelihood:
    """Of documents, each on its own."""
    decoder, tokenizer = llm.model.engine.decoder, llm.model.tokenizer
    [end_of_text] = tokenizer.encode(END_OF_TEXT)
    result = Likelihood()
    for document in documents:
        token_ids = [end_of_text, *tokenizer.encode(document)]
        for start in range(0, len(token_ids) - 1, llm.model.max_model_len):
            window = token_ids[start : start + llm.model.max_model_len + 1]  # the last one is only predicted
            logprobs = np.concatenate([log_softmax(chunk) for chunk in logits_of(decoder, window[:-1])])
            result.loss_sum -= float(logprobs[np.arange(len(window) - 1), window[1:]].sum())
        result.num_documents += 1
        result.num_tokens += len(token_ids) - 1
        result.num_bytes += len(document.encode())
    return result


def samples(llm: LLM, training_text: str) -> list[Sample]:
    """What the model adds to PROMPTS. `training_text`: words with single spaces, see `as_words`."""
    seeds = range(1, len(PROMPTS) + 1)
    outputs = llm.generate(list(PROMPTS), [replace(SAMPLING, seed=seed) for seed in seeds])
    texts = [prompt + output.outputs[0].text for prompt, output in zip(PROMPTS, outputs, strict=True)]
    return [
        Sample(prompt, seed, text, longest_overlap(text, training_text))
        for prompt, seed, text in zip(PROMPTS, seeds, texts, strict=True)
    ]


def as_words(documents: Iterable[str]) -> str:
    """Words with one space between them and around them all, so that a search finds whole words."""
    return f" {' '.join(word for document in documents for word in document.split())} "


def longest_overlap(text: str, words: str) -> str:
    """The longest run of words of a text, in characters, that `words` (see `as_words`) has as well."""
    own = text.split()
    longest = ""
    start, end = 0, 1
    while end <= len(own):
        run = " ".join(own[start:end])
        if f" {run} " in words:
            longest = max(longest, run, key=len)
            end += 1
        elif start + 1 < end:
            start += 1  # no longer run begins here; one may end at the same word
        else:
            start, end = start + 1, end + 1
    return longest


def markdown(command: str, found: Likelihood, texts: list[Sample]) -> str:
    """Figures and samples as the model's card has them."""
    longest = max((sample.overlap for sample in texts), key=len)
    settings = f"temperature {SAMPLING.temperature}, top-k {SAMPLING.top_k}, {SAMPLING.max_tokens} tokens"
    return "\n".join(
        [
            f"## Measured\n\n```\n{command}\n```\n",
            "| | |\n|---|---|",
            f"| validation text | {found.num_documents} documents, {found.num_bytes:,} bytes, "
            f"{found.num_tokens:,} tokens |",
            f"| bits per byte | {found.bits_per_byte:.4f} |",
            f"| perplexity per token | {found.perplexity:.3f} |",
            f"| longest run of words that a sample shares with the training text | {size(longest)} |",
            f"\n## Samples\n\nThe first draw for each prompt, unedited: {settings}, float32. Overlap is the\n"
            "longest run of words, the prompt's among them, that the training text has too.\n",
            *(
                f"Seed {sample.seed}, `{sample.prompt}`; overlap {size(sample.overlap)}:\n\n"
                f"{textwrap.indent(sample.text, '    ', lambda _: True)}\n"
                for sample in texts
            ),
        ]
    ).rstrip()


def size(run: str) -> str:
    num_words = len(run.split())
    return f"{num_words} word{'s' * (num_words != 1)}, {len(run)} characters"


def read_texts(paths: Iterable[Path]) -> Iterator[str]:
    """The documents of text files, and of folders of them."""
    for path in paths:
        for file in sorted(path.glob("*.txt.xz")) if path.is_dir() else [path]:
            yield from read_documents(file)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model")
    parser.add_argument("--validation", type=Path, required=True, metavar="FILE")
    parser.add_argument("--training-text", type=Path, required=True, nargs="+", metavar="PATH")
    parser.add_argument("--write-card", action="store_true", help="put it into MODEL/README.md")
    args = parser.parse_args()
    with errors_reported():
        validation = read_documents(args.validation)
        training_text = as_words(read_texts(args.training_text))
        llm = LLM(args.model, dtype="float32")
        command = (
            f"python -m training.evaluate {Path(args.model).name} --validation {args.validation.name} "
            f"--training-text {' '.join(path.name for path in args.training_text)}"
        )
        content = markdown(command, likelihood(llm, validation), samples(llm, training_text))
        print(content)
        if args.write_card:
            write_figures(Path(args.model), content)


if __name__ == "__main__":
    main()
