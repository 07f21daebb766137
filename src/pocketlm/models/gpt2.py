"""GPT-2: what config.json says as a DecoderSpec, and which tensor fills which of its slots.

The fields, their defaults and the tensor names are those of Transformers' GPT2Config and
GPT2LMHeadModel.
"""

from __future__ import annotations

from collections.abc import Set

from pocketlm.errors import ModelLoadError
from pocketlm.kernels.spec import DecoderSpec
from pocketlm.models.config_file import MAX_LAYERS, ConfigFile
from pocketlm.models.weight_map import Source

# Transformers' names of the activations that are one of kernels/spec.py's.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "linear": "linear",
    "relu": "relu",
    "relu2": "relu_squared",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
LAYER = {
    "attention_norm": "ln_1",
    "qkv": "attn.c_attn",
    "attention_out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
DEFAULT_EOS_TOKEN_ID = 50256  # where config.json does not have the field
BUFFERS: tuple[str, ...] = (".attn.bias", ".attn.masked_bias")  # causal masks in old files, not weights


def read_spec(config: ConfigFile) -> DecoderSpec:
    """`reorder_and_upcast_attn` is not read: in float32 it changes no result."""
    hidden_size = config.size("n_embd")
    num_layers = config.size("n_layer", largest=MAX_LAYERS)
    num_heads = config.size("n_head")
    if hidden_size % num_heads:
        raise ModelLoadError(
            f"{config.path}: n_embd must be a multiple of n_head, got {hidden_size} and {num_heads}"
        )
    if config.flag("add_cross_attention", False):
        raise ModelLoadError(f"{config.path}: add_cross_attention is not supported, it must be false")
    activation = config.text("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise config.wrong("activation_function", f"one of {', '.join(ACTIVATIONS)}")
    return DecoderSpec(
        vocab_size=config.size("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=config.size("n_inner", 4 * hidden_size),
        max_positions=config.size("n_positions"),
        norm="layer",
        norm_epsilon=config.positive("layer_norm_epsilon", 1e-5),
        activation=ACTIVATIONS[activation],
        attention_scales=_attention_scales(config, hidden_size // num_heads, num_layers),
    )


def _attention_scales(config: ConfigFile, head_dim: int, num_layers: int) -> tuple[float, ...]:
    scale = head_dim**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    if config.flag("scale_attn_by_inverse_layer_idx", False):
        return tuple(scale / (i + 1) for i in range(num_layers))
    return (scale,) * num_layers


def tensor_sources(config: ConfigFile, num_layers: int, names: Set[str]) -> dict[str, Source]:
    """Where each slot's weight comes from, given the names of the tensors in the checkpoint.

    Conv1D, GPT-2's linear layer, stores [inputs, outputs] as the spec does; the head alone does not.
    """
    prefix = "transformer." if any(name.startswith("transformer.") for name in names) else ""
    embedding, head = f"{prefix}wte.weight", "lm_head.weight"
    if config.flag("tie_word_embeddings", True):
        # Mostly one of the two is there and stands for both. Where both are, both count, as in
        # Transformers, which then ties them only if they are equal.
        if head not in names:
            head = embedding
        elif embedding not in names:
            embedding = head
    sources = {
        "token_embedding": Source(embedding),
        "position_embedding": Source(f"{prefix}wpe.weight"),
        "head.weight": Source(head, is_transposed=True),
    }
    for kind in ("weight", "bias"):
        sources[f"final_norm.{kind}"] = Source(f"{prefix}ln_f.{kind}")
        for i in range(num_layers):
            for slot, name in LAYER.items():
                sources[f"layers.{i}.{slot}.{kind}"] = Source(f"{prefix}h.{i}.{name}.{kind}")
    return sources
