"""What a model is loaded with when the configuration leaves it open, and the reason that is given."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from random_model import random_spec, random_weights
from served import bundled_model

from pocketlm import kernels, loading
from pocketlm.config import EngineConfig, engine_config
from pocketlm.errors import ConfigError, ModelLoadError
from pocketlm.hub import resolve
from pocketlm.loading import (
    LoadedModel,
    load_model,
    resolve_dtype,
    resolve_max_model_len,
    resolve_num_blocks,
    resolve_num_threads,
)
from pocketlm.models import Checkpoint

needs_core = pytest.mark.skipif(kernels.isa()[0] == "reference", reason="auto means float32 on the reference")


def checkpoint(**changes: Any) -> Checkpoint:
    spec = random_spec(vocab_size=8192, max_positions=64, **changes)
    weights = random_weights(spec)
    folder = resolve("bundled")
    return Checkpoint(folder, "random", spec, weights, eos_token_ids=(), num_parameters=0)


def settings(model: LoadedModel) -> dict[str, str]:
    return {setting.name: setting.value for setting in model.settings}


def test_every_resolved_value_is_logged_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        model = load_model("bundled", EngineConfig(num_threads=1, max_model_len=64, max_num_seqs=2))
    lines = [record.getMessage() for record in caplog.records]
    for setting in model.settings:
        assert setting.reason and f"{setting.name}={setting.value}: {setting.reason}" in lines
    assert settings(model).keys() == {"isa", "num_threads", "dtype", "max_model_len", "kv_cache"}
    assert "num_threads=1: as configured" in lines
    assert settings(model)["kv_cache"].startswith("8 blocks (")  # 2 sequences of 64 tokens
    assert model.num_parameters == 6_967_296


@needs_core
def test_auto_takes_int8_where_the_probe_finds_it_accurate() -> None:
    model = load_model("bundled", EngineConfig(dtype="auto"))
    assert model.dtype == "int8"
    assert "KL divergence" in model.dtype_reason and "bound 0.02" in model.dtype_reason


@needs_core
def test_auto_falls_back_to_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_KL_DIVERGENCE", 1e-9)
    dtype, reason, decoder = resolve_dtype(EngineConfig(), checkpoint(), bundled_model().tokenizer, 1)
    assert dtype == decoder.dtype == "float32"
    assert "bound 1e-09" in reason


@needs_core
def test_a_probe_that_is_not_finite_means_float32() -> None:
    broken = checkpoint()
    broken.weights["head.weight"] = np.full_like(broken.weights["head.weight"], np.nan)
    assert resolve_dtype(EngineConfig(), broken, bundled_model().tokenizer, 1)[0] == "float32"


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_dtype_that_is_given_is_not_probed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "compare", None)
    found = resolve_dtype(engine_config(dtype=dtype), checkpoint(), bundled_model().tokenizer, 1)
    assert found[:2] == (dtype, "as configured")


def test_on_the_reference_auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "isa", lambda: ("reference", "for a test"))
    dtype, reason, _ = resolve_dtype(EngineConfig(), checkpoint(), bundled_model().tokenizer, 1)
    assert dtype == "float32" and "reference" in reason


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.hardware.num_threads", lambda: (5, "for a test"))
    assert resolve_num_threads(EngineConfig()) == (5, "for a test")
    assert resolve_num_threads(EngineConfig(num_threads=3)) == (3, "as configured")


@pytest.mark.parametrize(("configured", "expected"), [(None, 64), (10, 10), (64, 64), (1000, 64)])
def test_max_model_len_is_never_more_than_the_context(configured: int | None, expected: int) -> None:
    length, reason = resolve_max_model_len(EngineConfig(max_model_len=configured), checkpoint())
    assert length == expected
    assert configured != 1000 or "less than the 1000 configured" in reason


def blocks(available: int, monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[int, str]:
    """For contexts of 4 blocks each, with this much memory available."""
    monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (available, "for a test"))
    checked = checkpoint()
    decoder = kernels.create_decoder(checked.spec, checked.weights, dtype="float32", num_threads=1)
    return resolve_num_blocks(engine_config(**config), decoder, 64)


def test_the_kv_cache_takes_its_share_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    block_bytes = kernels.kv_block_bytes(checkpoint().spec, "float32")
    num_blocks, reason = blocks(50 * block_bytes, monkeypatch)
    assert num_blocks == 10
    assert reason.startswith("20% of ") and reason.endswith("for a test")


def test_the_kv_cache_takes_no_more_than_all_sequences_can_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    assert blocks(1 << 40, monkeypatch, max_num_seqs=3)[0] == 12
    assert blocks(0, monkeypatch, max_num_seqs=3, kv_cache_memory="1GiB")[0] == 12


def test_the_kv_cache_may_be_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    block_bytes = kernels.kv_block_bytes(checkpoint().spec, "float32")
    assert blocks(0, monkeypatch, kv_cache_memory=7 * block_bytes + 1) == (7, "as configured")


def test_a_budget_below_one_context_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"may take 100 ?B.*one context of 64 tokens needs \d.*kv_cache_memory"
    ):
        blocks(0, monkeypatch, kv_cache_memory=100)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1, vocab_size=97)  # the tokenizer has more tokens
    with pytest.raises(ModelLoadError, match=r"vocab_size is 97; they do not belong together"):
        load_model(str(folder), EngineConfig(num_threads=1))
