"""What a model is loaded with when the configuration leaves it open, and the reason that is given."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import DEFAULTS, Float32Array, draw_weights, write_checkpoint, write_weights
from random_model import random_spec, random_weights
from threadpoolctl import threadpool_info, threadpool_limits

from pocketlm import fingerprint, kernels, loading
from pocketlm.config import EngineConfig, engine_config
from pocketlm.errors import ConfigError, ModelLoadError
from pocketlm.hub import BUNDLED
from pocketlm.loading import (
    LoadedModel,
    estimate,
    load_model,
    resolve_dtype,
    resolve_max_model_len,
    resolve_num_blocks,
    resolve_num_threads,
)
from pocketlm.models import Checkpoint, read_header
from pocketlm.text.tokenizer import Tokenizer

needs_core = pytest.mark.skipif(kernels.isa()[0] == "reference", reason="it is about the compiled core")


def checkpoint(**changes: Any) -> Checkpoint:
    spec = random_spec(vocab_size=8192, max_positions=64, **changes)
    weights = random_weights(spec)
    return Checkpoint(BUNDLED, "random", spec, weights, eos_token_ids=(), num_parameters=0)


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


def test_blas_has_one_thread_while_weights_are_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """More would wait for each other on a busy machine, and are not bound by a container's quota."""

    def num_threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    found: list[set[int]] = []
    create_decoder = kernels.create_decoder

    def watched(*args: Any, **options: Any) -> Any:
        found.append(num_threads())
        return create_decoder(*args, **options)

    monkeypatch.setattr(kernels, "create_decoder", watched)
    with threadpool_limits(2, user_api="blas"):
        before = num_threads()
        loading.create_decoder(checkpoint(), Tokenizer.from_folder(BUNDLED), "float32", num_threads=1)
        assert num_threads() == before
    assert found == [{1} if before else set()]


@needs_core
def test_auto_takes_int8_where_the_probe_finds_it_accurate() -> None:
    model = load_model("bundled", EngineConfig(dtype="auto"))
    assert model.dtype == "int8"
    assert "KL divergence" in model.dtype_reason and "bound 0.01" in model.dtype_reason


@needs_core
def test_auto_takes_bfloat16_where_int8_is_not_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_KL_DIVERGENCE", 5e-5)
    dtype, reason, decoder = resolve_dtype(EngineConfig(), checkpoint(), Tokenizer.from_folder(BUNDLED), 1)
    assert dtype == decoder.dtype == "bfloat16"
    assert re.search(r"of int8 .* of bfloat16 .*, bound 5e-05$", reason)


@needs_core
def test_auto_falls_back_to_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_KL_DIVERGENCE", 1e-9)
    dtype, reason, decoder = resolve_dtype(EngineConfig(), checkpoint(), Tokenizer.from_folder(BUNDLED), 1)
    assert dtype == decoder.dtype == "float32"
    assert "bound 1e-09" in reason


@needs_core
def test_a_probe_that_is_not_finite_means_float32() -> None:
    broken = checkpoint()
    broken.weights["head.weight"] = np.full_like(broken.weights["head.weight"], np.nan)
    assert resolve_dtype(EngineConfig(), broken, Tokenizer.from_folder(BUNDLED), 1)[0] == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_dtype_that_is_given_is_not_probed(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "compare", None)
    found = resolve_dtype(engine_config(dtype=dtype), checkpoint(), Tokenizer.from_folder(BUNDLED), 1)
    assert found[:2] == (dtype, "as configured")


def test_on_the_reference_auto_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "isa", lambda: ("reference", "for a test"))
    dtype, reason, _ = resolve_dtype(EngineConfig(), checkpoint(), Tokenizer.from_folder(BUNDLED), 1)
    assert dtype == "float32" and "reference" in reason


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketlm.hardware.num_threads", lambda: (5, "for a test"))
    assert resolve_num_threads(EngineConfig()) == (5, "for a test")
    assert resolve_num_threads(EngineConfig(num_threads=3)) == (3, "as configured")


@pytest.mark.parametrize(("configured", "expected"), [(None, 64), (10, 10), (64, 64), (1000, 64)])
def test_max_model_len_is_never_more_than_the_context(configured: int | None, expected: int) -> None:
    length, reason = resolve_max_model_len(
        EngineConfig(max_model_len=configured), random_spec(max_positions=64)
    )
    assert length == expected
    assert configured != 1000 or "less than the 1000 configured" in reason


