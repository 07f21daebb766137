from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_safetensors

from pocketlm.errors import ModelLoadError
from pocketlm.models.checkpoint_file import CheckpointFile

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3) - 2.5


def write(folder: Path, dtype: str = "F32", values: np.ndarray = VALUES) -> Path:
    path = folder / "model.safetensors"
    save_safetensors(path, {"a": (dtype, values)})
    return path


def write_shards(folder: Path, weight_map: object) -> None:
    save_safetensors(folder / "model-1.safetensors", {"a": ("F32", VALUES)})
    save_safetensors(folder / "model-2.safetensors", {"b": ("F32", 2 * VALUES)})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_values_are_views_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    tensor = CheckpointFile(tmp_path).tensor("a", (2, 3))
    np.testing.assert_array_equal(tensor, VALUES)
    assert not tensor.flags.owndata and not tensor.flags.writeable


def test_float16_stays_and_bfloat16_is_widened(tmp_path: Path) -> None:
    for dtype, stored, expected in (
        ("F16", VALUES.astype(np.float16), np.float16),
        ("BF16", (VALUES.view(np.uint32) >> 16).astype(np.uint16), np.float32),
    ):
        write(tmp_path, dtype, stored)
        tensor = CheckpointFile(tmp_path).tensor("a", (2, 3))
        assert tensor.dtype == expected
        np.testing.assert_array_equal(tensor, VALUES)  # short enough numbers to lose nothing


def test_a_tensor_after_an_odd_number_of_bytes_is_aligned(tmp_path: Path) -> None:
    mask = np.zeros(3, np.uint8)
    save_safetensors(tmp_path / "model.safetensors", {"mask": ("U8", mask), "a": ("F32", VALUES)})
    tensor = CheckpointFile(tmp_path).tensor("a", (2, 3))
    assert tensor.flags.aligned
    np.testing.assert_array_equal(tensor, VALUES)


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    file = CheckpointFile(tmp_path)
    assert file.names == {"a", "b"}
    np.testing.assert_array_equal(file.tensor("b", (2, 3)), 2 * VALUES)


def test_another_dtype_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, "F64", VALUES.astype(np.float64))
    with pytest.raises(ModelLoadError, match="tensor a has dtype F64, supported are F32, F16, BF16"):
        CheckpointFile(tmp_path).tensor("a", (2, 3))


def test_a_wrong_shape_names_both(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ModelLoadError) as error:
        CheckpointFile(tmp_path).tensor("a", (3, 2))
    assert str(error.value) == f"{path}: tensor a has shape [2, 3], expected [3, 2]"


def test_a_missing_tensor(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ModelLoadError, match="has no tensor b"):
        CheckpointFile(tmp_path).tensor("b", (2, 3))


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "a few bytes": content[:5],
        "cut in the header": content[:40],
        "cut in the data": content[:-1],
        "longer than its header says": content + b"\0",
        "a length beyond the file": b"\xff" * 8 + content[8:],
        "not JSON": content[:8] + b"[" + content[9:],
        "an unknown dtype": content.replace(b"F32", b"F31"),
        "a shape that does not fit": content.replace(b"[2, 3]", b"[2, 4]"),
        "offsets beyond the data": content.replace(b"[0, 24]", b"[8, 32]"),
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 24\n",
    }


@pytest.mark.parametrize("damage", damaged(b"").keys())
def test_a_damaged_file(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path)
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is truncated or not a safetensors file"):
        CheckpointFile(tmp_path)


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read"):
        CheckpointFile(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(
        ModelLoadError, match=r"has no model\.safetensors or model\.safetensors\.index\.json;"
    ):
        CheckpointFile(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelLoadError, match=r"but pytorch_model\.bin; .* convert .* to safetensors"):
        CheckpointFile(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-1.safetensors", "b": "model-9.safetensors"}, "lists model-9.safetensors, which is not"),
        ({"a": "model-2.safetensors"}, "puts tensor a in model-2.safetensors, which does not have it"),
        ({"a": "../model-1.safetensors"}, "must be in a file of the same folder"),
        ({"a": ".."}, "lists .., which is not|cannot be read"),
        ({"a": 1}, "must be in a file of the same folder, got 1"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_a_wrong_index(tmp_path: Path, weight_map: object, message: str) -> None:
    write_shards(tmp_path, weight_map)
    with pytest.raises(ModelLoadError, match=message):
        CheckpointFile(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"7"])
def test_an_index_that_is_not_a_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.safetensors\.index\.json (is not valid JSON|must be)"):
        CheckpointFile(tmp_path)


def test_a_damaged_shard(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
    path = tmp_path / "model-2.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ModelLoadError, match=r"model-2\.safetensors is truncated"):
        CheckpointFile(tmp_path)
