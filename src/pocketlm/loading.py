"""A model's name -> tokenizer and engine, with every "auto" resolved and its reason logged."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from pydantic import ByteSize

from pocketlm import hardware, kernels
from pocketlm.accuracy import PASSAGE, compare
from pocketlm.config import EngineConfig
from pocketlm.engine.engine import Engine
from pocketlm.errors import ConfigError, ModelLoadError
from pocketlm.hub import resolve
from pocketlm.kernels import Decoder
from pocketlm.models import Checkpoint, load_checkpoint
from pocketlm.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAX_KL_DIVERGENCE = 0.02  # nats per token that dtype=auto lets int8 differ from float32
KV_CACHE_SHARE = 0.2  # of the memory left when the weights are loaded


@dataclass(frozen=True)
class Setting:
    """A value that was chosen, and why: one line of the log, one row of `pocketlm doctor`."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}: {self.reason}"


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate."""

    name: str
    model_type: str
    num_parameters: int
    tokenizer: Tokenizer
    engine: Engine
    dtype: str
    dtype_reason: str
    settings: tuple[Setting, ...]
    load_s: float


def load_model(name: str, config: EngineConfig) -> LoadedModel:
    """Load a model: "bundled", a local folder or a Hugging Face Hub id. ModelLoadError, ConfigError."""
    start = time.perf_counter()
    checkpoint = load_checkpoint(resolve(name))
    tokenizer = Tokenizer.from_folder(checkpoint.folder)
    check_tokenizer(tokenizer, checkpoint)

    isa, isa_reason = kernels.isa()
    num_threads, threads_reason = resolve_num_threads(config)
    dtype, dtype_reason, decoder = resolve_dtype(config, checkpoint, tokenizer, num_threads)
    max_model_len, length_reason = resolve_max_model_len(config, checkpoint)
    num_blocks, cache_reason = resolve_num_blocks(config, decoder, max_model_len)
    cache_size = _size(num_blocks * kernels.kv_block_bytes(decoder.spec, dtype))

    engine = Engine(
        decoder,
        eos_token_ids=checkpoint.eos_token_ids,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        prefix_caching=config.prefix_caching,
    )
    settings = (
        Setting("isa", isa, isa_reason),
        Setting("num_threads", str(num_threads), threads_reason),
        Setting("dtype", dtype, dtype_reason),
        Setting("max_model_len", str(max_model_len), length_reason),
        Setting("kv_cache", f"{num_blocks} blocks ({cache_size})", cache_reason),
    )
    for setting in settings:
        log.info("%s", setting)
    load_s = time.perf_counter() - start
    log.info("model %s loaded in %.2f s: %d parameters", name, load_s, checkpoint.num_parameters)
    return LoadedModel(
        name=name,
        model_type=checkpoint.model_type,
        num_parameters=checkpoint.num_parameters,
        tokenizer=tokenizer,
        engine=engine,
        dtype=dtype,
        dtype_reason=dtype_reason,
        settings=settings,
        load_s=load_s,
    )


def check_tokenizer(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Refuse the tokenizer of another model. (Some have a few tokens more than the model, never used.)"""
    largest_id = max(tokenizer.encode(PASSAGE), default=0)
    if largest_id >= checkpoint.spec.vocab_size:
        raise ModelLoadError(
            f"{checkpoint.folder}: the tokenizer gives plain English the token id {largest_id}, but the "
            f"model's vocab_size is {checkpoint.spec.vocab_size}; they do not belong together"
        )


def resolve_num_threads(config: EngineConfig) -> tuple[int, str]:
    if config.num_threads is not None:
        return config.num_threads, "as configured"
    return hardware.num_threads()


def resolve_dtype(
    config: EngineConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, num_threads: int
) -> tuple[str, str, Decoder]:
    """The number format of the weights, why, and the decoder packed in it."""

    def pack(dtype: str) -> Decoder:
        return kernels.create_decoder(
            checkpoint.spec, checkpoint.weights, dtype=dtype, num_threads=num_threads
        )

    if config.dtype != "auto":
        return config.dtype, "as configured", pack(config.dtype)
    if kernels.isa()[0] == "reference":
        return "float32", "the NumPy reference gains nothing from int8", pack("float32")
    float32, int8 = pack("float32"), pack("int8")
    window = tokenizer.encode(PASSAGE)[: checkpoint.spec.max_positions]
    kl = compare(float32, int8, [window]).mean_kl
    found = f"KL divergence of int8 from float32 is {kl:.2g} on the probe, bound {MAX_KL_DIVERGENCE:g}"
    # Written so that a NaN, from logits that are not finite, also means float32.
    return ("int8", found, int8) if kl <= MAX_KL_DIVERGENCE else ("float32", found, float32)


def resolve_max_model_len(config: EngineConfig, checkpoint: Checkpoint) -> tuple[int, str]:
    context = checkpoint.spec.max_positions
    if config.max_model_len is None:
        return context, "the model's context window"
    if config.max_model_len > context:
        return context, f"the model's context window, less than the {config.max_model_len} configured"
    return config.max_model_len, "as configured"


def resolve_num_blocks(config: EngineConfig, decoder: Decoder, max_model_len: int) -> tuple[int, str]:
    """How many KV blocks to take: what the memory allows, but no more than all sequences can fill."""
    block_bytes = kernels.kv_block_bytes(decoder.spec, decoder.dtype)
    blocks_per_seq = -(-max_model_len // kernels.BLOCK_SIZE)
    if config.kv_cache_memory is not None:
        budget, reason = int(config.kv_cache_memory), "as configured"
    else:
        available, where = hardware.available_memory()
        budget = int(KV_CACHE_SHARE * available)
        reason = f"{KV_CACHE_SHARE:.0%} of {_size(available)} {where}"
    if budget < blocks_per_seq * block_bytes:
        raise ConfigError(
            f"the KV cache may take {_size(budget)} ({reason}), but one context of {max_model_len} tokens "
            f"needs {_size(blocks_per_seq * block_bytes)}; raise kv_cache_memory or lower max_model_len"
        )
    enough = config.max_num_seqs * blocks_per_seq
    if enough * block_bytes <= budget:
        return enough, f"{config.max_num_seqs} sequences of {max_model_len} tokens need no more"
    return budget // block_bytes, reason


def _size(num_bytes: int) -> str:
    return ByteSize(num_bytes).human_readable(separator=" ")
