"""pocketlm doctor: what this machine can do. That the installation is well stands in test_app.py."""

from __future__ import annotations

import json

import pytest
from command import pocketlm

from pocketlm.kernels import COMPILED_ISAS
from pocketlm.shapes import SHAPES

PARAMETERS = {
    "distilgpt2": 81_912_576,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def test_every_size_of_gpt2_has_a_prediction() -> None:
    report = json.loads(pocketlm("doctor", "--json").stdout)
    dtypes = report["speed"]["multiply_adds_per_s"].keys()
    assert dtypes == ({"float32", "bfloat16", "int8"} if COMPILED_ISAS else {"float32"})
    assert report["speed"]["bytes_per_s"] > 0
    by_model = {(entry["model"], entry["dtype"]): entry for entry in report["capacity"]}
    assert by_model.keys() == {(f"shape:{name}", dtype) for name in SHAPES for dtype in dtypes}
    for (model, dtype), entry in by_model.items():
        assert entry["num_parameters"] == PARAMETERS[model.removeprefix("shape:")]
        assert entry["predicted_tokens_per_s"]["1"] <= entry["predicted_tokens_per_s"]["16"]
        assert entry["measured_tokens_per_s"] is None
        assert entry["num_streams_that_fit"] <= by_model["shape:distilgpt2", dtype]["num_streams_that_fit"]


def test_the_table_and_the_rows_it_rests_on() -> None:
    text = pocketlm("doctor").stdout
    for row in ("cpu quota", "memory bandwidth", "GiB/s", "multiply-adds float32", "billion/s"):
        assert row in text
    for name in SHAPES:
        assert f"\n{name} " in text
    assert "measured" not in text


def test_what_was_measured_stands_below_what_was_predicted() -> None:
    environment = {"POCKETLM_ISA": COMPILED_ISAS[0] if COMPILED_ISAS else "reference"}
    result = pocketlm("doctor", "--measure", "distilgpt2", "--json", environment=environment)
    assert "running distilgpt2 in float32" in result.stderr
    measured = {
        (entry["model"], entry["dtype"]): entry["measured_tokens_per_s"]
        for entry in json.loads(result.stdout)["capacity"]
        if entry["measured_tokens_per_s"]
    }
    assert {model for model, _ in measured} == {"shape:distilgpt2"}
    assert all(speeds["1"] > 0 and speeds["16"] > 0 for speeds in measured.values())


def test_a_size_that_there_is_not() -> None:
    result = pocketlm("doctor", "--measure", "gpt7")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: measure must be one of distilgpt2, gpt2,")


@pytest.mark.parametrize("columns", ["40", "80"])
def test_no_figure_is_lost_in_a_narrow_terminal(columns: str) -> None:
    from terminal import terminal

    with terminal("doctor", columns=int(columns), lines=400) as window:
        assert window.wait() == 0
        assert "all is well" in window.screen and "…" not in window.screen
