"""DecoderSpec is general: other families run on the same forward pass, with weights mapped by hand.

The mappings here are what models/llama.py and its siblings will read from config.json and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from driver import SequenceDriver
from numpy.typing import NDArray

from pocketlm import kernels
from pocketlm.kernels.inputs import Float32Array
from pocketlm.kernels.spec import DecoderSpec

Weights = dict[str, NDArray[Any]]

VOCAB_SIZE, HIDDEN_SIZE, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 131, 48, 3, 6, 2, 8
INTERMEDIATE_SIZE, MAX_POSITIONS, EPSILON = 100, 64, 1e-5
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": NUM_HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "attn_implementation": "eager",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {
    **COMMON,
    "num_key_value_heads": NUM_KV_HEADS,
    "intermediate_size": INTERMEDIATE_SIZE,
    "rms_norm_eps": EPSILON,
    "tie_word_embeddings": False,
}


def spec(**changes: Any) -> DecoderSpec:
    """Llama's; the others are told apart by what differs."""
    llama = DecoderSpec(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        num_layers=NUM_LAYERS,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=INTERMEDIATE_SIZE,
        max_positions=MAX_POSITIONS,
        norm="rms",
        norm_epsilon=EPSILON,
        activation="silu",
        attention_scales=(HEAD_DIM**-0.5,) * NUM_LAYERS,
        gated_mlp=True,
        rotary_frequencies=rotary(10_000.0, HEAD_DIM),
    )
    return replace(llama, **changes)


