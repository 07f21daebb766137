"""pocketlm doctor: whether the installation is well, and what this machine can do."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pocketlm.cli.output import configure_logging, note, print_json, print_table
from pocketlm.config import EngineConfig, load_config
from pocketlm.errors import ConfigError, PocketLMError

if TYPE_CHECKING:
    from pocketlm.capacity import Capacity
    from pocketlm.cli.capacity_table import Measured
    from pocketlm.machine_speed import MachineSpeed

PACKAGES = (
    "pocketlm",
    "numpy",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "fastapi",
    "uvicorn",
    "pydantic",
    "typer",
)


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, what was found, why it is so, and whether that is well."""

    name: str
    value: str
    reason: str = ""
    state: str = "ok"  # or "warning", or "failed"


def doctor(
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="SHAPE", help="Also run this size of GPT-2, e.g. gpt2, beside what is predicted."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the installation, and what this machine can do.

    The last table predicts tokens per second for each size of GPT-2.

    The exit code is 0 if nothing failed; a warning is no failure.
    """
    configure_logging(logging.ERROR)

    from pocketlm.cli.capacity_table import as_json, print_capacities

    _check_shape(measure)
    checks = [*_versions(), *_machine(), *_kernels(), *_model()]
    speed = _measure_machine()
    checks += _speed(speed)
    capacities = _capacities(speed)
    measured = {} if measure is None else _measured(measure, capacities)
    is_well = all(check.state != "failed" for check in checks)
    if json:
        print_json(
            {
                "ok": is_well,
                "checks": [asdict(check) for check in checks],
                "speed": asdict(speed),
                "capacity": [as_json(capacity, measured) for capacity in capacities],
            }
        )
    else:
        print_table((check.state, check.name, check.value, check.reason) for check in checks)
        print_capacities(capacities, measured)
        print("all is well" if is_well else "something failed: see above")
    sys.exit(0 if is_well else 1)


def _check_shape(name: str | None) -> None:
    from pocketlm.shapes import SHAPES

    if name is not None and name not in SHAPES:
        raise ConfigError(f"measure must be one of {', '.join(SHAPES)}; got {name!r}")


def _versions() -> Iterator[Check]:
    from importlib.metadata import PackageNotFoundError, version

    yield Check("python", platform.python_version(), sys.executable)
    for package in PACKAGES:
        try:
            yield Check(package, version(package))
        except PackageNotFoundError:
            yield Check(package, "not installed", "run pip install pocketlm", "failed")


def _machine() -> Iterator[Check]:
    from pocketlm import hardware

    yield Check("cpu", hardware.cpu_model(), f"{platform.system()} {platform.machine()}")
    num_threads, reason = hardware.num_threads()
    yield Check("processors", str(num_threads), reason)
    quota = hardware.cpu_quota()
    yield Check("cpu quota", "none" if quota is None else f"{quota:g} processors", "of the cgroup")
    num_bytes, reason = hardware.available_memory()
    yield Check("memory", f"{num_bytes / 2**30:.1f} GiB", reason)


def _kernels() -> Iterator[Check]:
    from pocketlm import kernels
    from pocketlm.selftest import TOLERANCES, max_difference

    isa, reason = kernels.isa()
    yield Check("isa", isa, reason)
    yield Check("available isas", ", ".join(kernels.available_isas()))
    if kernels.COMPILED_ISAS:
        yield Check("compiled core", "present")
    else:
        yield Check("compiled core", "missing", "the NumPy reference is used, which is slow", "warning")
    for isa in kernels.COMPILED_ISAS:
        for dtype, tolerance in TOLERANCES.items():
            difference = max_difference(isa, dtype)
            state = "ok" if difference <= tolerance else "failed"
            reason = f"largest difference from the reference; {tolerance:g} is allowed"
            yield Check(f"kernels {isa} {dtype}", f"{difference:.1e}", reason, state)


def _model() -> Iterator[Check]:
    from pocketlm import LLM, SamplingParams

    prompt = "Kubernetes is a"
    try:
        llm = LLM()
        [answer] = llm.generate(prompt, SamplingParams(max_tokens=16, temperature=0))
    except PocketLMError as error:
        yield Check("bundled model", "failed", str(error), "failed")
        return
    for setting in llm.model.settings:
        yield Check(f"model {setting.name}", setting.value, setting.reason)
    yield Check("bundled model", f"loaded in {llm.model.load_s:.2f} s")
    [completion] = answer.outputs
    yield Check("generation", f"{len(completion.token_ids)} tokens", repr(prompt + completion.text))


def _measure_machine() -> MachineSpeed:
    from pocketlm import machine_speed
    from pocketlm.loading import candidate_dtypes, resolve_num_threads

    _, config, _ = load_config({})
    num_threads, _ = resolve_num_threads(config)
    return machine_speed.measure(candidate_dtypes(EngineConfig()), num_threads)


def _speed(speed: MachineSpeed) -> Iterator[Check]:
    from pocketlm.machine_speed import NUM_LAYERS_READ, NUM_STREAMS

    yield Check(
        "memory bandwidth",
        f"{speed.bytes_per_s / 2**30:.1f} GiB/s",
        f"weights of {NUM_LAYERS_READ} layers as wide as gpt2's, read for one stream",
    )
    for dtype, number in speed.multiply_adds_per_s.items():
        yield Check(
            f"multiply-adds {dtype}",
            f"{number / 1e9:.1f} billion/s",
            f"a layer as wide as gpt2's, {NUM_STREAMS} tokens at once",
        )


def _capacities(speed: MachineSpeed) -> list[Capacity]:
    from pocketlm import hardware
    from pocketlm.capacity import capacity
    from pocketlm.hub import SHAPE_PREFIX
    from pocketlm.shapes import SHAPES

    available_bytes, _ = hardware.available_memory()
    return [
        capacity(f"{SHAPE_PREFIX}{name}", dtype, speed, available_bytes)
        for name in SHAPES
        for dtype in speed.multiply_adds_per_s
    ]


def _measured(shape: str, capacities: list[Capacity]) -> Measured:
    from pocketlm.capacity import measured_tokens_per_s
    from pocketlm.hub import SHAPE_PREFIX

    measured = {}
    for capacity in capacities:
        if capacity.model == f"{SHAPE_PREFIX}{shape}":
            note(f"running {shape} in {capacity.dtype} ...")
            measured[capacity.model, capacity.dtype] = measured_tokens_per_s(capacity.model, capacity.dtype)
    return measured
