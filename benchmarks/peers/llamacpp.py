"""llama.cpp, from the source package llama-cpp-python: its own benchmark, and its own server."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from peers.environments import run
from peers.variant import NUM_THREADS, Generate, Variant
from peers.workload import TokenIds

PACKAGES = ("transformers",)  # for its converter
SOURCE = "llama-cpp-python==0.3.36"
VARIANTS = {
    "Q8_0": Variant(8, is_served=True),
    "Q4_0": Variant(4, is_served=True),
    "Q4_K_M": Variant(4, is_served=True),
    "BF16": Variant(16),
}
TOOLS = ("llama-batched-bench", "llama-server", "llama-quantize")
LEFT_OUT = (
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_APP",
    "LLAMA_USE_PREBUILT_UI",
    "LLAMA_OPENSSL",
)
THREADS = ["--threads", str(NUM_THREADS), "--threads-batch", str(NUM_THREADS)]
MAX_STREAMS = 64
CONTEXT = 128  # tokens of a stream


def build(home: Path, checkpoint: Path) -> None:
    python = home / "venv/bin/python"
    run([python, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", home, SOURCE], home)
    [package] = home.glob("llama_cpp_python-*.tar.gz")
    run(["tar", "-xf", package, "-C", home], home)
    source = home / package.name.removesuffix(".tar.gz") / "vendor/llama.cpp"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *(f"-D{option}=OFF" for option in LEFT_OUT)]
    run(["cmake", "-S", source, "-B", home / "build", *options], home)
    num_jobs = str(os.cpu_count() or 1)
    run(["cmake", "--build", home / "build", "--parallel", num_jobs, "--target", *TOOLS], home)
    exact = home / "F32.gguf"
    convert = [
        python,
        Path(__file__).with_name("scripts") / "convert_gguf.py",
        source,
        checkpoint,
        "--outtype",
        "f32",
        "--outfile",
        exact,
    ]
    run(convert, home)
    for variant in VARIANTS:
        run([home / "build/bin/llama-quantize", exact, home / f"{variant}.gguf", variant], home)


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    command = [home / "build/bin/llama-batched-bench", "--model", home / f"{variant}.gguf", *THREADS]

    def generate(prompts: list[TokenIds], num_new_tokens: int) -> tuple[float, None]:
        """The tool draws the prompts and the new tokens at random; the first of these are the prefill's."""
        length = len(prompts[0])
        flags = ["-npp", str(length), "-ntg", str(max(1, num_new_tokens - 1)), "-npl", str(len(prompts))]
        context = str(len(prompts) * (length + num_new_tokens))
        done = subprocess.run(
            [*command, *flags, "--ctx-size", context, "--output-format", "jsonl"],
            check=True,
            capture_output=True,
            text=True,
        )
        [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
        measured = json.loads(line)
        seconds = measured["t_pp"] + (measured["t_tg"] if num_new_tokens > 1 else 0)
        return seconds, None

    return generate


def serve(home: Path, checkpoint: Path, variant: str, port: int) -> list[str]:
    flags = [
        "--port",
        str(port),
        "--parallel",
        str(MAX_STREAMS),
        "--ctx-size",
        str(MAX_STREAMS * CONTEXT),
        "--no-ui",
        "--cache-ram",  # of prompts, which never come again
        "0",
    ]
    return [str(home / "build/bin/llama-server"), "--model", str(home / f"{variant}.gguf"), *THREADS, *flags]
