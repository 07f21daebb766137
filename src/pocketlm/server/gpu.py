"""What the GPUs of the machine do, where nvidia-ml-py is installed. Our own engine does not use them."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType
from typing import NamedTuple

log = logging.getLogger(__name__)


class GpuReading(NamedTuple):
    number: int
    utilization: float | None  # share of the last second or so in which it was busy; None: not measured
    memory_used_bytes: int
    memory_total_bytes: int


def read() -> list[GpuReading]:
    """What each GPU does now; [] where there is none. A GPU that does not answer is left out."""
    nvml = _nvml()
    if nvml is None:
        return []
    readings = []
    try:
        for number in range(nvml.nvmlDeviceGetCount()):
            readings += _read_one(nvml, number)
    except nvml.NVMLError as error:  # e.g. the driver was taken away
        log.debug("no GPU can be listed: %s", error)
    return readings


def _read_one(nvml: ModuleType, number: int) -> list[GpuReading]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError as error:
        log.debug("GPU %d does not answer: %s", number, error)
        return []
    try:
        busy = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except nvml.NVMLError:  # a GPU that is divided into several has no utilization of its own
        busy = None
    return [GpuReading(number, busy, memory.used, memory.total)]


@functools.cache
def _nvml() -> ModuleType | None:
    """NVIDIA's management library, ready for use, or None. Asked for once: no driver comes while we run."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.debug("no GPU metrics: %s", error)
        return None
    return nvml
