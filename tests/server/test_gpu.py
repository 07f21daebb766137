"""GPU readings, with a stand-in for NVIDIA's library."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from pocketlm.server import gpu
from pocketlm.server.gpu import GpuReading


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """Three GPUs: one that works, one that is divided into several, one that fell off the bus."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.has_driver = True
        self.num_inits = 0

    def nvmlInit(self) -> None:
        self.num_inits += 1
        self.check_driver()

    def nvmlDeviceGetCount(self) -> int:
        self.check_driver()
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 2:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(used=1000 + handle, total=8000, free=7000 - handle)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        if handle == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=37, memory=5)

    def check_driver(self) -> None:
        if not self.has_driver:
            raise NVMLError("Driver Not Loaded")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    gpu._nvml.cache_clear()
    yield fake
    gpu._nvml.cache_clear()


def test_each_gpu_that_answers_is_read(nvml: FakeNvml) -> None:
    expected = [GpuReading(0, 0.37, 1000, 8000), GpuReading(1, None, 1001, 8000)]
    assert gpu.read() == gpu.read() == expected
    assert nvml.num_inits == 1


def test_without_a_driver_there_are_none_and_it_is_not_asked_again(nvml: FakeNvml) -> None:
    nvml.has_driver = False
    assert gpu.read() == gpu.read() == []
    assert nvml.num_inits == 1


def test_a_driver_that_goes_away_is_no_failure(nvml: FakeNvml) -> None:
    assert gpu.read()
    nvml.has_driver = False
    assert gpu.read() == []


def test_without_the_library_there_are_none(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # what makes an import fail
    assert gpu.read() == []


def test_on_this_machine_it_does_not_fail() -> None:
    gpu._nvml.cache_clear()
    assert isinstance(gpu.read(), list)
