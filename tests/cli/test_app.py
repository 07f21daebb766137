"""The command as a whole, its flags, and the commands that measure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from command import pocketlm

from pocketlm import accuracy, kernels, transformers_logits
from pocketlm.cli.doctor import doctor
from pocketlm.cli.verify import verify
from pocketlm.config import EngineConfig, ServerConfig
from pocketlm.hub import BUNDLED
from pocketlm.kernels.inputs import Float32Array
from pocketlm.models import load_checkpoint


def test_version() -> None:
    assert pocketlm("--version").stdout == f"pocketlm {version('pocketlm')}\n"


def test_help_names_every_command() -> None:
    text = pocketlm("--help").stdout
    for name in ("serve", "generate", "verify", "doctor"):
        assert re.search(rf"^  {name} ", text, re.MULTILINE)


@pytest.mark.parametrize("command", ["serve", "generate"])
def test_every_setting_is_a_flag_with_its_help(command: str) -> None:
    text = " ".join(pocketlm(command, "--help").stdout.split())
    models = (EngineConfig, ServerConfig) if command == "serve" else (EngineConfig,)
    for model in models:
        for name, field in model.model_fields.items():
            assert f"--{name.replace('_', '-')} " in text
            assert field.description and field.description in text


def test_a_setting_may_come_from_the_environment_or_the_file(tmp_path: Path) -> None:
    (tmp_path / "pocketlm.toml").write_text("num_threads = 1\nmax_model_len = 32\n")
    arguments = ("generate", "Kubernetes is a", "--max-tokens", "2", "--verbose")
    result = pocketlm(*arguments, folder=tmp_path, environment={"POCKETLM_MAX_MODEL_LEN": "64"})
    assert "num_threads=1: as configured" in result.stderr
    assert "max_model_len=64: as configured" in result.stderr


def test_doctor_finds_all_well() -> None:
    result = pocketlm("doctor")
    assert result.returncode == 0, result.stdout
    for word in (
        "numpy",
        "cpu",
        "memory",
        "isa",
        "num_threads",
        "compiled core",
        "Kubernetes is a",
        "all is well",
    ):
        assert word in result.stdout


def test_doctor_as_json() -> None:
    result = pocketlm("doctor", "--json")
    report = json.loads(result.stdout)
    assert report["ok"] is True and result.returncode == 0
    checks = {check["name"]: check for check in report["checks"]}
    for isa in kernels.COMPILED_ISAS:
        for dtype in kernels.DTYPES:
            assert checks[f"kernels {isa} {dtype}"]["state"] == "ok"
    assert checks["pocketlm"]["value"] == version("pocketlm")


def test_doctor_on_the_reference_still_passes() -> None:
    result = pocketlm("doctor", environment={"POCKETLM_ISA": "reference"})
    assert result.returncode == 0
    assert "forced by POCKETLM_ISA" in " ".join(result.stdout.split())


def run_doctor(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        doctor()
    assert isinstance(caught.value.code, int)
    return caught.value.code, " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(not kernels.COMPILED_ISAS, reason="the compiled core was not built")
def test_doctor_fails_if_a_kernel_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pocketlm.selftest.max_difference", lambda isa, dtype: 1.0)
    code, text = run_doctor(capsys)
    assert code == 1
    assert f"failed kernels {kernels.COMPILED_ISAS[0]} float32 1.0e+00" in text and "something failed" in text


def test_doctor_fails_if_the_model_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pocketlm.hardware.available_memory", lambda: (1000, "for a test"))
    code, text = run_doctor(capsys)
    assert code == 1
    assert "failed bundled model failed the KV cache may take" in text


def test_doctor_warns_if_the_core_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "COMPILED_ISAS", ())
    code, text = run_doctor(capsys)
    assert code == 0
    assert "warning compiled core missing the NumPy reference is used, which is slow" in text


def test_verify_prints_what_int8_costs(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A service runs in a container.\n<|endoftext|>\nA second document, " * 5)
    report = json.loads(pocketlm("verify", "--text", str(text), "--json").stdout)
    assert report["dtype"] == "int8" and report["num_tokens"] > 50
    assert report["perplexity"] == pytest.approx(report["perplexity_float32"], rel=0.2)
    change = 100 * (report["perplexity"] / report["perplexity_float32"] - 1)
    assert report["perplexity_change_percent"] == pytest.approx(change, abs=0.01)
    assert 0 < report["mean_kl_nats"] < 0.05
    assert 80 < report["equal_greedy_tokens_percent"] <= 100


def test_verify_has_a_text_of_its_own_and_a_table() -> None:
    result = pocketlm("verify", "--dtype", "float32")
    assert re.search(r"equal greedy tokens percent\s+100\.0", result.stdout)


@pytest.mark.parametrize("is_installed", [False, True])
def test_verify_compares_with_transformers_where_it_is(
    is_installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stand-in has the logits of our own float32, so all figures must be those against float32."""
    checkpoint = load_checkpoint(BUNDLED)

    class StandIn:
        version = "for a test"

        def __init__(self, folder: Path, num_threads: int) -> None:
            assert folder == BUNDLED
            self._decoder = kernels.create_decoder(
                checkpoint.spec, checkpoint.weights, dtype="float32", num_threads=num_threads
            )

        def logits_of(self, token_ids: list[int]) -> Iterator[Float32Array]:
            return accuracy.logits_of(self._decoder, token_ids)

    monkeypatch.setattr(transformers_logits, "is_installed", lambda: is_installed)
    monkeypatch.setattr(transformers_logits, "TransformersModel", StandIn)
    verify("bundled", json=True)
    report = json.loads(capsys.readouterr().out)
    if not is_installed:
        assert "pip install" in report["transformers"]
        return
    assert report["transformers"] == "for a test"
    assert report["perplexity_transformers"] == report["perplexity_float32"]
    for name in ("perplexity_change_percent", "mean_kl_nats", "equal_greedy_tokens_percent"):
        assert report[f"{name}_from_transformers"] == report[name]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), (b"\xff", "UTF-8"), (b" \n", "empty")]
)
def test_verify_refuses_what_is_no_text(tmp_path: Path, content: bytes | None, message: str) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    result = pocketlm("verify", "--text", str(text))
    assert result.returncode == 2
    assert result.stderr.startswith("error: text: ") and message in result.stderr
