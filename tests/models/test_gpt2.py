from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import draw_weights, save_safetensors, write_checkpoint

from pocketlm.errors import ModelLoadError
from pocketlm.hub import BUNDLED
from pocketlm.kernels.spec import ACTIVATIONS
from pocketlm.models import Checkpoint, gpt2, load_checkpoint

SMALL = {"vocab_size": 50, "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3}


def load(folder: Path, **options: Any) -> Checkpoint:
    return load_checkpoint(write_checkpoint(folder, seed=1, tokenizer=False, **{**SMALL, **options}))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_bundled_model() -> None:
    checkpoint = load_checkpoint(BUNDLED)
    assert checkpoint.model_type == "gpt2"
    assert checkpoint.spec.num_layers == 6 and checkpoint.spec.max_positions == 512
    assert checkpoint.num_parameters == 6_967_296
    assert checkpoint.eos_token_ids == (0,)


def test_every_weight_of_the_spec_is_filled(tmp_path: Path) -> None:
    checkpoint = load(tmp_path / "m", n_inner=20)
    drawn = draw_weights({**SMALL, "n_inner": 20}, seed=1, tied=True)
    spec, weights = checkpoint.spec, checkpoint.weights
    assert {name: weights[name].shape for name in spec.matrix_shapes()} == spec.matrix_shapes()
    for slot, name in {
        "token_embedding": "wte.weight",
        "position_embedding": "wpe.weight",
        "layers.1.attention_norm.weight": "h.1.ln_1.weight",
        "layers.1.attention_norm.bias": "h.1.ln_1.bias",
        "layers.1.qkv.weight": "h.1.attn.c_attn.weight",
        "layers.1.qkv.bias": "h.1.attn.c_attn.bias",
        "layers.0.attention_out.weight": "h.0.attn.c_proj.weight",
        "layers.0.mlp_norm.bias": "h.0.ln_2.bias",
        "layers.0.up.weight": "h.0.mlp.c_fc.weight",
        "layers.0.down.bias": "h.0.mlp.c_proj.bias",
        "final_norm.weight": "ln_f.weight",
    }.items():
        np.testing.assert_array_equal(weights[slot], drawn[name])
    assert len(weights) == 3 + 2 * (1 + 6 * 2)
    assert checkpoint.num_parameters == sum(values.size for values in drawn.values())


def test_nothing_is_copied(tmp_path: Path) -> None:
    for values in load(tmp_path / "m", dtype="F16").weights.values():
        assert values.dtype == np.float16 and not values.flags.owndata and not values.flags.writeable


def test_a_tied_head_is_a_view_of_the_embedding(tmp_path: Path) -> None:
    weights = load(tmp_path / "m").weights
    np.testing.assert_array_equal(weights["head.weight"], weights["token_embedding"].T)
    assert np.shares_memory(weights["head.weight"], weights["token_embedding"])


def test_an_untied_head(tmp_path: Path) -> None:
    checkpoint = load(tmp_path / "m", tied=False)
    drawn = draw_weights(SMALL, seed=1, tied=False)
    np.testing.assert_array_equal(checkpoint.weights["head.weight"], drawn["lm_head.weight"].T)
    assert checkpoint.num_parameters == sum(values.size for values in drawn.values())


def test_a_tied_file_that_kept_only_the_head(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    drawn = draw_weights(SMALL, seed=1, tied=True)
    names = {name: "lm_head.weight" if name == "wte.weight" else f"transformer.{name}" for name in drawn}
    save_safetensors(
        folder / "model.safetensors", {names[name]: ("F32", values) for name, values in drawn.items()}
    )
    weights = load_checkpoint(folder).weights
    np.testing.assert_array_equal(weights["token_embedding"], drawn["wte.weight"])
    np.testing.assert_array_equal(weights["head.weight"], drawn["wte.weight"].T)


def test_a_file_with_both_uses_both_whatever_the_config_says(tmp_path: Path) -> None:
    weights = load(tmp_path / "m", tied=False, tie_word_embeddings=True).weights
    assert not np.array_equal(weights["head.weight"], weights["token_embedding"].T)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no tensor lm_head\.weight"):
        load(tmp_path / "m", tied=True, tie_word_embeddings=False)


def test_prefix_and_shards_change_nothing(tmp_path: Path) -> None:
    expected = load(tmp_path / "one").weights
    for name, options in {"bare": {"prefix": ""}, "shards": {"shards": 3}}.items():
        weights = load(tmp_path / name, **options).weights
        for slot, values in expected.items():
            np.testing.assert_array_equal(weights[slot], values)


def test_masks_in_old_files_are_ignored_and_others_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    tensors = {name: ("F32", values) for name, values in draw_weights(SMALL, seed=1, tied=True).items()}
    tensors["h.0.attn.bias"] = ("U8", np.ones((1, 1, 8, 8), np.uint8))
    tensors["h.0.attn.masked_bias"] = ("F32", np.float32([-1e4]))
    save_safetensors(folder / "model.safetensors", tensors)
    with caplog.at_level(logging.WARNING):
        load_checkpoint(folder)
    assert not caplog.messages
    tensors["score.weight"] = ("F32", np.zeros((2, 12), np.float32))
    save_safetensors(folder / "model.safetensors", tensors)
    with caplog.at_level(logging.WARNING):
        load_checkpoint(folder)
    assert "ignored: score.weight" in caplog.text


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    spec = load(tmp_path / "m").spec
    assert spec.activation == "gelu_tanh"
    assert spec.norm == "layer" and spec.norm_epsilon == 1e-5
    assert spec.intermediate_size == 4 * 12
    assert spec.attention_scales == (0.5, 0.5)  # heads of 4


@pytest.mark.parametrize(
    ("flags", "scales"),
    [
        ({"scale_attn_weights": False}, (1.0, 1.0, 1.0)),
        ({"scale_attn_by_inverse_layer_idx": True}, (0.5, 0.25, 0.5 / 3)),
        ({"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}, (1.0, 0.5, 1 / 3)),
    ],
)
def test_attention_scales(tmp_path: Path, flags: dict[str, bool], scales: tuple[float, ...]) -> None:
    assert load(tmp_path / "m", n_layer=3, **flags).spec.attention_scales == pytest.approx(scales)


def test_every_activation_is_one_the_kernels_have() -> None:
    assert set(gpt2.ACTIVATIONS.values()) == set(ACTIVATIONS)


def test_another_activation_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"activation_function must be one of gelu, .*, got \"mish\""):
        load(tmp_path / "m", activation_function="mish")


def test_another_model_type_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match=r"model_type must be one of those supported \(gpt2\), got \"bert\""
    ):
        load(tmp_path / "m", model_type="bert")


@pytest.mark.parametrize("name", ["model_type", "vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_field_without_which_the_shape_is_unknown(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, **{name: None})
    with pytest.raises(ModelLoadError, match=rf"config\.json has no {name}$"):
        load_checkpoint(folder)


WRONG_VALUES = [
    *((name, value) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner")
      for value in ("12", 0, -1, 1.5, True, [12], 10**9)),
    *(("layer_norm_epsilon", value) for value in ("1e-5", 0, -1e-5, float("nan"), float("inf"), True)),
    *((name, value) for name in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx",
                                 "tie_word_embeddings", "add_cross_attention") for value in ("true", 1)),
    ("activation_function", 3),
    ("activation_function", ["gelu"]),
    ("model_type", 2),
    ("eos_token_id", "0"),
    ("eos_token_id", [0, True]),
    ("eos_token_id", 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, name: str, value: object) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, **{name: value})
    with pytest.raises(ModelLoadError, match=rf"config\.json: {name} must be .*, got "):
        load_checkpoint(folder)


def test_a_long_value_is_not_repeated_whole(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, model_type="x" * 10_000)
    with pytest.raises(ModelLoadError) as error:
        load_checkpoint(folder)
    assert len(str(error.value)) < 300


def test_heads_must_divide_the_hidden_size(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="n_embd must be a multiple of n_head, got 12 and 5"):
        load(tmp_path / "m", n_head=5)


def test_cross_attention_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="add_cross_attention is not supported"):
        load(tmp_path / "m", add_cross_attention=True)


@pytest.mark.parametrize(
    ("name", "value", "tensor", "found", "expected"),
    [
        ("vocab_size", 51, "wte.weight", [50, 12], [51, 12]),
        ("n_positions", 9, "wpe.weight", [8, 12], [9, 12]),
        ("n_inner", 47, "h.0.mlp.c_fc.weight", [12, 48], [12, 47]),
    ],
)
def test_a_tensor_of_the_wrong_shape(
    tmp_path: Path, name: str, value: int, tensor: str, found: list[int], expected: list[int]
) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, **{name: value})
    with pytest.raises(ModelLoadError) as error:
        load_checkpoint(folder)
    assert str(error.value) == (
        f"{folder / 'model.safetensors'}: tensor transformer.{tensor} has shape {found}, expected {expected}"
    )


def test_a_layer_that_is_not_in_the_file(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, n_layer=3)
    with pytest.raises(ModelLoadError, match=r"has no tensor transformer\.h\.2\.ln_1\.weight"):
        load_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_config_that_is_not_a_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"config\.json (is not valid JSON|must be a JSON object)"):
        load_checkpoint(tmp_path)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        ({"eos_token_id": 7}, None, (7,)),
        ({"eos_token_id": 7}, {"eos_token_id": [3, 4]}, (3, 4)),
        ({"eos_token_id": 7}, {"eos_token_id": 3}, (3,)),
        ({"eos_token_id": 7}, {}, (7,)),
        ({"eos_token_id": [7, 50]}, None, (7,)),  # the vocabulary ends at 49
        ({"eos_token_id": None}, None, ()),
    ],
)
def test_eos_token_ids(
    tmp_path: Path,
    config: dict[str, Any],
    generation_config: dict[str, Any] | None,
    expected: tuple[int, ...],
) -> None:
    folder = write_checkpoint(tmp_path / "m", seed=1, **SMALL)
    change_config(folder, **config)
    if generation_config is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation_config))
    assert load_checkpoint(folder).eos_token_ids == expected


def test_a_config_without_eos_has_gpt2s(tmp_path: Path) -> None:
    assert load(tmp_path / "m", vocab_size=50257, eos_token_id=None).eos_token_ids == (50256,)
