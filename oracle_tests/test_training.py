"""The recipe of the bundled model, from a corpus to a card, on made-up text and a tiny model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import oracle
import pytest
import torch
from driver import greedy
from safetensors.torch import load_file
from synthetic_corpus import write_corpus
from transformers import AutoTokenizer

from pocketlm import kernels
from pocketlm.models import load_checkpoint
from pocketlm.text.tokenizer import Tokenizer
from training import checkpoint
from training.errors import RecipeError
from training.export import export
from training.prepare import prepare, read_documents
from training.recipe import SMOKE
from training.train import Run, build_model, lr_factor, open_run

RECIPE = replace(SMOKE, num_steps=30, warmup_steps=5, eval_interval=10)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    prepare(write_corpus(folder / "corpus"), folder / "data", None, is_smoke=True)
    return folder / "data"


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[Run, list[str]]:
    """A run from its beginning to its end, and what it said."""
    run = open_run(data, data.parent / "run", RECIPE, is_resumed=False)
    return run, list(run.train())


@pytest.fixture
def run(trained: tuple[Run, list[str]]) -> Run:
    return trained[0]


def without_speed(lines: list[str]) -> list[str]:
    return [re.sub(r"\S+ tokens/s.*|in \d+ s", "", line) for line in lines]


def test_training_learns(trained: tuple[Run, list[str]]) -> None:
    run, lines = trained
    losses = [float(loss) for loss in re.findall(r"validation loss (\S+)", "\n".join(lines))]
    assert len(losses) == 3 and losses[0] > losses[1] > losses[2] == pytest.approx(run.best_loss, abs=1e-4)
    assert re.match(r"step 10/30  loss \d\.\d+  lr 0\.\d+  [\d,]+ tokens/s  \d+\.\d min left$", lines[0])
    assert lines[-1].startswith("done: 30 steps, 61,440 tokens in ")


def test_a_resumed_run_computes_the_same(data: Path, trained: tuple[Run, list[str]], tmp_path: Path) -> None:
    run, expected_lines = trained
    lines: list[str] = []
    first = open_run(data, tmp_path / "run", RECIPE, is_resumed=False)
    for line in first.train():
        lines.append(line)
        if line.startswith("step 20/30"):  # beyond the checkpoint of step 10: these ten steps are lost
            break
    second = open_run(data, tmp_path / "run", RECIPE, is_resumed=True)
    assert second.step == 10
    rest = list(second.train())
    assert without_speed([*lines[:2], *rest]) == without_speed(expected_lines)
    for name in ("checkpoint.safetensors", "best.safetensors"):
        expected, found = (load_file(folder / name) for folder in (run.folder, tmp_path / "run"))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[tensor], found[tensor]) for tensor in expected), name


def test_training_stops_when_the_loss_no_longer_falls(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1])
    monkeypatch.setattr(Run, "validation_loss", lambda self: next(losses))
    recipe = replace(RECIPE, num_steps=90, eval_interval=1, patience=2)
    run = open_run(data, tmp_path / "run", recipe, is_resumed=False)
    lines = list(run.train())
    assert run.step == 4 and (run.best_step, run.best_loss) == (2, 2.0)
    assert lines[-1].endswith("the best is step 2, loss 2.0000")
    _, about = checkpoint.load(tmp_path / "run" / "best.safetensors")
    assert about["step"] == 2


def test_a_loss_that_is_not_finite_ends_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "train_step", train_step_to_nan)
    run = open_run(data, tmp_path / "run", RECIPE, is_resumed=False)
    with pytest.raises(RecipeError, match="the loss is nan at step 10; give a new folder and a lower"):
        list(run.train())


def train_step_to_nan(run: Run) -> torch.Tensor:
    run.step += 1
    return torch.tensor(float("nan"))


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [lr_factor(step, RECIPE) for step in range(RECIPE.num_steps)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:7] == pytest.approx([1.0, 0.96]) and factors[-1] == pytest.approx(0.04)


def test_the_recipe_counts_the_parameters() -> None:
    for recipe in (SMOKE, replace(SMOKE, num_layers=3, vocab_size=700)):
        assert build_model(recipe).num_parameters() == recipe.num_parameters


def test_bad_runs_are_named(data: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has a checkpoint already; go on with --resume"):
        open_run(data, run.folder, RECIPE, is_resumed=False)
    other = replace(RECIPE, num_layers=3, seed=2)
    with pytest.raises(RecipeError, match="another run: num_layers was 2, is 3; seed was 1, is 2; give"):
        open_run(data, run.folder, other, is_resumed=True)
    with pytest.raises(RecipeError, match=r"does not exist; run training\.train first"):
        open_run(data, tmp_path / "nowhere", RECIPE, is_resumed=True)
    with pytest.raises(RecipeError, match="a vocabulary of 512, the recipe has 600"):
        open_run(data, tmp_path / "other", replace(RECIPE, vocab_size=600), is_resumed=False)
    with pytest.raises(RecipeError, match=r"is not a folder that training\.prepare wrote"):
        open_run(tmp_path, tmp_path / "other", RECIPE, is_resumed=False)
    prepare(write_corpus(tmp_path / "corpus", seed=2), tmp_path / "data", None, is_smoke=True)
    with pytest.raises(RecipeError, match="the tokens are not those it was trained on"):
        open_run(tmp_path / "data", run.folder, RECIPE, is_resumed=True)

    with pytest.raises(RecipeError, match="exists already"):
        export(run.folder, tmp_path)
    (tmp_path / "best.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(RecipeError, match=r"is not a checkpoint of training\.train"):
        export(tmp_path, tmp_path / "model")


def test_the_model_is_the_same_in_transformers_and_pocketlm(data: Path, run: Run, tmp_path: Path) -> None:
    export(run.folder, tmp_path / "model")
    document = read_documents(data / "validation.txt")[0]
    prompt = Tokenizer.from_folder(tmp_path / "model").encode(document)[:30]
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode(document)[:30] == prompt
    tokens, _ = oracle.greedy(oracle.load(tmp_path / "model"), prompt, 60)
    found = load_checkpoint(tmp_path / "model")
    decoder = kernels.create_decoder(found.spec, found.weights, dtype="float32", num_threads=2)
    assert greedy(decoder, prompt, 60)[0] == tokens
    # What is shipped is what was trained, rounded to float16.
    trained = load_file(run.folder / "best.safetensors")
    shipped = load_file(tmp_path / "model" / "model.safetensors")
    assert trained.keys() == shipped.keys()
    assert all(torch.equal(trained[name].half(), shipped[name]) for name in trained)


@pytest.fixture
def commands(data: Path) -> list[str]:
    """Those of training/README.md under "On a CPU", with folders of this test's."""
    page = (ROOT / "training" / "README.md").read_text()
    [block] = re.findall(r"^## On a CPU.*?^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    places = {"CORPUS": data.parent / "corpus", "DATA": "data", "RUN": "run", "MODEL": "model"}
    for name, place in places.items():
        block = re.sub(rf"\b{name}\b", str(place), block)
    return block.splitlines()


def test_the_commands_of_the_page_make_a_model(commands: list[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "OMP_NUM_THREADS": "1",  # two wait for each other all the time where another process has a core
    }
    printed = []
    for command in commands:
        result = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, result.stderr
        printed.append(result.stdout)
    assert len(commands) == 4
    assert printed[1].startswith(f"{SMOKE.num_parameters:,} parameters, float32 on CPU\nstep 10/100  loss ")
    assert "the best is step 100," in printed[1]
    figures = printed[3].strip()
    assert re.search(r"^\| bits per byte \| \d\.\d{4} \|$", figures, re.MULTILINE)
    assert figures in (tmp_path / "model" / "README.md").read_text()
