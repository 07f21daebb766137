"""Random GPT-2 checkpoints in Hugging Face's layout, the same numbers on every machine.

The numbers are PCG64's raw stream, which NumPy promises never to change (its distributions may), in
the order of the sorted tensor names without prefix: the top 24 bits of each raw number are a uniform
u in [0, 1), and a value is (2 u - 1) * spread, rounded to float32 and then to the dtype on disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

Float32Array = NDArray[np.float32]

DEFAULTS: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 300,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "eos_token_id": 256,
}


def write_checkpoint(
    folder: Path,
    *,
    seed: int,
    dtype: str = "F32",
    shards: int = 1,
    prefix: str = "transformer.",
    tied: bool = True,
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """Write config.json, safetensors and tokenizer.json into a new folder, and return it.

    `config` overrides fields of config.json; a field given as None is left out.
    """
    folder.mkdir(parents=True)
    merged = {**DEFAULTS, "tie_word_embeddings": tied, **config}
    fields = {name: value for name, value in merged.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(fields, indent=2))
    weights = {
        name if name == "lm_head.weight" else prefix + name: values
        for name, values in draw_weights(fields, seed=seed, tied=tied).items()
    }
    write_weights(folder, weights, dtype=dtype, shards=shards)
    if tokenizer:
        byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def draw_weights(config: dict[str, Any], *, seed: int, tied: bool) -> dict[str, Float32Array]:
    """The tensors of a GPT-2 model by their names without prefix."""
    shapes = tensor_shapes(config)
    if not tied:
        shapes["lm_head.weight"] = shapes["wte.weight"]
    stream = np.random.PCG64(seed)
    weights = {}
    for name in sorted(shapes):
        raw = stream.random_raw(int(np.prod(shapes[name])))
        values = (2 * ((raw >> np.uint64(40)) / 2**24) - 1) * _spread(name, shapes[name])
        centre = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        weights[name] = (values + centre).astype(np.float32).reshape(shapes[name])
    return weights


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden = config["n_embd"]
    inner = config.get("n_inner") or 4 * hidden
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config["vocab_size"], hidden),
        "wpe.weight": (config["n_positions"], hidden),
        "ln_f.weight": (hidden,),
        "ln_f.bias": (hidden,),
    }
    for i in range(config["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes[f"h.{i}.{norm}.weight"] = shapes[f"h.{i}.{norm}.bias"] = (hidden,)
        for name, rows, columns in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        ):
            shapes[f"h.{i}.{name}.weight"] = (rows, columns)
            shapes[f"h.{i}.{name}.bias"] = (columns,)
    return shapes


def _spread(name: str, shape: tuple[int, ...]) -> float:
    """Wide enough that logits are far from tied, and that layers, positions and context all matter."""
    if len(shape) == 1:
        return 0.3
    if name in ("wte.weight", "lm_head.weight"):
        return 0.6
    if name == "wpe.weight":
        return 1.2
    return float(3.0 / np.sqrt(shape[0]))


def write_weights(folder: Path, weights: dict[str, Float32Array], *, dtype: str, shards: int) -> None:
    if shards == 1:
        _save(folder / "model.safetensors", weights, dtype)
        return
    weight_map = {
        name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)
    }
    for file_name in set(weight_map.values()):
        part = {name: values for name, values in weights.items() if weight_map[name] == file_name}
        _save(folder / file_name, part, dtype)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _save(path: Path, weights: dict[str, Float32Array], dtype: str) -> None:
    save_safetensors(path, {name: (dtype, _rounded(values, dtype)) for name, values in weights.items()})


def save_safetensors(path: Path, tensors: dict[str, tuple[str, NDArray[Any]]]) -> None:
    """The format itself, written by hand: the library's NumPy writer has no bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, values) in tensors.items():
        start, end = end, end + values.nbytes
        header[name] = {"dtype": dtype, "shape": values.shape, "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    data = b"".join(values.tobytes() for _, values in tensors.values())
    path.write_bytes(len(content).to_bytes(8, "little") + content + data)


def _rounded(values: Float32Array, dtype: str) -> NDArray[Any]:
    if dtype == "BF16":  # the upper half of a float32, rounded to nearest even
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes, 256 is <|endoftext|>."""
    # GPT-2 spells a byte as its Latin-1 character where that can be seen, else as one after U+0100.
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    vocab = {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer
