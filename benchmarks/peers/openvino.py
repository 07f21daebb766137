"""OpenVINO GenAI: its ContinuousBatchingPipeline, on models that optimum-intel converts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.environments import run
from peers.variant import NUM_THREADS, Generate, Variant, timed
from peers.workload import TokenIds

PACKAGES = ("openvino-genai", "optimum-intel", "nncf")
# What is converted: the folder's name -> the converter's flags.
WEIGHTS = {
    "fp32": ["--weight-format", "fp32"],
    "int8": ["--weight-format", "int8"],
    "int4": ["--weight-format", "int4", "--group-size", "128", "--ratio", "1.0"],
}
GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
PRECISION = "INFERENCE_PRECISION_HINT"
# Name -> weights, and properties of the device.
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp32": ("fp32", {PRECISION: "f32"}),
    "bf16": ("fp32", {PRECISION: "bf16"}),
    "int8": ("int8", {}),
    "int8 groups of 64": ("int8", {GROUP: 64}),
    "int8 groups of 256": ("int8", {GROUP: 256}),
    "int8 groups of 768": ("int8", {GROUP: 768}),
    "int4": ("int4", {}),
    "int4 groups of 256": ("int4", {GROUP: 256}),
}
BITS = {"fp32": 32, "int8": 8, "int4": 4}


def variant_of(name: str) -> Variant:
    weights, properties = SETTINGS[name]
    bits = 16 if properties.get(PRECISION) == "bf16" else BITS[weights]
    settings = ", ".join(f"{key}={value}" for key, value in properties.items())
    return Variant(bits, settings or "its defaults", is_exact=name == "fp32")


VARIANTS = {name: variant_of(name) for name in SETTINGS}
CACHE_GB, MAX_BATCH_TOKENS = 1, 2048


def build(home: Path, checkpoint: Path) -> None:
    export = [home / "venv/bin/optimum-cli", "export", "openvino", "--model", checkpoint]
    for name, flags in WEIGHTS.items():
        run([*export, "--task", "text-generation-with-past", *flags, home / name], home)


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    import numpy as np
    import openvino
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    weights, properties = SETTINGS[variant]
    scheduler = SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_batched_tokens = MAX_BATCH_TOKENS
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_NUM_THREADS": NUM_THREADS, **properties}
    pipeline = ContinuousBatchingPipeline(str(home / weights), scheduler, "CPU", properties)

    def generate(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
        config = GenerationConfig()
        config.max_new_tokens = num_new_tokens
        config.ignore_eos = True
        config.do_sample = False
        tensors = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        results = pipeline.generate(tensors, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    return timed(generate)
