"""GPT-2 checkpoints against Transformers itself, on other configurations than those recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from checkpoints import write_checkpoint
from driver import SequenceDriver, greedy
from random_gpt2 import NUM_NEW_TOKENS, draw_options, draw_prompt
from transformers import AutoTokenizer
from transformers.activations import ACT2FN

from pocketlm import kernels
from pocketlm.hub import BUNDLED
from pocketlm.kernels import Decoder
from pocketlm.kernels.inputs import Float32Array
from pocketlm.kernels.reference import ACTIVATIONS
from pocketlm.models import gpt2, load_checkpoint
from pocketlm.text.tokenizer import Tokenizer

SEED = 20261122
# A model so wild that Transformers' own float32 strays this far from its float64 says nothing about ours
# at a tolerance of 1e-4, and another one is drawn.
MAX_ROUNDING = 1e-5
TEXTS = [
    "",
    " ",
    "The scheduler assigns a pod to a node.",
    "  leading, trailing  ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "don't we'll I'M they'RE",
    "kubectl get pods -n kube-system | grep -v Running; echo $?",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'\n",
    "1234567890 3.14159 0xFF 1e-5",
    "naïve café, déjà vu, Ünïcödé, ﬁ ligature, e\u0301 combining",
    "你好,世界。こんにちは。안녕하세요. Привет. שלום مرحبا",
    "🙂👩‍👩‍👧‍👦🇳🇱 emoji",
    "zero\u200bwidth\u00a0nbsp\u2028line\u0000nul",
    "<|endoftext|>start<|endoftext|> and <|endoftext",
    "a" * 300,
]


def float32_decoder(folder: Path, isa: str) -> Decoder:
    checkpoint = load_checkpoint(folder)
    return kernels.create_decoder(
        checkpoint.spec, checkpoint.weights, dtype="float32", num_threads=2, isa_name=isa
    )


def assert_close(found: Float32Array, expected: Float32Array) -> None:
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("index", range(24))
def test_random_configurations(tmp_path: Path, index: int) -> None:
    rng = np.random.Generator(np.random.PCG64([SEED, index]))
    rounding = 1.0
    while rounding > MAX_ROUNDING:
        options = draw_options(rng, index)
        prompt = draw_prompt(rng, options["vocab_size"])
        folder = write_checkpoint(tmp_path / str(options["seed"]), tokenizer=False, **options)
        model = oracle.load(folder)
        tokens, logits = oracle.greedy(model, prompt, NUM_NEW_TOKENS)
        rounding = oracle.rounding(model, prompt, tokens, logits)
    print(options)
    for isa in kernels.available_isas():
        # Given Transformers' tokens, so that the logits of every step can be compared.
        sequence = SequenceDriver(float32_decoder(folder, isa), len(prompt) + NUM_NEW_TOKENS)
        found = [sequence.forward(prompt)[-1], *(sequence.forward([token])[0] for token in tokens[:-1])]
        assert_close(np.stack(found), logits)
        if oracle.smallest_margin(logits) > 1e-4:
            assert np.stack(found).argmax(axis=1).tolist() == tokens


def test_the_bundled_model() -> None:
    prompt = Tokenizer.from_folder(BUNDLED).encode("The controller watches the API server and")
    tokens, logits = oracle.greedy(oracle.load(BUNDLED), prompt, 100)
    for isa in kernels.available_isas():
        found_tokens, found = greedy(float32_decoder(BUNDLED, isa), prompt, 100)
        assert found_tokens == tokens
        assert_close(found, logits)


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer(text: str) -> None:
    expected = AutoTokenizer.from_pretrained(BUNDLED)
    found = Tokenizer.from_folder(BUNDLED)
    ids = found.encode(text)
    assert ids == expected.encode(text)
    assert found.decode(ids) == expected.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", gpt2.ACTIVATIONS)
def test_activation_names_mean_the_same(name: str) -> None:
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    found = ACTIVATIONS[gpt2.ACTIVATIONS[name]](x)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)
