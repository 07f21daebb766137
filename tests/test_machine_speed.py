"""The figures themselves are the machine's; that they are figures, and of what, is held here."""

from __future__ import annotations

import math

import pytest

from pocketlm import machine_speed
from pocketlm.kernels import DTYPES


@pytest.mark.parametrize("num_threads", [1, 2])
def test_reading_has_a_speed(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "NUM_LAYERS_READ", 1)
    speed = machine_speed.read_speed(num_threads)
    assert math.isfinite(speed) and speed > 0


def test_every_dtype_has_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_speed, "NUM_LAYERS_READ", 1)
    speed = machine_speed.measure(DTYPES, num_threads=1)
    assert set(speed.multiply_adds_per_s) == set(DTYPES)
    assert all(math.isfinite(number) and number > 1e6 for number in speed.multiply_adds_per_s.values())


def test_a_speed_is_that_of_the_best_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 3.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr(machine_speed.time, "perf_counter", lambda: next(times))
    num_bytes = 4 * machine_speed.matrix_elements(machine_speed.LAYER)
    monkeypatch.setattr(machine_speed, "NUM_LAYERS_READ", 1)
    assert machine_speed.read_speed(num_threads=1) == num_bytes / 2.0
