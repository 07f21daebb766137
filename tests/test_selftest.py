"""The self-test of `pocketlm doctor` finds wrong kernels."""

from __future__ import annotations

from typing import Any

import pytest

from pocketlm import kernels, selftest
from pocketlm.kernels import reference


@pytest.mark.parametrize("dtype", selftest.TOLERANCES)
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_every_instruction_set_passes(isa: str, dtype: str) -> None:
    assert selftest.max_difference(isa, dtype) <= selftest.TOLERANCES[dtype]


@pytest.mark.skipif(not kernels.COMPILED_ISAS, reason="the compiled core was not built")
def test_another_activation_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the reference computed something slightly else, each instruction set would be found to differ."""

    def quick_gelu(x: Any) -> Any:
        return reference.ACTIVATIONS["quick_gelu"](x)

    monkeypatch.setitem(reference.ACTIVATIONS, "gelu_tanh", quick_gelu)
    for isa in kernels.COMPILED_ISAS:
        assert selftest.max_difference(isa, "float32") > selftest.TOLERANCES["float32"]
