"""pocketlm doctor: whether the installation is well, and what it chose on this machine."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from pocketlm.cli.output import configure_logging, print_json, print_table
from pocketlm.errors import PocketLMError

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
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check the installation. The exit code is 0 if nothing failed; a warning is no failure."""
    configure_logging(logging.ERROR)
    checks = [*_versions(), *_machine(), *_kernels(), *_model()]
    is_well = all(check.state != "failed" for check in checks)
    if json:
        print_json({"ok": is_well, "checks": [asdict(check) for check in checks]})
    else:
        print_table((check.state, check.name, check.value, check.reason) for check in checks)
        print("all is well" if is_well else "something failed: see above")
    sys.exit(0 if is_well else 1)


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

    yield Check("cpu", _cpu_model(), f"{platform.system()} {platform.machine()}")
    num_threads, reason = hardware.num_threads()
    yield Check("processors", str(num_threads), reason)
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


def _cpu_model() -> str:
    """The name in /proc/cpuinfo where there is one; Python's own is often empty."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