def blocks(
    available: int, monkeypatch: pytest.MonkeyPatch, budget: int | None = None, **config: Any
) -> tuple[int, str]:
    """For contexts of 4 blocks each, with this much memory available."""
    monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (available, "for a test"))
    return resolve_num_blocks(engine_config(**config), checkpoint().spec, "float32", 64, budget)


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


def test_the_kv_cache_takes_what_a_budget_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    block_bytes = kernels.kv_block_bytes(checkpoint().spec, "float32")
    num_blocks, reason = blocks(0, monkeypatch, budget=9 * block_bytes)
    assert num_blocks == 9
    assert reason == "what the memory budget leaves beside the weights"
    assert blocks(0, monkeypatch, budget=1 << 40, max_num_seqs=3)[0] == 12
    with pytest.raises(ConfigError, match="memory budget"):
        blocks(1 << 40, monkeypatch, budget=-5)


def test_a_budget_below_one_context_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"may take 100 ?B.*one context of 64 tokens needs \d.*kv_cache_memory"
    ):
        blocks(0, monkeypatch, kv_cache_memory=100)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1, vocab_size=97)  # the tokenizer has more tokens
    with pytest.raises(ModelLoadError, match=r"vocab_size is 97; they do not belong together"):
        load_model(str(folder), EngineConfig(num_threads=1))


