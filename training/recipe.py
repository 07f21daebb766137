"""Recipe: every number that decides what the trained model is."""

from __future__ import annotations

from dataclasses import dataclass, fields

from training.errors import RecipeError

# The package is to stay below 20 MB unpacked; all but the weights takes 1.9 MB of them.
MAX_WEIGHTS_BYTES = 18_000_000


@dataclass(frozen=True)
class Recipe:
    """The numbers of one training run. Each is a flag of train.py; bad ones raise RecipeError."""

    vocab_size: int = 8192
    context: int = 1024  # tokens
    num_layers: int = 8
    hidden_size: int = 256
    num_heads: int = 4
    dropout: float = 0.1  # of embeddings and of what each block adds, not of attention weights
    dtype: str = "bfloat16"  # of the matrix products; weights, sums and optimizers stay float32
    batch_size: int = 64  # sequences of `context` tokens a step
    num_steps: int = 4000
    warmup_steps: int = 100
    muon_lr: float = 0.006
    adamw_lr: float = 0.003
    weight_decay: float = 0.1
    eval_interval: int = 100  # steps between evaluations, each of which keeps a checkpoint
    patience: int = 5  # evaluations without a new best before training stops
    seed: int = 1

    def __post_init__(self) -> None:
        for name, value in self.values().items():
            low = 0 if name in ("dropout", "seed", "weight_decay") else 1 if isinstance(value, int) else 1e-9
            if isinstance(value, int | float) and value < low:
                raise RecipeError(f"{name} must be at least {low}, got {value}")
        if self.hidden_size % self.num_heads:
            raise RecipeError(
                f"hidden_size must be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        if self.dropout >= 1:
            raise RecipeError(f"dropout must be below 1, got {self.dropout}")
        if self.dtype not in ("bfloat16", "float32"):
            raise RecipeError(f"dtype must be bfloat16 or float32, got {self.dtype}")
        if self.warmup_steps >= self.num_steps:
            raise RecipeError(
                f"warmup_steps must be below num_steps ({self.num_steps}), got {self.warmup_steps}"
            )
        if self.vocab_size > 1 << 16:
            raise RecipeError(f"vocab_size must be at most 65536, as ids are 16 bits, got {self.vocab_size}")
        if self.weights_bytes > MAX_WEIGHTS_BYTES:
            raise RecipeError(
                f"{self.num_parameters:,} parameters take {self.weights_bytes:,} bytes in float16, and the "
                f"package has room for {MAX_WEIGHTS_BYTES:,}; give fewer layers or a smaller width"
            )

    def values(self) -> dict[str, int | float | str]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def num_parameters(self) -> int:
        """Two embeddings; for each layer 12 squares, their biases and two norms; the last norm."""
        embeddings = (self.vocab_size + self.context) * self.hidden_size
        layer = 12 * self.hidden_size**2 + 13 * self.hidden_size
        return embeddings + self.num_layers * layer + 2 * self.hidden_size

    @property
    def weights_bytes(self) -> int:
        return 2 * self.num_parameters  # as the model is shipped, in float16

    @property
    def batch_tokens(self) -> int:
        return self.batch_size * self.context


FULL = Recipe()

# Minutes on two CPU cores: it shows that every step works, and makes no model worth having.
SMOKE = Recipe(
    vocab_size=512,
    context=128,
    num_layers=2,
    hidden_size=64,
    num_heads=2,
    dtype="float32",
    batch_size=16,
    num_steps=100,
    warmup_steps=10,
    eval_interval=20,
)
