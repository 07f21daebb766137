"""Shapes: models of the published sizes with random weights, that cost what those cost."""

from __future__ import annotations

import numpy as np
import pytest

from pocketlm import LLM, SamplingParams
from pocketlm.accuracy import logits_of
from pocketlm.config import engine_config
from pocketlm.errors import ModelLoadError
from pocketlm.hub import is_local
from pocketlm.loading import estimate, load_model
from pocketlm.models import read_checkpoint
from pocketlm.shapes import SHAPES, shape_header

NUM_PARAMETERS = {  # as counted in the published checkpoints, tied embeddings once
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}
SMALL = {"num_threads": 1, "max_num_seqs": 2, "max_model_len": 64}


@pytest.mark.parametrize(("shape", "num_parameters"), NUM_PARAMETERS.items())
def test_a_shape_has_the_size_of_the_published_model(shape: str, num_parameters: int) -> None:
    estimated = estimate(f"shape:{shape}", engine_config(dtype="int8"), 0)
    assert estimated.num_parameters == num_parameters
    assert estimated.max_model_len == 1024
    assert estimated.weights_bytes > num_parameters  # a byte each, and the embedding in its own format


def test_every_shape_is_counted() -> None:
    assert SHAPES.keys() == NUM_PARAMETERS.keys()


def test_no_two_matrices_share_their_numbers_and_memory_stays_that_of_one() -> None:
    """Float16 parts of one array, the largest matrix, and of GPT-2's scale."""
    weights = read_checkpoint(shape_header("shape:gpt2")).weights
    matrices = [weight for weight in weights.values() if weight.ndim == 2]
    owners = {id(matrix.base if matrix.base is not None else matrix) for matrix in matrices}
    assert len(owners) == 1
    first_rows = {weight[0, :8].tobytes() for name, weight in weights.items() if name.endswith("up.weight")}
    assert len(first_rows) == 12
    embedding = weights["token_embedding"]
    assert embedding.dtype == np.float16 and embedding.shape == (50257, 768)
    assert float(embedding.std(dtype=np.float32)) == pytest.approx(0.02, rel=0.02)
    assert len(np.unique(embedding[:, :4], axis=0)) == len(embedding)  # no two tokens are the same


def test_it_generates_as_many_tokens_as_are_asked_for() -> None:
    llm = LLM("shape:distilgpt2", dtype="int8", **SMALL)
    assert (llm.model.name, llm.model.num_parameters) == ("shape:distilgpt2", 81_912_576)
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1)
    [first], [again] = (llm.generate("Kubernetes is a", params) for _ in range(2))
    assert len(first.outputs[0].token_ids) == 12  # no token ends an answer
    assert first.outputs[0].token_ids == again.outputs[0].token_ids


def test_the_logits_are_finite_and_int8_is_near_float32() -> None:
    model = load_model("shape:distilgpt2", engine_config(dtype="auto", **SMALL))
    decoder = model.engine._runner._decoder
    for logits in logits_of(decoder, model.tokenizer.encode("Machine learning is")):
        assert np.isfinite(logits).all() and 0.1 < logits.std() < 10
    assert model.known_answer is not None and model.known_answer.failure is None


def test_two_shapes_never_share_a_fingerprint() -> None:
    config = engine_config(dtype="int8", **SMALL)
    fingerprints = {
        load_model(name, config).fingerprint for name in ("bundled", "shape:distilgpt2", "shape:gpt2")
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize("name", ["shape:", "shape:gpt3", "shape:gpt2/", "shape:GPT2"])
def test_an_unknown_shape_is_refused_with_those_there_are(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"there is no shape .*shape:distilgpt2, shape:gpt2, .*gpt2-xl"):
        load_model(name, engine_config())


def test_a_shape_needs_no_network() -> None:
    assert is_local("shape:gpt2")
