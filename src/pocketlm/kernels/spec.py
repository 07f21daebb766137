"""DecoderSpec: a decoder-only transformer as data.

A model family is a spec and a set of named weights; the forward pass that reads them is written
once in NumPy (reference.py) and once in C++ (csrc/decoder.cpp).

The weights are a dict of arrays, float32 or float16, matrices as [inputs, outputs]:

    token_embedding                  [V, E]
    position_embedding               [P + position_offset, E]   only with learned positions
    layers.{i}.attention_norm.weight [E]            .bias [E]   biases are there or not, for each
    layers.{i}.qkv.weight            [E, (H + 2 * G) * D]  .bias    queries, keys, values side by side
    layers.{i}.attention_out.weight  [H * D, E]     .bias
    layers.{i}.mlp_norm.weight       [E]            .bias       absent: the layer has one norm for both
    layers.{i}.gate.weight           [E, I]         .bias       only with gated_mlp
    layers.{i}.up.weight             [E, I]         .bias
    layers.{i}.down.weight           [I, E]         .bias
    final_norm.weight                [E]            .bias
    head.weight                      [E, V]         .bias

V vocabulary, E hidden size, H heads, G key-value heads, D head size, I intermediate size,
P positions, L layers.

The compiled core takes them packed: for each matrix `.weight` in panels (csrc/kernels.h has the layouts),
`.scales` with int8 and int4, and a `.bias`, zero where there was none; norms in float32; the tables as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTIVATIONS = (
    "gelu",  # x * Phi(x), with erf
    "gelu_tanh",  # its tanh approximation, Hendrycks and Gimpel 2016 (arXiv:1606.08415)
    "quick_gelu",  # x * sigmoid(1.702 x)
    "linear",
    "relu",
    "relu_squared",
    "sigmoid",
    "silu",
    "tanh",
)
NORMS = ("layer", "rms")
TABLES = ("token_embedding", "position_embedding")  # looked up as they are stored, never packed


@dataclass(frozen=True)
class DecoderSpec:
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # fewer than num_heads: grouped-query attention
    head_dim: int
    intermediate_size: int
    max_positions: int  # the context window
    norm: str  # one of NORMS
    norm_epsilon: float
    activation: str  # one of ACTIVATIONS
    attention_scales: tuple[float, ...]  # [L], what q.k is multiplied by
    gated_mlp: bool = False  # down(activation(gate(x)) * up(x)) instead of down(activation(up(x)))
    parallel_residual: bool = False  # x + attention(norm(x)) + mlp(norm(x)), as Phi and GPT-NeoX
    position_offset: int = 0  # row of position 0 in position_embedding, as OPT
    rotary_frequencies: tuple[float, ...] = ()  # radians per position; pair i is (i, i + len) of a head
    embedding_scale: float = 1.0

    @property
    def qkv_size(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def weight_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of the weights above, whether this spec has it or not."""
        matrices = self.matrix_shapes()
        if name in matrices:
            return matrices[name]
        if name == "position_embedding":
            return (self.max_positions + self.position_offset, self.hidden_size)
        matrix = name.removesuffix("bias") + "weight"
        if matrix in matrices:  # its bias
            return (matrices[matrix][1],)
        return (self.hidden_size,)  # a norm

    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of every matrix the spec calls for, by the name of its weight."""
        shapes = {"token_embedding": (self.vocab_size, self.hidden_size)}
        for i in range(self.num_layers):
            shapes[f"layers.{i}.qkv.weight"] = (self.hidden_size, self.qkv_size)
            shapes[f"layers.{i}.attention_out.weight"] = (
                self.num_heads * self.head_dim,
                self.hidden_size,
            )
            if self.gated_mlp:
                shapes[f"layers.{i}.gate.weight"] = (self.hidden_size, self.intermediate_size)
            shapes[f"layers.{i}.up.weight"] = (self.hidden_size, self.intermediate_size)
            shapes[f"layers.{i}.down.weight"] = (self.intermediate_size, self.hidden_size)
        shapes["head.weight"] = (self.hidden_size, self.vocab_size)
        return shapes
