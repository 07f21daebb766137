"""Settings: where they come from, which wins, and what is said of a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pocketlm.config import EngineConfig, ServerConfig, engine_config, load_config
from pocketlm.errors import ConfigError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (*EngineConfig.model_fields, *ServerConfig.model_fields, "model"):
        monkeypatch.delenv(f"POCKETLM_{name.upper()}", raising=False)
    return tmp_path


def test_defaults() -> None:
    model, engine, server = load_config({})
    assert model == ("bundled",)
    assert engine == EngineConfig() and server == ServerConfig()
    assert (server.host, server.port) == ("127.0.0.1", 5000)


def test_flags_win_over_environment_over_file_over_defaults(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "pocketlm.toml").write_text('port = 1\nmax_num_seqs = 2\nmodel = "folder"\n')
    assert load_config({})[2].port == 1
    monkeypatch.setenv("POCKETLM_PORT", "3")
    assert load_config({})[2].port == 3
    monkeypatch.setenv("POCKETLM_HOST", "")  # as a compose file passes a variable that is not set
    assert load_config({})[2].host == "127.0.0.1"
    model, engine, server = load_config({"port": "4", "max_num_seqs": None})
    assert (model, engine.max_num_seqs, server.port) == (("folder",), 2, 4)


def test_sizes_are_written_with_units() -> None:
    assert engine_config(kv_cache_memory="12MiB").kv_cache_memory == 12 << 20
    assert load_config({"max_body": "2kB"})[2].max_body == 2000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "int3"}, "dtype: .*'auto', 'float32', 'bfloat16', 'int8' or 'int4'.*'int3'"),
        ({"max_num_seqs": 0}, "max_num_seqs: .*greater than or equal to 1.*0"),
        ({"num_threads": "many"}, "num_threads: .*valid integer.*'many'"),
        ({"kv_cache_memory": "12 elephants"}, "kv_cache_memory: .*elephants"),
        ({"speculative_tokens": -1}, "speculative_tokens: .*greater than or equal to 0.*-1"),
        ({"speculative_tokens": 33}, "speculative_tokens: .*less than or equal to 32.*33"),
        ({"speculative_tokens": "some"}, "speculative_tokens: .*valid integer.*'some'"),
        ({"max_seqs": 1}, "unknown setting 'max_seqs'"),
        ({"max_seqs": 1, "num_threads": 0}, "num_threads.*; unknown setting 'max_seqs'"),
        ({"port": 5000}, "unknown setting 'port'"),
    ],
)
def test_a_wrong_keyword_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config(**values)


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Kubernetes sets this in every pod beside a service called pocketlm.
    monkeypatch.setenv("POCKETLM_PORT", "tcp://10.0.0.1:5000")
    with pytest.raises(ConfigError, match=r"port: .*valid integer.*tcp://10\.0\.0\.1"):
        load_config({})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ports = 1\n", "unknown setting 'ports'"),
        (b"port = 'x'\n", "port: .*valid integer.*'x'"),
        (b"port =\n", r"pocketlm\.toml .*line 1"),
        (b"host = '\xff'\n", r"pocketlm\.toml .*utf-8"),
    ],
)
def test_a_wrong_file_is_a_config_error(empty_folder: Path, content: bytes, message: str) -> None:
    (empty_folder / "pocketlm.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config({})


def test_every_field_has_one_line_of_help() -> None:
    for config in (EngineConfig, ServerConfig):
        for name, field in config.model_fields.items():
            assert field.description and field.description.endswith("."), name


def test_lists_come_as_flags_as_words_between_commas_and_as_arrays(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "pocketlm.toml").write_text(
        'model = ["gpt2", "distilgpt2"]\nalias = "small=distilgpt2"\n'
    )
    models, _, server = load_config({})
    assert models == ("gpt2", "distilgpt2") and server.alias == ("small=distilgpt2",)
    monkeypatch.setenv("POCKETLM_MODEL", "a, b")
    assert load_config({})[0] == ("a", "b")
    assert load_config({"model": ["x", "y,z"]})[0] == ("x", "y,z")