def rotary(base: float, num_dims: int) -> tuple[float, ...]:
    return tuple(base ** (-2 * i / num_dims) for i in range(num_dims // 2))


def map_weights(
    model: Any, top: Iterable[tuple[str, str]], layer: Iterable[tuple[str, str]], prefix: str
) -> Weights:
    """Slots from tensors; "q+k+v" are joined side by side, linear layers turned to [inputs, outputs]."""
    tensors = {name: values.detach().numpy() for name, values in model.state_dict().items()}
    names = {slot: source for slot, source in top}
    for i in range(NUM_LAYERS):
        for slot, source in layer:
            parts = source.split("+")
            names[f"layers.{i}.{slot}"] = "+".join(f"{prefix}.layers.{i}.{part}" for part in parts)
    weights: Weights = {}
    for slot, source in names.items():
        for kind in ("weight", "bias"):
            parts = [tensors.get(f"{part}.{kind}") for part in source.split("+")]
            if parts[0] is None:
                continue
            values = np.concatenate(parts)
            if slot.endswith("embedding"):
                weights[slot] = values
            else:
                weights[f"{slot}.{kind}"] = values.T
    return weights


def llama_weights(model: Any) -> Weights:
    return map_weights(
        model,
        top=[
            ("token_embedding", "model.embed_tokens"),
            ("final_norm", "model.norm"),
            ("head", "lm_head"),
        ],
        layer=[
            ("attention_norm", "input_layernorm"),
            ("qkv", "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj"),
            ("attention_out", "self_attn.o_proj"),
            ("mlp_norm", "post_attention_layernorm"),
            ("gate", "mlp.gate_proj"),
            ("up", "mlp.up_proj"),
            ("down", "mlp.down_proj"),
        ],
        prefix="model",
    )


def llama() -> tuple[Any, DecoderSpec, Weights]:
    model = build(transformers.LlamaForCausalLM, transformers.LlamaConfig(**LLAMA))
    return model, spec(), llama_weights(model)


def mistral() -> tuple[Any, DecoderSpec, Weights]:
    config = transformers.MistralConfig(**LLAMA, sliding_window=None, head_dim=10)
    model = build(transformers.MistralForCausalLM, config)
    own = spec(
        head_dim=10,  # H * D is not E
        attention_scales=(10**-0.5,) * NUM_LAYERS,
        rotary_frequencies=rotary(10_000.0, 10),
    )
    return model, own, llama_weights(model)


def qwen2() -> tuple[Any, DecoderSpec, Weights]:
    config = transformers.Qwen2Config(**{**LLAMA, "tie_word_embeddings": True})
    model = build(transformers.Qwen2ForCausalLM, config)
    return model, spec(), llama_weights(model)  # has biases on queries, keys and values


def gemma() -> tuple[Any, DecoderSpec, Weights]:
    config = transformers.GemmaConfig(**{**LLAMA, "num_key_value_heads": 1}, head_dim=12)
    model = build(transformers.GemmaForCausalLM, config)
    weights = llama_weights(model)
    for name in weights:
        if "norm" in name:
            weights[name] = 1 + weights[name]
    own = spec(
        num_kv_heads=1,
        head_dim=12,
        activation="gelu_tanh",
        attention_scales=(12**-0.5,) * NUM_LAYERS,
        rotary_frequencies=rotary(10_000.0, 12),
        embedding_scale=HIDDEN_SIZE**0.5,
    )
    return model, own, weights


def phi() -> tuple[Any, DecoderSpec, Weights]:
    config = transformers.PhiConfig(
        **COMMON,
        intermediate_size=INTERMEDIATE_SIZE,
        layer_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
    )
    model = build(transformers.PhiForCausalLM, config)
    own = spec(
        num_kv_heads=NUM_HEADS,
        norm="layer",
        activation="gelu_tanh",
        gated_mlp=False,
        parallel_residual=True,
        rotary_frequencies=rotary(10_000.0, HEAD_DIM // 2),
    )
    weights = map_weights(
        model,
        top=[
            ("token_embedding", "model.embed_tokens"),
            ("final_norm", "model.final_layernorm"),
            ("head", "lm_head"),
        ],
        layer=[
            ("attention_norm", "input_layernorm"),
            ("qkv", "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj"),
            ("attention_out", "self_attn.dense"),
            ("up", "mlp.fc1"),
            ("down", "mlp.fc2"),
        ],
        prefix="model",
    )
    return model, own, weights


def opt() -> tuple[Any, DecoderSpec, Weights]:
    config = transformers.OPTConfig(**COMMON, ffn_dim=INTERMEDIATE_SIZE)
    model = build(transformers.OPTForCausalLM, config)
    own = spec(
        num_kv_heads=NUM_HEADS,
        norm="layer",
        activation="relu",
        gated_mlp=False,
        position_offset=2,
        rotary_frequencies=(),
    )
    weights = map_weights(
        model,
        top=[
            ("token_embedding", "model.decoder.embed_tokens"),
            ("position_embedding", "model.decoder.embed_positions"),
            ("final_norm", "model.decoder.final_layer_norm"),
            ("head", "lm_head"),
        ],
        layer=[
            ("attention_norm", "self_attn_layer_norm"),
            ("qkv", "self_attn.q_proj+self_attn.k_proj+self_attn.v_proj"),
            ("attention_out", "self_attn.out_proj"),
            ("mlp_norm", "final_layer_norm"),
            ("up", "fc1"),
            ("down", "fc2"),
        ],
        prefix="model.decoder",
    )
    return model, own, weights


def build(model_class: Any, config: Any) -> Any:
    """A model with random weights that matter: no bias of 0, no norm of 1, sharp attention."""
    torch.manual_seed(3)
    model = model_class(config).eval()
    with torch.no_grad():
        for values in model.parameters():
            if values.ndim == 1:
                values += 0.3 * torch.randn_like(values)
            else:
                values.normal_(std=1.5 * values.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("family", [llama, mistral, qwen2, gemma, phi, opt])
def test_logits_equal_transformers(family: Callable[[], tuple[Any, DecoderSpec, Weights]], isa: str) -> None:
    model, own, weights = family()
    token_ids = np.random.default_rng(4).integers(3, VOCAB_SIZE, size=45).tolist()
    with torch.inference_mode():
        expected: Float32Array = model(torch.tensor([token_ids])).logits[0].numpy()
    decoder = kernels.create_decoder(own, weights, dtype="float32", num_threads=2, isa_name=isa)
    sequence = SequenceDriver(decoder, len(token_ids))
    prompt, rest = token_ids[:40], token_ids[40:]
    found = np.concatenate([sequence.forward(prompt), *(sequence.forward([token]) for token in rest)])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