def with_nan(seed: int) -> dict[str, Float32Array]:
    weights = draw_weights(DEFAULTS, seed=seed, tied=True)
    weights["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    return {f"transformer.{name}": values for name, values in weights.items()}


def load(folder: Path, **config: Any) -> LoadedModel:
    settings = {"num_threads": 1, "max_num_seqs": 2, "dtype": "float32", **config}
    return load_model(str(folder), engine_config(**settings))


def test_the_fingerprint_is_that_of_what_decides_the_tokens(tmp_path: Path) -> None:
    """Equal for the same files elsewhere, whenever they were written; another one after any change."""
    folder = write_checkpoint(tmp_path / "model", seed=1)
    first = load(folder).fingerprint
    twin = tmp_path / "elsewhere"
    shutil.copytree(folder, twin)
    for path in twin.iterdir():
        os.utime(path, (1, 1))
    assert load(twin).fingerprint == first == load(folder, num_threads=2, max_num_seqs=5).fingerprint

    found = {first}
    found.add(load(folder, dtype="int8").fingerprint)
    found.add(load(folder, max_model_len=32).fingerprint)
    (twin / "generation_config.json").write_text('{"eos_token_id": 7}')
    found.add(load(twin).fingerprint)
    weights = twin / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1  # one bit of one weight; neither the header nor the size tells
    weights.write_bytes(content)
    found.add(load(twin).fingerprint)
    assert len(found) == 5


def test_a_large_file_is_hashed_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    weights = folder / "model.safetensors"
    monkeypatch.setattr(fingerprint, "PIECE_BYTES", 1000)
    monkeypatch.setattr(fingerprint, "READ_BYTES", 300)
    found = set()
    content = bytearray(weights.read_bytes())
    for position in (0, 999, 1000, 1300, len(content) - 1):
        content[position] ^= 1
        weights.write_bytes(content)
        found.add(fingerprint.content_digest(folder, [weights]))
    assert len(found) == 5


@needs_core
def test_a_model_says_what_memory_it_takes() -> None:
    model = load_model("bundled", EngineConfig(num_threads=1, max_model_len=64, max_num_seqs=2))
    decoder = model.engine._runner._decoder
    assert model.kv_cache_bytes == model.engine._runner._kv_cache.num_bytes
    assert 0 <= model.weights_bytes - decoder.weights_bytes < 0.02 * decoder.weights_bytes
    assert model.memory_bytes == model.weights_bytes + model.kv_cache_bytes


def test_nan_in_the_weights_is_found_but_not_fatal(tmp_path: Path) -> None:
    """The server says what is wrong with a model; it does not refuse to start."""
    folder = write_checkpoint(tmp_path / "model", seed=1)
    write_weights(folder, with_nan(seed=1), dtype="F32", shards=1)
    model = load(folder, dtype="auto")
    assert model.dtype == "float32"
    assert model.known_answer is not None
    assert model.known_answer.token_ids is None
    assert "not finite" in str(model.known_answer.failure)


@pytest.mark.parametrize("available", [0, 1 << 20, 1 << 40])
@pytest.mark.parametrize("dtype", ["auto", "int8", "float32"])
def test_the_estimate_is_an_upper_bound_of_what_is_loaded(tmp_path: Path, dtype: str, available: int) -> None:
    folder = str(write_checkpoint(tmp_path / "model", seed=1, n_embd=64, n_head=4, dtype="F16"))
    config = engine_config(dtype=dtype, num_threads=1, max_num_seqs=3)
    available = max(available, estimate(folder, config, 0).least_bytes)
    estimated = estimate(folder, config, available)
    model = load_model(folder, config, available)
    assert estimated.num_parameters == model.num_parameters
    assert estimated.max_model_len == model.max_model_len
    assert model.weights_bytes <= estimated.weights_bytes <= estimated.peak_bytes
    assert model.memory_bytes <= available
    if dtype != "auto":  # then it is known in advance
        assert estimated.weights_bytes == model.weights_bytes
        assert model.kv_cache_bytes <= estimated.kv_cache_bytes
        assert estimated.memory_bytes <= available


def test_the_estimate_of_a_configured_kv_cache(tmp_path: Path) -> None:
    folder = str(write_checkpoint(tmp_path / "model", seed=1))
    config = engine_config(dtype="int8", kv_cache_memory="1MiB", max_num_seqs=10**6)
    estimated = estimate(folder, config, 0)
    block_bytes = kernels.kv_block_bytes(read_header(Path(folder)).spec, "int8")
    assert estimated.kv_cache_bytes == estimated.least_kv_cache_bytes
    assert (1 << 20) - block_bytes < estimated.kv_cache_bytes <= 1 << 20


def test_the_estimate_reads_no_weights(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    expected = estimate(str(folder), EngineConfig(), 0)
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    header_bytes = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    os.truncate(weights, header_bytes)
    os.truncate(weights, size)  # a hole where the weights were
    assert estimate(str(folder), EngineConfig(), 0) == expected
    weights.unlink()
    with pytest.raises(ModelLoadError, match=r"has no model.safetensors"):
        estimate(str(folder), EngineConfig(), 0)


MEMORY_OF_A_LOAD = """
import re, sys
from pathlib import Path
from pocketlm import loading
from pocketlm.config import engine_config
from pocketlm.loading import estimate, load_model
from pocketlm.memory import return_freed_memory

def used(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

folder, dtype, loading.MAX_KL_DIVERGENCE = sys.argv[1], sys.argv[2], float(sys.argv[3])
config = engine_config(dtype=dtype, num_threads=1, max_num_seqs=1, max_model_len=64)
load_model("bundled", config)  # so that all code is there before anything is measured
return_freed_memory()
before, resident_before = used("RssAnon"), used("VmRSS")
model = load_model(folder, config)
after, resident_peak = used("RssAnon"), used("VmHWM")
bound = estimate(folder, config, 0)
print(after - before, model.weights_bytes, resident_peak - resident_before, bound.peak_bytes)
"""


@pytest.fixture(scope="module", params=["F16", "BF16"])
def large_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large beside what else a load takes."""
    size = {"n_embd": 512, "n_head": 8, "n_layer": 8, "vocab_size": 8192, "n_positions": 64}
    folder = tmp_path_factory.mktemp("large") / "model"
    return write_checkpoint(folder, seed=1, dtype=request.param, **size)


@needs_core
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what a process takes")
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [("auto", 0.01), ("auto", 0), ("int8", 0), ("int4", 0), ("bfloat16", 0), ("float32", 0)],
)
def test_the_process_takes_no_more_than_was_estimated(
    large_checkpoint: Path, dtype: str, bound: float
) -> None:
    """In a process of its own: anonymous memory, with 16 MiB for all that is not weights."""
    command = [sys.executable, "-c", MEMORY_OF_A_LOAD, str(large_checkpoint), dtype, str(bound)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    growth, weights_bytes, peak, peak_bound = map(int, done.stdout.split())
    margin = 16 << 20
    mapped = (large_checkpoint / "model.safetensors").stat().st_size  # counts in the only figure for the peak
    assert growth <= weights_bytes + margin
    assert peak <= peak_bound + mapped + margin
