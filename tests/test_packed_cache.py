"""Packed weights on disk: used where they are right, and never otherwise."""

from __future__ import annotations

import errno
import json
import logging
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint

from pocketlm import LLM, SamplingParams, kernels, loading, packed_cache
from pocketlm.config import engine_config
from pocketlm.loading import LoadedModel, load_model
from pocketlm.models import read_header
from pocketlm.packed_cache import PackedCache, default_folder

pytestmark = pytest.mark.skipif(kernels.isa()[0] == "reference", reason="the reference packs nothing")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", seed=1)


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(checkpoint: Path, cache_dir: Path, **config: Any) -> LoadedModel:
    settings = {"num_threads": 1, "max_num_seqs": 2, "cache_dir": cache_dir, **config}
    return load_model(str(checkpoint), engine_config(**settings))


def is_from_cache(model: LoadedModel) -> bool:
    """Whether the decoder computes with arrays that lie on a file."""
    weights = kernels.packed_weights(model.engine._runner._decoder)
    assert weights is not None
    array = weights.arrays["layers.0.qkv.weight"]
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array.base, mmap.mmap)


def only_file(cache_dir: Path) -> Path:
    [path] = cache_dir.iterdir()
    return path


@pytest.mark.parametrize("dtype", ["auto", *kernels.DTYPES])
def test_a_second_start_neither_reads_the_weights_nor_packs_nor_probes(
    dtype: str, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(checkpoint, cache_dir, dtype=dtype)
    assert not is_from_cache(first)
    for name in ("read_checkpoint", "resolve_dtype", "content_digest"):
        monkeypatch.setattr(loading, name, None)
    monkeypatch.setattr("pocketlm.known_answer.logits_of", None)
    second = load(checkpoint, cache_dir, dtype=dtype)
    assert is_from_cache(second)
    for name in ("dtype", "dtype_reason", "fingerprint", "known_answer", "weights_bytes", "num_parameters"):
        assert getattr(second, name) == getattr(first, name), name
    assert second.settings[2] == first.settings[2]


def test_what_auto_took_in_place_of_int8_is_kept_too(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far_from_int8(float32: kernels.Decoder, other: kernels.Decoder, windows: Any) -> SimpleNamespace:
        return SimpleNamespace(mean_kl=float(other.dtype == "int8"))

    monkeypatch.setattr(loading, "compare", far_from_int8)
    first = load(checkpoint, cache_dir)
    second = load(checkpoint, cache_dir)
    assert first.dtype == second.dtype == "bfloat16"
    assert is_from_cache(second) and second.dtype_reason == first.dtype_reason


@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_tokens_are_the_same_with_and_without(dtype: str, checkpoint: Path, cache_dir: Path) -> None:
    params = SamplingParams(max_tokens=30, temperature=1, seed=5, logprobs=2)
    answers = []
    for _ in range(2):
        llm = LLM(str(checkpoint), dtype=dtype, num_threads=1, cache_dir=cache_dir)
        [output] = llm.generate("A small service", params)
        answers.append([(c.token_ids, c.logprobs) for c in output.outputs])
    assert answers[0] == answers[1]


def test_a_format_that_was_given_and_auto_share_a_file(checkpoint: Path, cache_dir: Path) -> None:
    chosen = load(checkpoint, cache_dir).dtype
    assert is_from_cache(load(checkpoint, cache_dir, dtype=chosen))
    assert is_from_cache(load(checkpoint, cache_dir))
    only_file(cache_dir)


def test_auto_probes_what_was_packed_without_a_probe(checkpoint: Path, cache_dir: Path) -> None:
    chosen = load(checkpoint, cache_dir.with_name("other")).dtype
    load(checkpoint, cache_dir, dtype=chosen)
    found = load(checkpoint, cache_dir)
    assert not is_from_cache(found) and found.dtype_reason != "as configured"
    assert is_from_cache(load(checkpoint, cache_dir))
    only_file(cache_dir)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def flip(share: float) -> Any:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 1
        path.write_bytes(content)

    return change


def flip_in_header(path: Path) -> None:
    content = path.read_bytes()
    assert b"content_digest" in content
    path.write_bytes(content.replace(b"content_digest", b"content_digesu"))


def another_models(path: Path) -> None:
    other = write_checkpoint(path.parents[1] / "another", seed=2)
    folder = path.parents[1] / "another cache"
    load(other, folder, dtype="int8")
    path.write_bytes(only_file(folder).read_bytes())


DAMAGES = {
    "truncated": truncate,
    "empty": empty,
    "first byte": flip(0),
    "length of the header": flip(5e-5),
    "a weight in the middle": flip(0.5),
    "another weight": flip(0.77),
    "last byte": flip(1),
    "header": flip_in_header,
    "of another model": another_models,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_right_is_packed_again_with_one_line(
    damage: str, checkpoint: Path, cache_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(checkpoint, cache_dir, dtype="int8")
    path = only_file(cache_dir)
    good = path.read_bytes()
    DAMAGES[damage](path)
    assert path.read_bytes() != good
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = load(checkpoint, cache_dir, dtype="int8")
    assert not is_from_cache(found)
    assert found.fingerprint == expected.fingerprint and found.known_answer == expected.known_answer
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if "packing again" in line]) == 1
    assert is_from_cache(load(checkpoint, cache_dir, dtype="int8"))
    assert path.read_bytes() == good


def test_a_changed_checkpoint_is_packed_again(checkpoint: Path, cache_dir: Path) -> None:
    """Even where one bit of a weight changed, and neither the size nor the time of the file tells."""
    first = load(checkpoint, cache_dir, dtype="int8")
    weights = checkpoint / "model.safetensors"
    before = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = load(checkpoint, cache_dir, dtype="int8")
    assert not is_from_cache(second) and second.fingerprint != first.fingerprint
    only_file(cache_dir)


def test_a_changed_config_or_tokenizer_is_seen(checkpoint: Path, cache_dir: Path) -> None:
    load(checkpoint, cache_dir, dtype="int8")
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": 7}')
    assert not is_from_cache(load(checkpoint, cache_dir, dtype="int8"))
    tokenizer = checkpoint / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert not is_from_cache(load(checkpoint, cache_dir, dtype="int8"))
    only_file(cache_dir)


@pytest.mark.parametrize("name", ["PACKING_VERSION", "SMOOTHING_VERSION", "version"])
def test_another_version_packs_again(
    name: str, checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(checkpoint, cache_dir, dtype="int8")
    monkeypatch.setattr(packed_cache, name, 999 if name.isupper() else lambda package: "999")
    assert not is_from_cache(load(checkpoint, cache_dir, dtype="int8"))
    assert is_from_cache(load(checkpoint, cache_dir, dtype="int8"))
    only_file(cache_dir)


def test_a_folder_that_cannot_be_written_costs_a_line(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    for cache_dir in (occupied, occupied / "below"):
        caplog.clear()
        assert load(checkpoint, cache_dir, dtype="int8").dtype == "int8"
        [line] = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "packed weights cannot be kept" in line


def test_a_full_disk_costs_a_line_and_leaves_nothing(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert load(checkpoint, cache_dir, dtype="int8").dtype == "int8"
    assert "No space left on device" in caplog.text
    assert list(cache_dir.iterdir()) == []


def test_a_file_in_use_may_be_replaced(checkpoint: Path, cache_dir: Path) -> None:
    load(checkpoint, cache_dir, dtype="int8")
    running = load(checkpoint, cache_dir, dtype="int8")
    assert is_from_cache(running) and running.known_answer is not None
    only_file(cache_dir).unlink()
    load(checkpoint, cache_dir, dtype="int8")
    [answer] = LLM(str(checkpoint), dtype="int8", cache_dir=cache_dir).generate(
        "x", SamplingParams(max_tokens=1, temperature=0)
    )
    assert answer.outputs
    decoder = running.engine._runner._decoder
    again = loading.known_answer.record("x", decoder, running.tokenizer, running.max_model_len)
    assert again == running.known_answer


def test_what_a_process_left_half_written_is_removed(checkpoint: Path, cache_dir: Path) -> None:
    load(checkpoint, cache_dir, dtype="int8")
    path = only_file(cache_dir)
    old, new = (cache_dir / f"{path.stem}-{name}.tmp" for name in ("old", "new"))
    for each in (old, new):
        each.write_text("half")
    os.utime(old, (0, 0))
    load(checkpoint, cache_dir, dtype="float32")
    assert not old.exists() and new.exists()  # another process may be writing the new one


def test_models_of_one_name_in_two_folders_have_a_file_each(tmp_path: Path, cache_dir: Path) -> None:
    folders = [write_checkpoint(tmp_path / str(seed) / "model", seed=seed) for seed in (1, 2)]
    for folder in folders:
        load(folder, cache_dir, dtype="int8")
    assert all(is_from_cache(load(folder, cache_dir, dtype="int8")) for folder in folders)
    assert len(list(cache_dir.iterdir())) == 2


def test_random_weights_are_not_kept(cache_dir: Path) -> None:
    config = engine_config(
        dtype="int8",
        num_threads=1,
        max_num_seqs=1,
        max_model_len=64,
        cache_dir=cache_dir,
        kv_cache_memory="9MiB",
    )
    load_model("shape:distilgpt2", config)
    assert not cache_dir.exists()


def test_a_model_that_is_not_well_is_not_kept(
    checkpoint: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketlm.known_answer._greedy", lambda *arguments: None)  # logits not finite
    assert load(checkpoint, cache_dir, dtype="int8").known_answer is not None
    assert not cache_dir.exists()


def test_arrays_lie_where_the_core_wants_them(tmp_path: Path, cache_dir: Path) -> None:
    """Norms of an odd size must not push the panels off their boundaries."""
    checkpoint = write_checkpoint(tmp_path / "model", seed=1, n_embd=35, n_head=5)
    for dtype in kernels.DTYPES:
        load(checkpoint, cache_dir, dtype=dtype)
        assert is_from_cache(load(checkpoint, cache_dir, dtype=dtype))


def test_the_folder_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pocketlm"
    monkeypatch.setenv("HOME", str(tmp_path))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == tmp_path / ".cache" / "pocketlm"


START = """
import sys
from pocketlm.config import engine_config
from pocketlm.loading import load_model
model = load_model(sys.argv[1], engine_config(num_threads=1, max_num_seqs=2, cache_dir=sys.argv[2]))
print(model.fingerprint, model.known_answer.token_ids)
"""


def test_processes_that_start_at_once(checkpoint: Path, cache_dir: Path) -> None:
    command = [sys.executable, "-c", START, str(checkpoint), str(cache_dir)]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {start.communicate(timeout=120)[0] for start in starts}
    assert [start.returncode for start in starts] == [0] * 4
    assert len(answers) == 1 and "[" in answers.pop()
    only_file(cache_dir)
    assert is_from_cache(load(checkpoint, cache_dir))


def test_a_writer_never_shows_half_a_file(checkpoint: Path, cache_dir: Path) -> None:
    """While one process writes again and again, every read finds a whole file."""
    load(checkpoint, cache_dir, dtype="int8")
    header = read_header(checkpoint)
    cache = PackedCache(cache_dir, str(checkpoint), header)
    kept = cache.load("int8")
    assert kept is not None
    writer = (
        "import sys, pathlib\n"
        "from pocketlm.models import read_header\n"
        "from pocketlm.packed_cache import PackedCache\n"
        "name, folder = sys.argv[1:]\n"
        "cache = PackedCache(pathlib.Path(folder), name, read_header(pathlib.Path(name)))\n"
        "kept = cache.load('int8')\n"
        "for _ in range(50):\n"
        "    cache.save(*kept)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", writer, str(checkpoint), str(cache_dir)])
    deadline = time.monotonic() + 100
    num_reads = 0
    while process.poll() is None and time.monotonic() < deadline:
        assert cache.load("int8") is not None
        num_reads += 1
    assert process.wait(10) == 0 and num_reads > 5


def test_the_header_is_plain_safetensors(checkpoint: Path, cache_dir: Path) -> None:
    load(checkpoint, cache_dir, dtype="int8")
    content = only_file(cache_dir).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert "token_embedding" not in header and "layers.1.down.scales" in header
