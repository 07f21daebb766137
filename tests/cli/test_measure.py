"""One model measured: the memory it may take, and the memory it says it took."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pocketlm import hardware
from pocketlm.cli.measure import measure, peak_mib, resident_mib
from pocketlm.errors import InsufficientMemory


def test_a_model_that_cannot_fit_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "available_memory", lambda: (1 << 30, "available on the machine"))
    with pytest.raises(InsufficientMemory, match=r"takes up to .* and 1\.0 GiB are available on the machine"):
        measure("shape:gpt2-xl", {}, "Hello", 1)


def test_memory_is_what_the_system_says() -> None:
    assert resident_mib() == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.02)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_peak_stays_when_memory_is_given_back() -> None:
    block = bytearray(b"x") * (200 << 20)
    with_block = resident_mib()
    del block
    assert resident_mib() < with_block - 150
    assert peak_mib() >= with_block * 0.98
